"""The order of checks before a call, and arguments that are missing or impossible (specification,
sections 1 and 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mirror_tools import ATOMIC, RW, S, Service, ex, extend_ex

from dlock import dclient
from dlock.types import AtomicDesc, ClientCfg, LockDesc, LockOp, LockRequest

ABSENT_CLIENT = 0x7FFFFFFF
ABSENT_LOCK = 999_999
Call = Callable[[Any], Any]

# Each call with arguments that are sound but name nothing that exists; `client` comes first.
LOCK_CALLS: dict[str, Call] = {
    "trylock": lambda client: dclient.trylock(client, ex(ABSENT_LOCK)),
    "lock": lambda client: dclient.lock(client, ex(ABSENT_LOCK)),
    "lock_extend": lambda client: dclient.lock_extend(client, extend_ex(ABSENT_LOCK)),
    "unlock": lambda client: dclient.unlock(client, ABSENT_LOCK),
    "lock_request_async": lambda client: dclient.lock_request_async(client, ex(ABSENT_LOCK)),
    "release_lock": lambda client: dclient.release_lock(client, ABSENT_LOCK),
}
BATCH_CALLS: dict[str, Call] = {
    "batch_trylock": lambda client: dclient.batch_trylock(client, [ex(ABSENT_LOCK)]),
    "batch_lock_extend": lambda client: dclient.batch_lock_extend(client, [extend_ex(1)]),
    "batch_unlock": lambda client: dclient.batch_unlock(client, [ABSENT_LOCK]),
    "batch_release_lock": lambda client: dclient.batch_release_lock(client, [ABSENT_LOCK]),
    "batch_get_lock": lambda client: dclient.batch_get_lock(client, [LockDesc(b"x")]),
}
OBJECT_CALLS: dict[str, Call] = {
    "faa": lambda client: dclient.umo_atomic64_faa(client, ABSENT_LOCK, 1),
    "cas": lambda client: dclient.umo_atomic64_cas(client, ABSENT_LOCK, 1, 2),
    "get_snapshot": lambda client: dclient.umo_atomic64_get_snapshot(client, ABSENT_LOCK),
    "release": lambda client: dclient.umo_atomic64_release(client, ABSENT_LOCK),
}
OTHER_CALLS: dict[str, Call] = {
    "get_lock": lambda client: dclient.get_lock(client, LockDesc(b"x")),
    "lock_result_check": dclient.lock_result_check,
    "create": lambda client: dclient.umo_atomic64_create(client, AtomicDesc(b"x", 1), 0),
    "get": lambda client: dclient.umo_atomic64_get(client, AtomicDesc(b"x", 1)),
    "destroy": lambda client: dclient.umo_atomic64_destroy(client, ABSENT_LOCK),
    "update_all_locks": dclient.update_all_locks,
    "client_reinit_done": dclient.client_reinit_done,
}
EINVAL_WHEN_UNKNOWN: dict[str, Call] = {
    "client_reinit": lambda client: dclient.client_reinit(client, "127.0.0.1"),
    "client_heartbeat": lambda client: dclient.client_heartbeat(client, 1),
}
EXCEPTED: dict[str, Call] = {
    "client_deinit": dclient.client_deinit,
    "get_client_debug_stats": dclient.get_client_debug_stats,
    "clear_client_debug_stats": dclient.clear_client_debug_stats,
}
NAMING_A_CLIENT = {
    **LOCK_CALLS,
    **BATCH_CALLS,
    **OBJECT_CALLS,
    **OTHER_CALLS,
    **EINVAL_WHEN_UNKNOWN,
    **EXCEPTED,
}


def status_of(answer: Any) -> S:
    return answer[0] if isinstance(answer, tuple) else answer


def test_every_call_that_names_a_client_is_here() -> None:
    naming = {
        name for name in dclient.__all__ if name not in ("client_init",) and "_lib_" not in name
    }
    assert len(naming) == len(NAMING_A_CLIENT) == 27


@pytest.mark.parametrize("name", NAMING_A_CLIENT)
def test_first_the_library(name: str) -> None:
    assert status_of(NAMING_A_CLIENT[name](ABSENT_CLIENT)) is S.CLIENTMGR_NOT_INIT


@pytest.mark.parametrize("name", NAMING_A_CLIENT)
def test_then_arguments_then_the_client(service: Service, name: str) -> None:
    call = NAMING_A_CLIENT[name]
    assert status_of(call(None)) is S.EINVAL
    unknown = S.EINVAL if name in EINVAL_WHEN_UNKNOWN else S.CLIENT_NOT_INIT
    assert status_of(call(ABSENT_CLIENT)) is unknown
    with pytest.raises(TypeError):
        call("1")


@pytest.mark.parametrize("name", LOCK_CALLS)
def test_then_the_running_operation_then_the_lock(service: Service, name: str) -> None:
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    call = LOCK_CALLS[name]
    assert status_of(call(client)) is S.LOCK_NOT_GET
    assert dclient.lock_request_async(client, ex(lock_id)) is S.SUCCESS
    running = S.LOCK_NOT_GET if name == "release_lock" else S.EASYNC
    assert status_of(call(client)) is running


@pytest.mark.parametrize("name", OBJECT_CALLS)
def test_objects_that_were_not_got(service: Service, name: str) -> None:
    assert status_of(OBJECT_CALLS[name](service.client())) is S.OBJECT_NOT_GET


def test_arguments_are_checked_before_the_client_and_the_operation(service: Service) -> None:
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    bad = LockRequest(lock_id, LockOp.UNLOCK, 5)
    assert dclient.trylock(ABSENT_CLIENT, bad) == (S.EINVAL, None)
    assert dclient.batch_trylock(ABSENT_CLIENT, []) == (S.EINVAL, None)
    assert dclient.lock_request_async(client, ex(lock_id)) is S.SUCCESS
    assert dclient.trylock(client, bad)[0] is S.EINVAL
    assert dclient.batch_unlock(client, [])[0] is S.EINVAL


def test_the_lock_is_checked_before_the_lease(start_service) -> None:
    service = start_service(max_lease=10)
    assert dclient.trylock(service.client(), ex(ABSENT_LOCK, 11)) == (S.LOCK_NOT_GET, None)


@pytest.mark.parametrize(
    "request_",
    [
        None,
        LockRequest(None, LockOp.LOCK_EXCLUSIVE, 5),  # type: ignore[arg-type]
        LockRequest(-1, LockOp.LOCK_EXCLUSIVE, 5),
        LockRequest(2**32, LockOp.LOCK_EXCLUSIVE, 5),
        LockRequest(1, None, 5),  # type: ignore[arg-type]
        LockRequest(1, LockOp.UNLOCK, 5),
        LockRequest(1, LockOp.EXTEND_LOCK_SHARED, 5),
        LockRequest(1, 5, 5),
        LockRequest(1, -1, 5),
        LockRequest(1, LockOp.LOCK_EXCLUSIVE, None),  # type: ignore[arg-type]
        LockRequest(1, LockOp.LOCK_EXCLUSIVE, -1),
        LockRequest(1, LockOp.LOCK_EXCLUSIVE, 2**32),
    ],
)
def test_impossible_requests(service: Service, request_: LockRequest | None) -> None:
    client = service.client()
    assert dclient.trylock(client, request_)[0] is S.EINVAL
    assert dclient.lock(client, request_)[0] is S.EINVAL
    stats = dclient.get_client_debug_stats(client)[1]
    assert stats.EINVAL_LOCK_OP == 2


@pytest.mark.parametrize(
    "request_",
    [
        1,
        (1, 0, 5),
        LockRequest("1", LockOp.LOCK_EXCLUSIVE, 5),  # type: ignore[arg-type]
        LockRequest(1.0, LockOp.LOCK_EXCLUSIVE, 5),  # type: ignore[arg-type]
        LockRequest(1, "LOCK_EXCLUSIVE", 5),  # type: ignore[arg-type]
        LockRequest(1, LockOp.LOCK_EXCLUSIVE, 5.0),  # type: ignore[arg-type]
        LockRequest([], LockOp.LOCK_EXCLUSIVE, 5),  # type: ignore[arg-type]
    ],
)
def test_wrong_types_are_type_errors(service: Service, request_: Any) -> None:
    client = service.client()
    service.lock(ATOMIC, client)
    for call in (dclient.trylock, dclient.lock, dclient.lock_request_async):
        with pytest.raises(TypeError):
            call(client, request_)


def test_wrong_types_elsewhere(service: Service) -> None:
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    for call, arguments in [
        (dclient.unlock, (client, float(lock_id))),
        (dclient.unlock, (float(client), lock_id)),
        (dclient.release_lock, (client, "1")),
        (dclient.get_lock, (client, b"name")),
        (dclient.get_lock, (client, LockDesc("name"))),  # type: ignore[arg-type]
        (dclient.get_lock, (client, LockDesc(b"name", "RW"))),  # type: ignore[arg-type]
        (dclient.umo_atomic64_create, (client, LockDesc(b"name"), 0)),
        (dclient.umo_atomic64_create, (client, AtomicDesc(b"name", 1), 0.5)),
        (dclient.client_heartbeat, (client, "1")),
        (dclient.client_init, (b"127.0.0.1",)),
        (dclient.client_reinit, (client, 1)),
        (dclient.dclient_lib_init, ({},)),
        (dclient.dclient_lib_init, (ClientCfg(lock_wait="5"),)),  # type: ignore[arg-type]
        (dclient.dclient_lib_init, (ClientCfg(primary_port=1.5),)),  # type: ignore[arg-type]
    ]:
        with pytest.raises(TypeError):
            call(*arguments)


def test_an_int_does_for_an_enum(service: Service) -> None:
    client = service.client()
    _, lock_id = dclient.get_lock(client, LockDesc(b"name", 1))
    assert dclient.trylock(client, LockRequest(lock_id, 1, 5))[0] is S.SUCCESS
    assert dclient.trylock(client, LockRequest(lock_id, True, 5))[0] is S.ALREADY_LOCKED
    assert dclient.trylock(client, LockRequest(lock_id, 0, 5))[0] is S.EINVAL
    assert dclient.release_lock(client, service.lock(RW, client)) is S.SUCCESS
