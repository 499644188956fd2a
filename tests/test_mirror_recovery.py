"""What a recovering primary answers, and when it serves (specification, section 7).

Where a test takes `start_primary`, the primary dies in both ways: stopped in this process, and
killed with kill -9 in one of its own.
"""

from __future__ import annotations

import time

import pytest
from mirror_tools import (
    ATOMIC,
    FAIR,
    HOST,
    LONG_S,
    RW,
    Held,
    S,
    ex,
    extend_ex,
    extend_sh,
    local_state,
    recover,
    recover_all,
    report,
    sh,
    shown,
    until,
)
from test_mirror_order import EXCEPTED, NAMING_A_CLIENT, status_of

from dlock import dclient, dserver
from dlock.types import AtomicDesc, LockDesc, LockOp, LockRequest

# ---- 7.1: what a recovering primary answers ------------------------------------------------------


def everything(held: Held) -> list[tuple[str, S]]:
    """Every call that asks the server, and what it says."""
    me = held.me
    said = [
        ("trylock", dclient.trylock(me, ex(held.free))[0]),
        ("re-entry", dclient.trylock(me, ex(held.atomic))[0]),
        ("re-entry of rw", dclient.trylock(me, sh(held.reader))[0]),
        ("redeem", dclient.trylock(me, ex(held.ticket))[0]),
        ("lock", dclient.lock(me, ex(held.free))[0]),
        ("lock of a ticket", dclient.lock(me, ex(held.ticket))[0]),
        ("long lease", dclient.trylock(me, ex(held.free, 3600))[0]),
        ("extend", dclient.lock_extend(me, extend_ex(held.atomic))[0]),
        ("extend shared", dclient.lock_extend(me, extend_sh(held.fair, 0))[0]),
        ("release", dclient.release_lock(me, held.free)),
        ("get", dclient.get_lock(me, LockDesc(b"new"))[0]),
        ("create", dclient.umo_atomic64_create(me, AtomicDesc(b"o", 60), 1)[0]),
        ("get object", dclient.umo_atomic64_get(me, AtomicDesc(b"o", 60))[0]),
        ("heartbeat", dclient.client_heartbeat(me, 20)),
    ]
    locks = (held.atomic, held.writer, held.reader, held.fair, held.ticket)
    said += [(f"unlock {lock_id}", dclient.unlock(me, lock_id)[0]) for lock_id in locks]
    return said + batches(held) + asynchronous(held)


def batches(held: Held) -> list[tuple[str, S]]:
    me = held.me
    requests = [ex(held.free), ex(held.atomic), ex(held.ticket), ex(held.free, 3600)]
    extensions = [extend_ex(held.atomic), extend_sh(held.fair)]
    status, got = dclient.batch_get_lock(me, [LockDesc(b"new"), LockDesc(b"newer")])
    assert (status, got) == (S.SUCCESS, [-1, -1])
    status, released = dclient.batch_release_lock(me, [held.free])
    assert status is S.SUCCESS
    assert released is not None
    said = [("batch_release", one) for one in released]
    for name, (status, results) in {
        "batch_trylock": dclient.batch_trylock(me, requests),
        "batch_extend": dclient.batch_lock_extend(me, extensions),
        "batch_unlock": dclient.batch_unlock(me, [held.atomic, held.reader, held.ticket]),
    }.items():
        assert status is S.SUCCESS
        assert results is not None
        said += [(name, one.op_ret) for one in results]
    return said


def asynchronous(held: Held) -> list[tuple[str, S]]:
    said = []
    for op, lock_id in (
        (LockOp.LOCK_EXCLUSIVE, held.free),
        (LockOp.EXTEND_LOCK_EXCLUSIVE, held.atomic),
        (LockOp.UNLOCK, held.writer),
    ):
        assert dclient.lock_request_async(held.me, LockRequest(lock_id, op, 5)) is S.SUCCESS
        said.append((f"async {op.name}", checked(held.me)))
    return said


def checked(client: int) -> S:
    deadline = time.monotonic() + LONG_S
    while (answer := dclient.lock_result_check(client))[0] is S.ASYNC_AGAIN:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return answer[0]


@pytest.mark.data_plane
def test_everything_else_is_not_ready_and_changes_nothing(start_primary) -> None:
    service = start_primary()
    held = Held(service)
    before = local_state(held.me)
    service.fail_over(2)
    for _ in range(2):  # while it re-initialises, and when it has
        report(held.me)
        assert local_state(held.me) == before
        said = everything(held)
        assert {name: status for name, status in said if status is not S.NOT_READY} == {}
        assert local_state(held.me) == before
    assert dclient.client_reinit_done(held.me) is S.SUCCESS
    assert everything(held) == said
    assert local_state(held.me) == before
    assert dclient.client_init(HOST) == (S.NOT_READY, None)
    recover(held.other)
    assert dclient.lock_extend(held.me, extend_ex(held.atomic))[0] is S.SUCCESS
    service.client()


def test_not_ready_is_counted(start_service) -> None:
    service = start_service()
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    service.fail_over(2)
    report(client)
    dclient.trylock(client, ex(lock_id))
    dclient.batch_trylock(client, [ex(lock_id), ex(lock_id)])
    assert dclient.client_init(HOST) == (S.NOT_READY, None)
    assert dclient.get_client_debug_stats(client)[1].NOT_READY == 3
    assert dserver.get_server_debug_stats(service.server_id)[1].NOT_READY >= 3


def test_counters_go_on_when_the_primary_begins_anew(start_service) -> None:
    service = start_service()
    client = service.client()
    service.fail_over(2)
    for _ in range(3):
        assert dclient.client_init(HOST) == (S.NOT_READY, None)
    assert dserver.clear_server_debug_stats(service.server_id) is S.SUCCESS
    assert dclient.client_init(HOST) == (S.NOT_READY, None)
    report(client)  # it shows an epoch, and the primary takes a higher one
    assert dclient.client_init(HOST) == (S.NOT_READY, None)
    assert dserver.get_server_debug_stats(service.server_id)[1].NOT_READY >= 2


def test_a_client_that_leaves_a_recovering_primary(start_service) -> None:
    service = start_service()
    one, two, three = (service.client() for _ in range(3))
    lock_id = service.lock(ATOMIC, one, two, three)
    dclient.trylock(one, ex(lock_id))
    service.fail_over(3)
    report(one)
    assert dclient.client_deinit(one) is S.NOT_READY
    assert dclient.client_deinit(one) is S.CLIENT_NOT_INIT  # gone here all the same
    recover(two)
    assert dclient.client_deinit(two) is S.NOT_READY
    recover(three)  # nobody waits for the two
    assert dclient.trylock(three, ex(lock_id))[0] is S.SUCCESS


def test_a_counted_re_entry_is_decided_here(start_service) -> None:
    service = start_service()
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    for _ in range(2):
        dclient.trylock(client, ex(lock_id))
    service.fail_over(2)
    report(client)
    assert dclient.unlock(client, lock_id)[0] is S.ALREADY_LOCKED
    assert dclient.unlock(client, lock_id)[0] is S.NOT_READY


def test_both_planes_serve_when_the_last_is_answered(start_primary) -> None:
    service = start_primary()
    clients = [service.client() for _ in range(4)]
    lock_id = service.lock(ATOMIC, *clients)
    service.fail_over(4)
    recover(*clients[:3])
    assert dclient.trylock(clients[0], ex(lock_id))[0] is S.NOT_READY
    recover(clients[3])
    for client in reversed(clients):
        assert dclient.trylock(client, ex(lock_id))[0] is S.SUCCESS
        assert dclient.unlock(client, lock_id)[0] is S.SUCCESS
        assert dclient.get_lock(client, LockDesc(b"new %d" % client))[0] is S.SUCCESS


def test_after_the_recovery_deadline_it_serves_without_who_stayed_away(start_service) -> None:
    service = start_service(session_ttl=5)
    here, away = service.client(), service.client()
    shared, alone = service.lock(RW, here, away), service.lock(ATOMIC, here, away)
    dclient.trylock(here, sh(shared))
    dclient.trylock(away, sh(shared))
    dclient.trylock(away, ex(alone))
    service.fail_over(2, session_ttl=5, recovery_deadline=8)
    recover(here)
    until(lambda: dclient.trylock(here, ex(alone))[0] is S.SUCCESS, LONG_S)
    assert dclient.trylock(here, sh(shared))[0] is S.ALREADY_LOCKED
    assert dclient.client_reinit(away, HOST) is S.CLIENT_REMOVED_BY_SERVER


def test_who_came_and_did_not_end_it_is_removed_at_the_deadline(start_service) -> None:
    service = start_service(session_ttl=5)
    here, slow = service.client(), service.client()
    lock_id = service.lock(ATOMIC, here, slow)
    dclient.trylock(slow, ex(lock_id))
    service.fail_over(2, session_ttl=5, recovery_deadline=8)
    recover(here)
    report(slow)
    until(lambda: dclient.trylock(here, ex(lock_id))[0] is S.SUCCESS, LONG_S)
    # Its links are closed, if this is not quicker.
    gone = (S.BAD_RESPONSE, S.CLIENT_REMOVED_BY_SERVER)
    assert dclient.client_reinit_done(slow) in gone
    assert dclient.client_reinit(slow, HOST) is S.CLIENT_REMOVED_BY_SERVER
    assert dclient.lock_extend(slow, extend_ex(lock_id))[0] is S.CLIENT_REMOVED_BY_SERVER
    assert dclient.client_reinit_done(slow) is S.CLIENT_REMOVED_BY_SERVER


# ---- Interrupted, repeated, several times --------------------------------------------------------


@pytest.mark.data_plane
def test_a_recovery_that_is_itself_interrupted(start_primary) -> None:
    service = start_primary()
    held = Held(service)
    before = local_state(held.me)
    service.fail_over(2)
    recover(held.me)  # the second primary dies when one of two was back
    service.fail_over(2)
    report(held.other)  # the third when the other had reported
    service.fail_over(2)
    assert dclient.client_reinit(held.me, HOST) is S.SUCCESS
    service.fail_over(2)
    recover_all(held.other, held.me)
    assert local_state(held.me) == before
    assert dclient.lock_extend(held.me, extend_ex(held.atomic))[0] is S.SUCCESS
    assert dclient.trylock(held.me, ex(held.writer))[0] is S.ALREADY_LOCKED
    assert dclient.trylock(held.other, ex(held.atomic))[0] is S.FAIL


def test_each_step_may_be_repeated(start_service) -> None:
    service = start_service()
    one, two = service.client(), service.client()
    lock_id = service.lock(ATOMIC, one, two)
    dclient.trylock(one, ex(lock_id))
    service.fail_over(2)
    report(one)
    report(one)
    assert dclient.update_all_locks(one) is S.SUCCESS
    assert dclient.client_reinit_done(one) is S.SUCCESS
    assert dclient.client_reinit_done(one) is S.ERROR
    recover(one)  # all of it, and it counts once
    assert dclient.trylock(one, ex(lock_id))[0] is S.NOT_READY
    recover(two)
    assert dclient.lock_extend(one, extend_ex(lock_id))[0] is S.SUCCESS
    assert dclient.trylock(two, ex(lock_id))[0] is S.FAIL


def test_ten_primaries_one_after_another(start_service) -> None:
    service = start_service()
    one, two = service.client(), service.client()
    lock_id = service.lock(FAIR, one, two)
    holder, other = one, two
    dclient.trylock(holder, ex(lock_id))
    for _ in range(10):
        assert dclient.trylock(other, ex(lock_id))[0] is S.EAGAIN
        service.fail_over(2)
        recover(other, holder)
        token = shown(holder, lock_id).token
        assert dclient.lock_extend(holder, extend_ex(lock_id))[0] is S.SUCCESS
        assert dclient.unlock(holder, lock_id)[0] is S.SUCCESS
        status, state = dclient.trylock(other, ex(lock_id))
        assert status is S.SUCCESS
        assert state.token > token
        holder, other = other, holder


# ---- Statuses of client_reinit -------------------------------------------------------------------


def test_a_primary_that_waits_for_nobody_knows_nobody(start_service) -> None:
    service = start_service()
    client = service.client()
    service.fail_over(0)
    assert dclient.client_reinit(client, HOST) is S.CLIENT_REMOVED_BY_SERVER
    for name, call in NAMING_A_CLIENT.items():
        if name not in EXCEPTED:
            assert status_of(call(client)) is S.CLIENT_REMOVED_BY_SERVER, name
    assert dclient.client_deinit(client) is S.SUCCESS
    service.client()


@pytest.mark.data_plane
def test_who_comes_after_the_recovery_is_removed(start_service) -> None:
    service = start_service()
    one, late = service.client(), service.client()
    service.fail_over(1)
    recover(one)
    assert dclient.client_reinit(late, HOST) is S.CLIENT_REMOVED_BY_SERVER
    assert dclient.trylock(late, ex(1)) == (S.CLIENT_REMOVED_BY_SERVER, None)


def test_more_clients_than_there_is_room_for(start_service) -> None:
    service = start_service()
    clients = [service.client() for _ in range(3)]
    service.fail_over(1, max_clients=1)  # it has slots for twice as many sessions
    for client in clients[:2]:
        report(client)
    assert dclient.client_reinit(clients[2], HOST) is S.SERVER_NO_RESOURCE
    assert dclient.client_reinit_done(clients[2]) is S.ERROR


def test_more_locks_than_there_is_room_for(start_service) -> None:
    service = start_service()
    client = service.client()
    locks = [service.lock(ATOMIC, client) for _ in range(3)]
    for lock_id in locks:
        dclient.trylock(client, ex(lock_id))
    service.fail_over(1, max_locks=2)
    recover(client)
    said = [dclient.lock_extend(client, extend_ex(lock_id))[0] for lock_id in locks]
    assert sorted(said) == [S.SUCCESS, S.SUCCESS, S.FAIL]


def test_without_an_answer_client_reinit_is_not_ready(start_service) -> None:
    service = start_service()
    client = service.client()
    service.lock(ATOMIC, client)
    service.crash()
    assert dclient.client_reinit(client, HOST) is S.NOT_READY
    assert dclient.update_all_locks(client) is S.BAD_RESPONSE
    assert dclient.client_reinit_done(client) is S.ERROR
    service.start(1)
    recover(client)


def test_a_primary_that_dies_in_the_middle_is_bad_response(start_service) -> None:
    service = start_service()
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    dclient.trylock(client, ex(lock_id))
    service.fail_over(1)
    assert dclient.client_reinit(client, HOST) is S.SUCCESS
    service.crash()
    assert dclient.update_all_locks(client) is S.BAD_RESPONSE
    assert dclient.client_reinit_done(client) is S.BAD_RESPONSE
    service.start(1)
    recover(client)
    assert dclient.lock_extend(client, extend_ex(lock_id))[0] is S.SUCCESS
