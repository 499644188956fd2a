"""Re-initialisation against a living server (specification, section 7.3)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import time
from typing import Any

import pytest
from mirror_tools import (
    ATOMIC,
    FAIR,
    HOST,
    RW,
    S,
    Service,
    ex,
    extend_ex,
    get,
    line_of,
    reinit,
    run_python,
    sh,
    start_server,
    until,
)
from test_mirror_order import EXCEPTED, NAMING_A_CLIENT, status_of

from dlock import _mirror_reinit, _mirror_table, dclient, dserver
from dlock._core import lib
from dlock.types import AtomicDesc, LockDesc


def break_data_links(service: Service) -> None:
    """Cuts the data connections, as a network fault would: both ends go on. They are those of
    which both ends are in this process; what others have opened in it, MPI say, stays."""
    with contextlib.ExitStack() as stack:
        found: dict[tuple[Any, Any], socket.socket] = {}
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    one = stack.enter_context(socket.socket(fileno=os.dup(int(name))))
                    if one.family == socket.AF_INET:
                        found[one.getsockname(), one.getpeername()] = one
        for (near, far), one in found.items():
            if (far, near) in found and service.port not in (near[1], far[1]):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)


@pytest.mark.data_plane
def test_everything_is_as_before(service: Service) -> None:
    one, two = service.client(), service.client()
    atomic, rw, fair, ticket = (service.lock(kind, one, two) for kind in (ATOMIC, RW, FAIR, FAIR))
    _, obj_id = dclient.umo_atomic64_create(one, AtomicDesc(b"object", 60), 5)
    dclient.umo_atomic64_get(one, AtomicDesc(b"object", 60))
    held = [dclient.trylock(one, request)[1] for request in (ex(atomic), sh(rw), ex(fair))]
    dclient.trylock(one, ex(atomic))
    dclient.trylock(two, ex(ticket))
    assert dclient.trylock(one, ex(ticket))[0] is S.EAGAIN
    reinit(one)
    for lock_id, state in zip((atomic, rw, fair), held, strict=True):
        status, now = dclient.trylock(one, ex(lock_id, 0))
        assert (status, now.token) == (S.SUCCESS, state.token)
    assert dclient.lock_extend(one, extend_ex(atomic))[0] is S.SUCCESS
    assert dclient.unlock(one, atomic)[0] is S.ALREADY_LOCKED  # the count is kept
    assert dclient.unlock(one, atomic)[0] is S.SUCCESS
    assert dclient.trylock(one, sh(rw))[0] is S.ALREADY_LOCKED  # asked, and still held
    assert dclient.unlock(one, rw)[0] is S.ALREADY_LOCKED
    assert dclient.unlock(one, rw)[0] is S.SUCCESS
    assert dclient.unlock(one, fair)[0] is S.SUCCESS
    dclient.unlock(two, ticket)
    assert dclient.trylock(one, ex(ticket))[0] is S.SUCCESS  # the place in the queue too
    assert dclient.umo_atomic64_faa(one, obj_id, 1) == (S.SUCCESS, 5)


def test_refusals(service: Service) -> None:
    client = service.client()
    assert dclient.client_reinit(client, None) is S.EINVAL
    assert dclient.client_reinit(client ^ 1, HOST) is S.EINVAL
    assert dclient.client_reinit_done(client) is S.ERROR
    reinit(client)
    assert dclient.client_reinit_done(client) is S.ERROR
    dserver.server_stop(service.server_id)
    assert dclient.client_reinit(client, HOST) is S.NOT_READY


def test_after_a_broken_link_it_goes_on(service: Service) -> None:
    client = service.client()
    lock_id, free = service.lock(ATOMIC, client), service.lock(ATOMIC, client)
    token = dclient.trylock(client, ex(lock_id))[1].token
    break_data_links(service)
    assert dclient.trylock(client, ex(free))[0] is S.BAD_RESPONSE
    reinit(client)
    assert dclient.lock_extend(client, extend_ex(lock_id))[1].token == token
    assert dclient.trylock(client, ex(free))[0] is S.SUCCESS


def test_an_unlock_without_an_answer_is_sent_again(service: Service) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(ATOMIC, one, two)
    dclient.trylock(one, ex(lock_id))
    break_data_links(service)
    assert dclient.unlock(one, lock_id)[0] is S.BAD_RESPONSE
    reinit(one)
    assert dclient.unlock(one, lock_id)[0] is S.ALREADY_UNLOCKED
    reinit(two)
    assert dclient.trylock(two, ex(lock_id))[0] is S.SUCCESS


@pytest.mark.data_plane
def test_a_grant_that_the_client_never_heard_of_is_given_back(far_service) -> None:
    service = far_service(reply_timeout=3)
    one, two = service.client(), service.client()
    lock_id = service.lock(ATOMIC, one, two)
    service.stop_in_its_tracks()
    assert dclient.trylock(one, ex(lock_id))[0] is S.BAD_RESPONSE
    service.go_on()
    reinit(one)
    assert dclient.trylock(two, ex(lock_id))[0] is S.SUCCESS
    assert dclient.trylock(one, ex(lock_id, 0))[1].token == 0


@pytest.mark.data_plane
def test_an_older_connection_is_superseded(service: Service, background) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(ATOMIC, one, two)
    dclient.trylock(one, ex(lock_id))
    waiting = background(dclient.lock, two, ex(lock_id))
    time.sleep(0.05)
    assert dclient.client_reinit(two, HOST) is S.SUCCESS
    assert waiting.result(timeout=30)[0] is S.BAD_RESPONSE
    assert dclient.client_reinit_done(two) is S.SUCCESS
    dclient.unlock(one, lock_id)
    assert dclient.trylock(one, ex(lock_id))[0] is S.SUCCESS  # two's wait left nothing behind


@pytest.mark.data_plane
def test_control_calls_work_after_reinit(service: Service) -> None:
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    reinit(client)
    get(client, LockDesc(b"new"))
    assert dclient.release_lock(client, lock_id) is S.SUCCESS
    assert dclient.client_heartbeat(client, 30) is S.SUCCESS
    assert dclient.client_deinit(client) is S.SUCCESS


def test_update_all_locks_against_a_living_server(service: Service) -> None:
    client = service.client()
    descs = [LockDesc(b"u%d" % index, index % 3) for index in range(100)]
    locks = [get(client, desc) for desc in descs]
    for lock_id in locks[:70]:
        dclient.trylock(client, ex(lock_id))
    assert dclient.client_reinit(client, HOST) is S.SUCCESS
    assert dclient.update_all_locks(client) is S.SUCCESS
    assert dclient.client_reinit_done(client) is S.SUCCESS
    for lock_id in locks[:70]:
        assert dclient.unlock(client, lock_id)[0] is S.SUCCESS


def test_update_all_locks_without_locks_and_without_a_server(service: Service) -> None:
    client = service.client()
    assert dclient.update_all_locks(client) is S.SUCCESS
    service.lock(ATOMIC, client)
    dserver.server_stop(service.server_id)
    assert dclient.update_all_locks(client) is S.BAD_RESPONSE


def test_a_get_lock_without_an_answer_can_be_repeated(far_service) -> None:
    service = far_service(reply_timeout=3)
    client = service.client()
    desc = LockDesc(b"name", ATOMIC)
    service.stop_in_its_tracks()
    assert dclient.get_lock(client, desc) == (S.BAD_RESPONSE, None)
    service.go_on()
    reinit(client)
    lock_id = get(client, desc)
    assert dclient.get_lock(client, desc) == (S.ERROR, None)
    assert dclient.trylock(client, ex(lock_id))[0] is S.SUCCESS


def test_a_release_without_an_answer_can_be_repeated(far_service) -> None:
    service = far_service(reply_timeout=3)
    client = service.client()
    desc = LockDesc(b"name", ATOMIC)
    lock_id = get(client, desc)
    service.stop_in_its_tracks()
    assert dclient.release_lock(client, lock_id) is S.BAD_RESPONSE
    service.go_on()
    reinit(client)
    assert dclient.release_lock(client, lock_id) in (S.SUCCESS, S.LOCK_NOT_GET)
    assert dclient.release_lock(client, lock_id) is S.LOCK_NOT_GET
    assert dclient.trylock(client, ex(get(client, desc)))[0] is S.SUCCESS


def test_a_primary_that_was_started_anew(start_service, tmp_path) -> None:
    service = start_service(session_ttl=5, state_dir=str(tmp_path))
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    held = dclient.trylock(client, ex(lock_id, 1))[1]
    assert dserver.server_stop(service.server_id) is S.SUCCESS
    start_server(service.port, session_ttl=5, state_dir=str(tmp_path))
    # It grants nothing while clients of its predecessor could still believe in their holds.
    assert dclient.client_init(HOST) == (S.NOT_READY, None)
    assert dclient.trylock(client, ex(lock_id, 0)) == (S.SUCCESS, held)
    until(lambda: dclient.client_init(HOST)[0] is S.SUCCESS)
    # Then whoever has not come back has been evicted.
    assert dclient.client_reinit(client, HOST) is S.CLIENT_REMOVED_BY_SERVER
    assert dclient.trylock(client, ex(lock_id))[0] is S.CLIENT_REMOVED_BY_SERVER
    assert dclient.client_deinit(client) is S.SUCCESS


@pytest.mark.data_plane
def test_the_first_call_on_a_held_rw_lock_asks_the_server(service: Service) -> None:
    client = service.client()
    asked, not_asked = service.lock(RW, client), service.lock(RW, client)
    dclient.trylock(client, sh(asked))
    dclient.trylock(client, sh(not_asked))
    reinit(client)
    assert dclient.trylock(client, sh(not_asked))[0] is S.ALREADY_LOCKED
    dserver.server_stop(service.server_id)
    assert dclient.trylock(client, sh(not_asked))[0] is S.ALREADY_LOCKED
    assert dclient.trylock(client, sh(asked))[0] is S.BAD_RESPONSE
    assert dclient.unlock(client, not_asked)[0] is S.ALREADY_LOCKED  # counted: never asks


def test_an_asynchronous_grant_that_nobody_checked_is_given_back(service: Service) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(ATOMIC, one, two)
    assert dclient.lock_request_async(one, ex(lock_id)) is S.SUCCESS
    until(lambda: dclient.trylock(two, ex(lock_id))[0] is S.FAIL)
    reinit(one)
    assert dclient.lock_result_check(one)[0] is S.NO_ASYNC
    assert dclient.trylock(one, ex(lock_id, 0))[1].token == 0
    assert dclient.trylock(two, ex(lock_id))[0] is S.SUCCESS


# ---- The session had ended -----------------------------------------------------------------------


def sessions(service: Service) -> int:
    """How many the server has."""
    return dserver._library.servers[service.server_id].stats()["clients"]


def outlive_the_session(service: Service, client: int) -> None:
    """Nothing of this client arrives any more, until the server has ended its session."""
    there = sessions(service)
    lib.dlk_client_detach(_mirror_table.clients[client].pointer)
    until(lambda: sessions(service) == there - 1, 20)


@pytest.mark.data_plane
def test_client_reinit_tells_that_the_session_had_ended(start_service) -> None:
    service = start_service(session_ttl=4)
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    dclient.trylock(client, ex(lock_id))
    outlive_the_session(service, client)
    assert dclient.lock_extend(client, extend_ex(lock_id))[0] is S.BAD_RESPONSE
    assert dclient.client_reinit(client, HOST) is S.CLIENT_REMOVED_BY_SERVER
    for name, call in NAMING_A_CLIENT.items():
        if name not in EXCEPTED:
            assert status_of(call(client)) is S.CLIENT_REMOVED_BY_SERVER, name
    assert dclient.client_deinit(client) is S.SUCCESS


STOPPED_CLIENT = """
import sys
from dlock import dclient
from dlock.types import ClientCfg, LockDesc, LockOp, LockRequest

dclient.dclient_lib_init(ClientCfg(primary_port=int(sys.argv[1])))
me = dclient.client_init("127.0.0.1")[1]
lock = dclient.get_lock(me, LockDesc(b"name"))[1]
request = LockRequest(lock, LockOp.LOCK_EXCLUSIVE, 60)
print(dclient.trylock(me, request)[0].name, flush=True)
sys.stdin.readline()
print(dclient.trylock(me, request)[0].name, flush=True)
print(dclient.client_reinit(me, "127.0.0.1").name, flush=True)
print(dclient.client_init("127.0.0.1")[0].name, flush=True)
"""


def test_a_client_that_was_stopped_for_too_long(start_service) -> None:
    service = start_service(session_ttl=4)
    process = run_python(STOPPED_CLIENT, service.port)
    try:
        assert line_of(process) == "SUCCESS"
        process.send_signal(signal.SIGSTOP)
        until(lambda: sessions(service) == 0, 20)
        process.send_signal(signal.SIGCONT)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        # The call itself says so if its link still stood, else client_reinit does.
        assert line_of(process) in ("CLIENT_REMOVED_BY_SERVER", "BAD_RESPONSE")
        assert line_of(process) == "CLIENT_REMOVED_BY_SERVER"
        assert line_of(process) == "SUCCESS"
    finally:
        process.kill()
        process.wait()


def test_the_session_ends_in_the_middle_of_a_re_initialisation(start_service) -> None:
    service = start_service(session_ttl=4)
    client = service.client()
    service.lock(ATOMIC, client)
    assert dclient.client_reinit(client, HOST) is S.SUCCESS
    outlive_the_session(service, client)
    # Its links are closed, if this is not quicker.
    gone = (S.BAD_RESPONSE, S.CLIENT_REMOVED_BY_SERVER)
    assert dclient.client_reinit_done(client) in gone
    assert dclient.client_reinit(client, HOST) is S.CLIENT_REMOVED_BY_SERVER
    assert dclient.client_reinit_done(client) is S.CLIENT_REMOVED_BY_SERVER
    assert dclient.update_all_locks(client) is S.CLIENT_REMOVED_BY_SERVER


# ---- The statuses of a re-initialisation ---------------------------------------------------------


def test_client_reinit_done_without_an_answer(service: Service) -> None:
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    dclient.trylock(client, ex(lock_id))
    assert dclient.client_reinit(client, HOST) is S.SUCCESS
    link = _mirror_table.clients[client].link
    assert link is not None
    link.close()
    assert dclient.client_reinit_done(client) is S.BAD_RESPONSE
    reinit(client)
    assert dclient.unlock(client, lock_id)[0] is S.SUCCESS


def test_versions_are_negotiated_again(service: Service, monkeypatch) -> None:
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    dclient.trylock(client, ex(lock_id))
    with monkeypatch.context() as patch:
        patch.setattr(_mirror_reinit, "VERSIONS", (77, 78))
        assert dclient.client_reinit(client, HOST) is S.PROTO_VERSION_NEGOTIATION_FAIL
    assert dclient.lock_extend(client, extend_ex(lock_id))[0] is S.SUCCESS  # as it was
    reinit(client)
    assert dclient.lock_extend(client, extend_ex(lock_id))[0] is S.SUCCESS


def test_a_heartbeat_renews_while_the_data_link_is_down(service: Service) -> None:
    client = service.client()
    pointer = _mirror_table.clients[client].pointer
    lib.dlk_client_detach(pointer)
    whole_ms = lib.dlk_client_session_left_ms(pointer)
    until(lambda: lib.dlk_client_session_left_ms(pointer) < whole_ms - 3000)
    left_ms = lib.dlk_client_session_left_ms(pointer)
    assert dclient.client_heartbeat(client, 20) is S.SUCCESS
    assert lib.dlk_client_session_left_ms(pointer) > left_ms  # left alone it only shrinks


def test_reporting_again_after_all_was_reported(service: Service) -> None:
    client = service.client()
    locks = [service.lock(ATOMIC, client) for _ in range(40)]
    assert dclient.update_all_locks(client) is S.SUCCESS
    reinit(client)
    assert dclient.update_all_locks(client) is S.SUCCESS
    assert {dclient.trylock(client, ex(lock_id))[0] for lock_id in locks} == {S.SUCCESS}
