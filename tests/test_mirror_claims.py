"""What comes back at a new primary, and what does not (specification, section 7).

Where a test takes `start_primary`, the primary dies in both ways: stopped in this process, and
killed with kill -9 in one of its own.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

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
    get,
    local_state,
    recover,
    reinit,
    report,
    sh,
    shown,
    until,
)
from test_mirror_order import status_of

from dlock import _mirror_reinit, _mirror_table, dclient
from dlock._core import lib
from dlock.types import AtomicDesc, LockDesc

EPOCH_SHIFT = 43  # of a token: its epoch stands above its counter


# ---- 7.2: what comes back ------------------------------------------------------------------------


@pytest.mark.data_plane
def test_everything_comes_back(start_primary) -> None:
    service = start_primary()
    held = Held(service)
    assert dclient.trylock(held.me, ex(held.atomic))[0] is S.ALREADY_LOCKED
    before = local_state(held.me)
    service.fail_over(2)
    recover(held.me, held.other)
    assert local_state(held.me) == before  # ids, tokens, counts
    newcomer = service.client()
    for kind, lock_id in ((ATOMIC, held.atomic), (RW, held.writer), (RW, held.reader)):
        desc = LockDesc(_mirror_table.clients[held.me].locks[lock_id].descriptor, kind)
        assert get(newcomer, desc) == lock_id
        assert dclient.trylock(newcomer, ex(lock_id))[0] is S.FAIL
    assert dclient.trylock(newcomer, sh(held.reader))[0] is S.SUCCESS
    for lock_id, extend in ((held.atomic, extend_ex), (held.fair, extend_sh)):
        token = shown(held.me, lock_id).token
        status, state = dclient.lock_extend(held.me, extend(lock_id))
        assert (status, state.token) == (S.SUCCESS, token)
    assert dclient.trylock(held.me, ex(held.writer))[0] is S.ALREADY_LOCKED
    assert dclient.trylock(held.me, ex(held.free))[0] is S.SUCCESS
    assert dclient.trylock(held.me, ex(held.ticket))[0] is S.EAGAIN
    assert dclient.unlock(held.other, held.ticket)[0] is S.SUCCESS
    assert dclient.trylock(held.me, ex(held.ticket))[0] is S.SUCCESS
    assert dclient.unlock(held.me, held.atomic)[0] is S.ALREADY_LOCKED
    for lock_id in (held.atomic, held.reader, held.fair, held.ticket, held.free):
        assert dclient.unlock(held.me, lock_id)[0] is S.SUCCESS


def test_new_ids_and_tokens_are_above_those_that_were_claimed(
    start_primary
) -> None:
    service = start_primary()
    client = service.client()
    locks = [service.lock(ATOMIC, client) for _ in range(5)]
    tokens = [dclient.trylock(client, ex(lock_id))[1].token for lock_id in locks]
    for failovers in range(1, 4):
        service.fail_over(1)
        recover(client)
        locks.append(service.lock(ATOMIC, client))
        assert locks[-1] > max(locks[:-1])
        tokens.append(dclient.trylock(client, ex(locks[-1]))[1].token)
        assert tokens[-1] > max(tokens[:-1])
        assert tokens[-1] >> EPOCH_SHIFT == 1 + failovers  # one above all that it was shown
    for lock_id, token in zip(locks, tokens, strict=True):
        assert dclient.lock_extend(client, extend_ex(lock_id))[1].token == token


def test_locks_are_reported_in_batches_of_31(start_service, monkeypatch) -> None:
    service = start_service()
    client = service.client()
    locks = [service.lock(ATOMIC, client) for _ in range(100)]
    service.fail_over(1)
    assert dclient.client_reinit(client, HOST) is S.SUCCESS
    link = _mirror_table.clients[client].link
    assert link is not None
    sizes = []
    stream = link.stream

    def watched(requests: Any, *times: float) -> Any:
        sizes.extend(len(one.claims) for one in requests)
        return stream(requests, *times)

    monkeypatch.setattr(link, "stream", watched)
    assert dclient.update_all_locks(client) is S.SUCCESS
    assert sizes == [31, 31, 31, 7]
    assert dclient.client_reinit_done(client) is S.SUCCESS
    assert {dclient.trylock(client, ex(lock_id))[0] for lock_id in locks} == {S.SUCCESS}


def test_update_all_locks_that_was_too_slow_is_called_again(start_service, monkeypatch) -> None:
    service = start_service()
    client = service.client()
    locks = [service.lock(ATOMIC, client) for _ in range(100)]
    for lock_id in locks:
        dclient.trylock(client, ex(lock_id))
    service.fail_over(1)
    assert dclient.client_reinit(client, HOST) is S.SUCCESS
    monkeypatch.setattr(_mirror_reinit, "send_s", lambda _client: 0)
    # One batch at least is sent each time, and none of them again.
    assert [dclient.update_all_locks(client) for _ in range(4)] == [S.EAGAIN] * 3 + [S.SUCCESS]
    assert dclient.get_client_debug_stats(client)[1].EAGAIN == 3
    assert dclient.client_reinit_done(client) is S.SUCCESS
    for lock_id in locks:
        assert dclient.lock_extend(client, extend_ex(lock_id))[0] is S.SUCCESS


def test_after_eagain_what_was_not_sent_is_not_got(start_service, monkeypatch) -> None:
    service = start_service()
    client = service.client()
    locks = [service.lock(ATOMIC, client) for _ in range(40)]
    for lock_id in locks:
        dclient.trylock(client, ex(lock_id))
    service.fail_over(1)
    assert dclient.client_reinit(client, HOST) is S.SUCCESS
    monkeypatch.setattr(_mirror_reinit, "send_s", lambda _client: 0)
    assert dclient.update_all_locks(client) is S.EAGAIN
    assert dclient.client_reinit_done(client) is S.SUCCESS
    said = [dclient.lock_extend(client, extend_ex(lock_id))[0] for lock_id in locks]
    assert sorted(said) == [S.SUCCESS] * 31 + [S.FAIL] * 9


FIRST_CALLS: dict[str, Callable[[int, int], Any]] = {
    "trylock": lambda client, lock_id: dclient.trylock(client, ex(lock_id)),
    "lock": lambda client, lock_id: dclient.lock(client, ex(lock_id)),
    "lock_extend": lambda client, lock_id: dclient.lock_extend(client, extend_ex(lock_id)),
    "unlock": dclient.unlock,
    "batch_trylock": lambda client, lock_id: item(dclient.batch_trylock(client, [ex(lock_id)])),
    "batch_extend": lambda client, lock_id: item(
        dclient.batch_lock_extend(client, [extend_ex(lock_id)])),
    "batch_unlock": lambda client, lock_id: item(dclient.batch_unlock(client, [lock_id])),
    "async": lambda client, lock_id: dclient.lock_request_async(client, ex(lock_id)),
    "release": dclient.release_lock,
    "batch_release": lambda client, lock_id: dclient.batch_release_lock(client, [lock_id])[1][0],
}


def item(answer: tuple[S, Any]) -> S:
    assert answer[0] is S.SUCCESS
    op_ret: S = answer[1][0].op_ret
    return op_ret


@pytest.mark.parametrize("name", FIRST_CALLS)
def test_a_lock_that_was_not_reported_is_not_got(start_service, name: str) -> None:
    service = start_service()
    client = service.client()
    descs = [LockDesc(b"held", ATOMIC), LockDesc(b"free", ATOMIC)]
    held, free = (get(client, desc) for desc in descs)
    dclient.trylock(client, ex(held))
    service.fail_over(1)
    reinit(client)  # without update_all_locks
    call = FIRST_CALLS[name]
    assert status_of(call(client, held)) is S.FAIL
    assert status_of(call(client, free)) is S.LOCK_NOT_GET
    for lock_id in (held, free):
        assert status_of(call(client, lock_id)) is S.LOCK_NOT_GET
    assert dclient.lock_result_check(client)[0] is S.NO_ASYNC
    for desc in descs:
        assert dclient.trylock(client, ex(get(client, desc)))[0] is S.SUCCESS


def test_a_lock_that_was_not_reported_is_got_again_at_once(start_service) -> None:
    service = start_service()
    client = service.client()
    desc = LockDesc(b"name", ATOMIC)
    dclient.trylock(client, ex(get(client, desc)))
    service.fail_over(1)
    reinit(client)
    lock_id = get(client, desc)  # perhaps under the same id
    assert dclient.trylock(client, ex(lock_id))[0] is S.SUCCESS
    assert dclient.unlock(client, lock_id)[0] is S.SUCCESS
    assert dclient.release_lock(client, lock_id) is S.SUCCESS


def test_a_lock_of_another_client_is_not_taken_for_one_that_was_not_reported(
    start_service
) -> None:
    service = start_service()
    one, two = service.client(), service.client()
    mine, yours = get(one, LockDesc(b"mine")), get(two, LockDesc(b"yours"))
    dclient.trylock(one, ex(mine))
    dclient.trylock(two, ex(yours))
    service.fail_over(2)
    reinit(one)
    recover(two)
    new = get(two, LockDesc(b"new"))
    assert new != yours
    assert dclient.trylock(two, ex(new))[0] is S.SUCCESS
    assert dclient.unlock(one, mine)[0] is S.FAIL
    assert dclient.trylock(one, ex(get(one, LockDesc(b"mine"))))[0] is S.SUCCESS
    assert dclient.lock_extend(two, extend_ex(yours))[0] is S.SUCCESS
    assert dclient.lock_extend(two, extend_ex(new))[0] is S.SUCCESS


def test_a_lease_that_had_lapsed_when_it_was_claimed_is_lost(start_primary) -> None:
    service = start_primary()
    one, two = service.client(), service.client()
    atomic, fair, live = (service.lock(kind, one, two) for kind in (ATOMIC, FAIR, ATOMIC))
    for lock_id in (atomic, fair):
        assert dclient.trylock(one, ex(lock_id, 1))[0] is S.SUCCESS
    dclient.trylock(one, ex(live))
    service.crash()
    until(lambda: shown(one, atomic).time_out + 1 < time.time(), LONG_S)
    service.start(2)
    recover(one, two)
    # It asks only now: until then the local state stays.
    assert shown(one, atomic).token != 0
    for lock_id in (atomic, fair):
        status, state = dclient.lock_extend(one, extend_ex(lock_id))
        assert (status, state.token) == (S.FAIL, 0)
        assert dclient.trylock(two, ex(lock_id))[0] is S.SUCCESS
    assert dclient.lock_extend(one, extend_ex(live))[0] is S.SUCCESS


@pytest.mark.parametrize("verb", ["unlock", "re-entry"])
def test_a_hold_that_was_lost_says_fail_however_it_is_asked(start_service, verb: str) -> None:
    service = start_service()
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    dclient.trylock(client, ex(lock_id, 1))
    service.crash()
    until(lambda: shown(client, lock_id).time_out + 1 < time.time(), LONG_S)
    service.start(1)
    recover(client)
    if verb == "unlock":
        status, state = dclient.unlock(client, lock_id)
    else:
        status, state = dclient.trylock(client, ex(lock_id))
    assert (status, state.token) == (S.FAIL, 0)
    assert dclient.trylock(client, ex(lock_id))[0] is S.SUCCESS  # it has still got the lock


def test_leases_do_not_run_before_it_serves(start_service) -> None:
    service = start_service()
    one, two = service.client(), service.client()
    lock_id = service.lock(ATOMIC, one, two)
    dclient.trylock(one, ex(lock_id, 8))
    service.fail_over(2)
    recover(one)
    until(lambda: shown(one, lock_id).time_out + 1 < time.time(), LONG_S)
    recover(two)
    assert dclient.trylock(two, ex(lock_id))[0] is S.FAIL
    assert dclient.lock_extend(one, extend_ex(lock_id))[0] is S.SUCCESS


def test_a_lapsed_session_is_believed_on_the_word_of_the_application(
    start_primary
) -> None:
    service = start_primary(session_ttl=5)
    one, two = service.client(), service.client()
    rw, ticket = service.lock(RW, one, two), service.lock(FAIR, one, two)
    dclient.trylock(one, ex(rw))
    dclient.trylock(two, ex(ticket))
    assert dclient.trylock(one, ex(ticket))[0] is S.EAGAIN
    service.crash()
    pointer = _mirror_table.clients[one].pointer
    until(lambda: lib.dlk_client_session_left_ms(pointer) == 0, LONG_S)
    service.start(2, session_ttl=5)
    recover(one, two)
    assert dclient.trylock(two, sh(rw))[0] is S.FAIL
    assert dclient.trylock(one, ex(rw))[0] is S.ALREADY_LOCKED
    dclient.unlock(two, ticket)
    assert dclient.trylock(one, ex(ticket))[0] is S.SUCCESS


def test_of_two_who_believe_the_newer_grant_counts(start_service) -> None:
    service = start_service(session_ttl=5)
    former, present = service.client(), service.client()
    kinds = (RW, ATOMIC, FAIR)
    rw, atomic, fair = (service.lock(kind, former, present) for kind in kinds)
    dclient.trylock(former, ex(rw))
    for lock_id in (atomic, fair):
        dclient.trylock(former, ex(lock_id, 1))
    lib.dlk_client_detach(_mirror_table.clients[former].pointer)  # no heartbeat leaves any more
    for lock_id in (rw, atomic, fair):
        until(lambda one=lock_id: dclient.trylock(present, ex(one))[0] is S.SUCCESS, LONG_S)
    service.fail_over(2, session_ttl=5)
    recover(former, present)
    for lock_id in (rw, atomic, fair):
        assert shown(former, lock_id).token != 0
    assert dclient.trylock(former, ex(rw))[0] is S.FAIL  # the first call on a held rw lock asks
    for lock_id in (atomic, fair):
        assert dclient.lock_extend(former, extend_ex(lock_id))[0] is S.FAIL
        assert dclient.lock_extend(present, extend_ex(lock_id))[0] is S.SUCCESS
    assert dclient.trylock(present, ex(rw))[0] is S.ALREADY_LOCKED
    for lock_id in (rw, atomic, fair):
        assert shown(former, lock_id).token == 0


def test_the_order_of_the_claims_does_not_matter(start_service) -> None:
    service = start_service(session_ttl=5)
    former, present = service.client(), service.client()
    lock_id = service.lock(RW, former, present)
    dclient.trylock(former, sh(lock_id))
    lib.dlk_client_detach(_mirror_table.clients[former].pointer)
    until(lambda: dclient.trylock(present, ex(lock_id))[0] is S.SUCCESS, LONG_S)
    service.fail_over(2, session_ttl=5)
    recover(present, former)
    assert dclient.trylock(former, sh(lock_id))[0] is S.FAIL
    assert dclient.trylock(present, ex(lock_id))[0] is S.ALREADY_LOCKED


@pytest.mark.data_plane
def test_tickets_come_back_in_their_order(start_primary) -> None:
    service = start_primary()
    clients = [service.client() for _ in range(4)]
    lock_id = service.lock(FAIR, *clients)
    for client in clients:
        dclient.trylock(client, ex(lock_id))
    service.fail_over(4)
    recover(*reversed(clients))
    for holder, after in itertools.pairwise(clients):
        for client in clients[clients.index(after):]:
            assert dclient.trylock(client, ex(lock_id))[0] is S.EAGAIN
        assert dclient.unlock(holder, lock_id)[0] is S.SUCCESS
        for client in reversed(clients[clients.index(after) + 1:]):
            assert dclient.trylock(client, ex(lock_id))[0] is S.EAGAIN
        assert dclient.trylock(after, ex(lock_id))[0] is S.SUCCESS


def test_an_unlock_without_an_answer_does_not_come_back(start_primary) -> None:
    service = start_primary()
    one, two = service.client(), service.client()
    atomic, rw, fair = (service.lock(kind, one, two) for kind in (ATOMIC, RW, FAIR))
    for lock_id in (atomic, rw, fair):
        dclient.trylock(one, ex(lock_id))
    service.crash()
    for lock_id in (atomic, rw, fair):
        assert dclient.unlock(one, lock_id)[0] is S.BAD_RESPONSE
    service.start(2)
    recover(one, two)
    for lock_id in (atomic, rw, fair):
        assert dclient.trylock(two, ex(lock_id))[0] is S.SUCCESS
        assert dclient.unlock(one, lock_id)[0] is S.ALREADY_UNLOCKED
        assert dclient.unlock(two, lock_id)[0] is S.SUCCESS


def test_an_unlock_that_was_not_ready_is_held_and_reported(start_service) -> None:
    service = start_service()
    one, two = service.client(), service.client()
    atomic, rw, fair = (service.lock(kind, one, two) for kind in (ATOMIC, RW, FAIR))
    for lock_id in (atomic, rw, fair):
        dclient.trylock(one, ex(lock_id))
    service.fail_over(2)
    assert dclient.client_reinit(one, HOST) is S.SUCCESS
    for lock_id in (atomic, rw, fair):
        assert dclient.unlock(one, lock_id)[0] is S.NOT_READY
    assert dclient.update_all_locks(one) is S.SUCCESS
    assert dclient.client_reinit_done(one) is S.SUCCESS
    recover(two)
    assert dclient.trylock(two, ex(rw))[0] is S.FAIL
    assert dclient.trylock(one, ex(rw))[0] is S.ALREADY_LOCKED
    for lock_id in (atomic, fair):
        assert dclient.lock_extend(one, extend_ex(lock_id))[0] is S.SUCCESS


def test_a_lock_that_nobody_held_has_still_to_be_got(start_service) -> None:
    service = start_service()
    one, two = service.client(), service.client()
    lock_id = service.lock(ATOMIC, one, two)
    service.fail_over(2)
    recover(one, two)
    for client in (one, two):
        assert dclient.trylock(client, ex(lock_id))[0] is S.SUCCESS
        assert dclient.unlock(client, lock_id)[0] is S.SUCCESS
        assert dclient.release_lock(client, lock_id) is S.SUCCESS


@pytest.mark.data_plane
def test_a_waiting_lock_ends_with_the_primary(start_primary, background) -> None:
    service = start_primary(client={"lock_wait": 60})
    one, two = service.client(), service.client()
    lock_id = service.lock(ATOMIC, one, two)
    dclient.trylock(one, ex(lock_id))
    waiting = background(dclient.lock, two, ex(lock_id))
    time.sleep(0.05)
    service.fail_over(2)
    assert waiting.result(timeout=LONG_S)[0] is S.BAD_RESPONSE
    recover(one, two)
    assert dclient.unlock(one, lock_id)[0] is S.SUCCESS
    assert dclient.trylock(one, ex(lock_id))[0] is S.SUCCESS  # two's wait left nothing behind


def test_reinit_ends_an_asynchronous_operation(start_service) -> None:
    service = start_service()
    one, two = service.client(), service.client()
    lock_id = service.lock(ATOMIC, one, two)
    assert dclient.lock_request_async(one, ex(lock_id)) is S.SUCCESS
    service.fail_over(2)
    report(one)
    assert dclient.lock_result_check(one)[0] is S.NO_ASYNC
    recover(one, two)
    assert dclient.trylock(two, ex(lock_id))[0] is S.SUCCESS


@pytest.mark.data_plane
def test_objects_are_gone(start_primary) -> None:
    service = start_primary()
    one, two = service.client(), service.client()
    desc = AtomicDesc(b"object", 60)
    dclient.umo_atomic64_create(one, desc, 5)
    _, obj_id = dclient.umo_atomic64_get(one, desc)
    service.fail_over(2)
    report(one)
    assert dclient.umo_atomic64_faa(one, obj_id, 1) == (S.OBJECT_NOT_GET, None)
    recover(one, two)
    assert dclient.umo_atomic64_faa(one, obj_id, 1) == (S.OBJECT_NOT_GET, None)
    assert dclient.umo_atomic64_get(one, desc) == (S.OBJECT_NOT_CREATE, None)
    assert dclient.umo_atomic64_create(two, desc, 7)[0] is S.SUCCESS
    _, obj_id = dclient.umo_atomic64_get(one, desc)
    assert dclient.umo_atomic64_get_snapshot(one, obj_id) == (S.SUCCESS, 7)


