"""Asynchronous lock operations (specification, section 5)."""

from __future__ import annotations

import time
from typing import Any

import pytest
from mirror_tools import ATOMIC, FAIR, RW, S, Service, ex, extend_ex, sh, until

from dlock import dclient
from dlock.types import AtomicDesc, AtomicState, LockDesc, LockOp, LockRequest


def result_of(client: int) -> tuple[S, Any]:
    answers: list[tuple[S, Any]] = []

    def ended() -> bool:
        answers.append(dclient.lock_result_check(client))
        return answers[-1][0] is not S.ASYNC_AGAIN

    until(ended)
    return answers[-1]


@pytest.mark.data_plane
def test_each_operation_says_what_the_synchronous_call_would(service: Service) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(ATOMIC, one, two)
    steps = [
        (one, ex(lock_id), S.SUCCESS),
        (one, ex(lock_id), S.ALREADY_LOCKED),
        (two, ex(lock_id), S.FAIL),
        (one, extend_ex(lock_id, 100), S.SUCCESS),
    ]
    for client, request, expected in steps:
        assert dclient.lock_request_async(client, request) is S.SUCCESS
        assert result_of(client)[0] is expected
        assert dclient.lock_result_check(client) == (S.NO_ASYNC, None)
    assert dclient.unlock(one, lock_id)[0] is S.ALREADY_LOCKED
    assert dclient.lock_request_async(one, LockRequest(lock_id, LockOp.UNLOCK)) is S.SUCCESS
    status, state = result_of(one)
    assert (status, state.token) == (S.SUCCESS, 0)
    assert dclient.trylock(two, ex(lock_id))[0] is S.SUCCESS


def test_the_state_comes_with_the_result(service: Service) -> None:
    client = service.client()
    lock_id = service.lock(FAIR, client)
    assert dclient.lock_request_async(client, sh(lock_id)) is S.SUCCESS
    status, state = result_of(client)
    assert (status, state.rflag, state.rms) == (S.SUCCESS, 1, 1)
    assert state.token > 0


@pytest.mark.data_plane
def test_it_never_waits_at_the_server(service: Service) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(FAIR, one, two)
    dclient.trylock(one, ex(lock_id))
    assert dclient.lock_request_async(two, ex(lock_id)) is S.SUCCESS
    assert result_of(two)[0] is S.EAGAIN
    dclient.unlock(one, lock_id)
    assert dclient.lock_request_async(two, ex(lock_id)) is S.SUCCESS
    assert result_of(two)[0] is S.SUCCESS


@pytest.mark.data_plane
def test_while_it_runs_other_calls_are_refused(service: Service) -> None:
    client = service.client()
    used, other = service.lock(ATOMIC, client), service.lock(ATOMIC, client)
    _, obj_id = dclient.umo_atomic64_create(client, AtomicDesc(b"object", 60), 7)
    assert dclient.lock_request_async(client, ex(used)) is S.SUCCESS
    time.sleep(0.05)  # the answer is there, but it was not asked for
    for status in (
        dclient.lock_request_async(client, ex(other)),
        dclient.trylock(client, ex(other))[0],
        dclient.lock(client, ex(other))[0],
        dclient.lock_extend(client, extend_ex(other))[0],
        dclient.unlock(client, other)[0],
        dclient.batch_trylock(client, [ex(other)])[0],
        dclient.batch_lock_extend(client, [extend_ex(other)])[0],
        dclient.batch_unlock(client, [other])[0],
        dclient.umo_atomic64_faa(client, obj_id, 1)[0],
        dclient.umo_atomic64_cas(client, obj_id, 7, 8)[0],
        dclient.umo_atomic64_get_snapshot(client, obj_id)[0],
        dclient.release_lock(client, used),
    ):
        assert status is S.EASYNC
    assert dclient.batch_release_lock(client, [used, other]) == (
        S.SUCCESS,
        [S.EASYNC, S.SUCCESS],
    )
    assert dclient.get_lock(client, LockDesc(b"meanwhile"))[0] is S.SUCCESS
    assert dclient.batch_get_lock(client, [LockDesc(b"meanwhile 2")])[0] is S.SUCCESS
    assert dclient.umo_atomic64_get(client, AtomicDesc(b"object", 60))[0] is S.SUCCESS
    assert dclient.umo_atomic64_release(client, obj_id) is S.SUCCESS
    assert dclient.umo_atomic64_destroy(client, obj_id) is S.SUCCESS
    assert dclient.client_heartbeat(client, 30) is S.SUCCESS
    assert result_of(client)[0] is S.SUCCESS
    assert dclient.unlock(client, used)[0] is S.SUCCESS


def test_what_the_client_decides_alone_is_said_at_once(service: Service) -> None:
    one, two = service.client(), service.client()
    atomic, rw, fair = (service.lock(kind, one, two) for kind in (ATOMIC, RW, FAIR))
    dclient.trylock(two, ex(fair))
    dclient.trylock(one, ex(fair))
    dclient.trylock(one, sh(rw))
    for request, expected in (
        (None, S.EINVAL),
        (ex(atomic, 0), S.EINVAL),
        (sh(atomic, 0), S.EINVAL),
        (LockRequest(atomic, 9, 5), S.EINVAL),
        (sh(atomic), S.EINVAL),
        (extend_ex(atomic), S.EINVAL),
        (extend_ex(rw), S.EINVAL),
        (ex(999_999), S.LOCK_NOT_GET),
        (ex(atomic, 100_000), S.EINVAL),
        (sh(fair), S.ETICKET),
        (LockRequest(atomic, LockOp.UNLOCK), S.ALREADY_UNLOCKED),
        (sh(rw), S.ALREADY_LOCKED),
        (LockRequest(rw, LockOp.UNLOCK), S.ALREADY_LOCKED),
    ):
        assert dclient.lock_request_async(one, request) is expected
        assert dclient.lock_result_check(one) == (S.NO_ASYNC, None)


@pytest.mark.data_plane
def test_reinit_ends_a_running_one(service: Service) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(ATOMIC, one, two)
    assert dclient.lock_request_async(one, ex(lock_id)) is S.SUCCESS
    assert dclient.client_reinit(one, "127.0.0.1") is S.SUCCESS
    assert dclient.lock_result_check(one)[0] is S.NO_ASYNC
    assert dclient.client_reinit_done(one) is S.SUCCESS
    assert dclient.trylock(two, ex(lock_id))[0] is S.SUCCESS  # the grant was given back


def test_a_broken_link_is_bad_response(service: Service) -> None:
    from dlock import dserver

    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    dserver.server_stop(service.server_id)
    status = dclient.lock_request_async(client, ex(lock_id))
    if status is S.SUCCESS:
        status = result_of(client)[0]
    assert status is S.BAD_RESPONSE
    assert dclient.lock_result_check(client)[0] is S.NO_ASYNC


@pytest.mark.parametrize(
    ("reply_timeout", "op"), [(3, LockOp.LOCK_EXCLUSIVE), (30, LockOp.UNLOCK)]
)
def test_etimeout_after_5_s_whatever_reply_timeout_is(
    far_service, reply_timeout: float, op: LockOp
) -> None:
    service = far_service(reply_timeout=reply_timeout)
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    if op is LockOp.UNLOCK:
        assert dclient.trylock(client, ex(lock_id))[0] is S.SUCCESS
    service.stop_in_its_tracks()
    began = time.monotonic()
    assert dclient.lock_request_async(client, LockRequest(lock_id, op, 60)) is S.SUCCESS
    assert dclient.lock_result_check(client)[0] is S.ASYNC_AGAIN
    assert result_of(client) == (S.ETIMEOUT, AtomicState())
    assert time.monotonic() - began >= 4.9
    assert dclient.lock_result_check(client)[0] is S.NO_ASYNC
    assert dclient.unlock(client, lock_id)[0] is S.ALREADY_UNLOCKED  # as after BAD_RESPONSE
    service.go_on()
