"""Primaries one after another: what they remember, whom they obey, who comes too late
(specification, section 7; DESIGN, section 5, in the mirror)."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from mirror_tools import (
    ATOMIC,
    FAIR,
    HOST,
    LONG_S,
    RW,
    S,
    Service,
    ex,
    extend_ex,
    get,
    line_of,
    local_state,
    recover,
    recover_all,
    reinit,
    report,
    run_python,
    sh,
    shown,
    until,
)

from dlock import _mirror_reinit, _mirror_table, dclient
from dlock._core import lib
from dlock._mirror_client import VERSIONS
from dlock.control.messages import ClientReinit
from dlock.types import LockDesc

EPOCH_SHIFT = 43  # of a token: its epoch stands above its counter


# ---- With a state directory ----------------------------------------------------------------------


def test_a_state_directory_says_who_is_waited_for(start_primary, tmp_path) -> None:
    service = start_primary(state_dir=str(tmp_path))
    one, two, gone = (service.client() for _ in range(3))
    rw, atomic = service.lock(RW, one, two), service.lock(ATOMIC, one, two)
    dclient.trylock(one, sh(rw))
    token = dclient.trylock(two, ex(atomic))[1].token
    assert dclient.client_deinit(gone) is S.SUCCESS
    service.fail_over(0, state_dir=str(tmp_path))
    assert dclient.client_init(HOST) == (S.NOT_READY, None)
    recover(one)
    assert dclient.trylock(one, ex(atomic))[0] is S.NOT_READY
    recover(two)
    assert dclient.trylock(one, ex(atomic))[0] is S.FAIL
    assert dclient.trylock(one, sh(rw))[0] is S.ALREADY_LOCKED
    assert dclient.lock_extend(two, extend_ex(atomic))[1].token == token
    newer = dclient.trylock(two, ex(service.lock(ATOMIC, two)))[1].token
    assert newer >> EPOCH_SHIFT == (token >> EPOCH_SHIFT) + 1
    service.client()


def test_a_state_directory_that_names_nobody(start_service, tmp_path) -> None:
    service = start_service(state_dir=str(tmp_path))
    assert dclient.client_deinit(service.client()) is S.SUCCESS
    service.fail_over(0, state_dir=str(tmp_path))
    service.client()


def test_a_lapsed_session_that_the_roster_lists_is_believed(start_service, tmp_path) -> None:
    service = start_service(session_ttl=5, state_dir=str(tmp_path))
    one, two = service.client(), service.client()
    lock_id = service.lock(RW, one, two)
    dclient.trylock(one, ex(lock_id))
    service.crash()
    pointer = _mirror_table.clients[one].pointer
    until(lambda: lib.dlk_client_session_left_ms(pointer) == 0, LONG_S)
    service.start(0, session_ttl=5, state_dir=str(tmp_path))
    recover(one, two)
    assert dclient.trylock(one, ex(lock_id))[0] is S.ALREADY_LOCKED
    assert dclient.trylock(two, sh(lock_id))[0] is S.FAIL


def test_a_client_that_the_roster_does_not_list(start_service, tmp_path) -> None:
    service = start_service()
    stranger = service.client()
    service.fail_over(0, state_dir=str(tmp_path / "one"))
    member = service.client()
    service.fail_over(0, state_dir=str(tmp_path / "one"))
    assert dclient.client_reinit(stranger, HOST) is S.CLIENT_REMOVED_BY_SERVER
    recover(member)


def test_who_stays_away_is_waited_for_as_long_as_he_could_believe(start_service, tmp_path) -> None:
    service = start_service(session_ttl=5, state_dir=str(tmp_path))
    here, away = service.client(), service.client()
    rw, atomic = service.lock(RW, here, away), service.lock(ATOMIC, here, away)
    dclient.trylock(away, sh(rw))
    dclient.trylock(away, ex(atomic, 2))
    service.fail_over(0, session_ttl=5, state_dir=str(tmp_path))
    recover(here)
    until(lambda: dclient.trylock(here, ex(rw))[0] is S.SUCCESS, LONG_S)
    # He does not believe any more: neither the session nor the lease runs by his own clock.
    pointer = _mirror_table.clients[away].pointer
    assert lib.dlk_client_session_left_ms(pointer) == 0
    assert shown(away, atomic).time_out <= time.time()
    # The control plane, which is asked for the lease, hears a moment later that all is ready.
    until(lambda: dclient.trylock(here, ex(atomic))[0] is S.SUCCESS, LONG_S)
    assert dclient.client_reinit(away, HOST) is S.CLIENT_REMOVED_BY_SERVER


def test_a_client_that_was_evicted_once_stays_so(start_service, tmp_path) -> None:
    service = start_service(session_ttl=5, state_dir=str(tmp_path))
    here, away = service.client(), service.client()
    lock_id = service.lock(RW, here, away)
    dclient.trylock(away, ex(lock_id))
    service.fail_over(0, session_ttl=5, state_dir=str(tmp_path))
    recover(here)
    until(lambda: dclient.trylock(here, ex(lock_id))[0] is S.SUCCESS, LONG_S)
    service.fail_over(0, session_ttl=5, state_dir=str(tmp_path))
    assert dclient.client_reinit(away, HOST) is S.CLIENT_REMOVED_BY_SERVER
    recover(here)
    assert dclient.trylock(here, ex(lock_id))[0] is S.ALREADY_LOCKED


# ---- Epochs --------------------------------------------------------------------------------------


def test_a_primary_of_the_past_is_not_obeyed(start_service, tmp_path) -> None:
    service = start_service(state_dir=str(tmp_path))
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    dclient.trylock(client, ex(lock_id))
    for _ in range(2):
        service.fail_over(1)
        recover(client)
    before = local_state(client)
    service.fail_over(0, state_dir=str(tmp_path))  # it knows the client, but not the two others
    assert dclient.client_reinit(client, HOST) is S.NOT_READY
    assert local_state(client) == before
    service.fail_over(1)
    recover(client)
    assert dclient.lock_extend(client, extend_ex(lock_id))[0] is S.SUCCESS


def test_a_client_looks_at_the_epoch_itself(start_service, tmp_path, monkeypatch) -> None:
    service = start_service(state_dir=str(tmp_path))
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    dclient.trylock(client, ex(lock_id))
    for _ in range(2):
        service.fail_over(1)
        recover(client)
    service.fail_over(0, state_dir=str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(_mirror_reinit, "_request", lambda one: ClientReinit(
            *VERSIONS, one.id, one.secret, 0, 0, 0, {}))  # it shows the server nothing
        assert dclient.client_reinit(client, HOST) is S.NOT_READY
    service.fail_over(1)
    recover(client)
    assert dclient.lock_extend(client, extend_ex(lock_id))[0] is S.SUCCESS


def test_the_epoch_is_above_what_any_client_has_seen(start_service) -> None:
    service = start_service()
    old, young = service.client(), service.client()
    for _ in range(3):
        service.fail_over(1)
        recover(old)
    service.fail_over(2)
    recover(young)  # it has seen the first epoch only
    recover(old)  # and so this primary begins anew, which to young is like a crash
    assert dclient.client_heartbeat(old, 20) is S.NOT_READY
    assert dclient.client_heartbeat(young, 20) is S.BAD_RESPONSE
    recover_all(old, young)
    lock_id = service.lock(ATOMIC, young)
    assert dclient.trylock(young, ex(lock_id))[1].token >> EPOCH_SHIFT >= 5


# ---- Clients -------------------------------------------------------------------------------------

DYING_CLIENT = """
import sys
from dlock import dclient
from dlock.types import ClientCfg, LockDesc, LockOp, LockRequest

dclient.dclient_lib_init(ClientCfg(primary_port=int(sys.argv[1])))
me = dclient.client_init("127.0.0.1")[1]
for name, kind in ((b"rw", 1), (b"atomic", 0), (b"fair", 2)):
    lock = dclient.get_lock(me, LockDesc(name, kind))[1]
    print(dclient.trylock(me, LockRequest(lock, LockOp.LOCK_EXCLUSIVE, 60))[0].name, flush=True)
sys.stdin.read()
"""


def test_a_client_that_died_with_the_primary(start_primary) -> None:
    service = start_primary(session_ttl=5)
    here = service.client()
    dying = run_python(DYING_CLIENT, service.port)
    try:
        assert [line_of(dying) for _ in range(3)] == ["SUCCESS"] * 3
        descs = [LockDesc(b"rw", RW), LockDesc(b"atomic", ATOMIC), LockDesc(b"fair", FAIR)]
        locks = [get(here, desc) for desc in descs]
        service.crash()
    finally:
        dying.kill()
        dying.wait()
    service.start(2, session_ttl=5, recovery_deadline=8)
    recover(here)
    for lock_id in locks:  # nobody claims them, and the deadline is the application's word
        until(lambda one=lock_id: dclient.trylock(here, ex(one))[0] is S.SUCCESS, LONG_S)


def hold_some(service: Service, client: int, count: int) -> list[int]:
    locks = [service.lock(ATOMIC, client) for _ in range(count)]
    for lock_id in locks:
        assert dclient.trylock(client, ex(lock_id))[0] is S.SUCCESS
    return locks


def test_many_clients_come_back_at_once(start_primary) -> None:
    service = start_primary()
    clients = [service.client() for _ in range(24)]
    shared = service.lock(RW, *clients)
    held = {client: hold_some(service, client, 40) for client in clients}
    for client in clients:
        dclient.trylock(client, sh(shared))
    service.fail_over(len(clients))
    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(recover, clients))
    for client, locks in held.items():
        for lock_id in locks:
            assert dclient.lock_extend(client, extend_ex(lock_id))[0] is S.SUCCESS
        assert dclient.trylock(client, sh(shared))[0] is S.ALREADY_LOCKED
    assert dclient.trylock(service.client(), ex(locks[0]))[0] is S.LOCK_NOT_GET


def test_a_network_error_at_the_new_primary(start_service) -> None:
    service = start_service()
    one, two = service.client(), service.client()
    lock_id = service.lock(ATOMIC, one, two)
    dclient.trylock(one, ex(lock_id))
    service.fail_over(2)
    report(one)
    lib.dlk_client_detach(_mirror_table.clients[one].pointer)
    assert dclient.trylock(one, ex(lock_id))[0] is S.BAD_RESPONSE
    recover(one, two)
    assert dclient.lock_extend(one, extend_ex(lock_id))[0] is S.SUCCESS
    # And again when it serves: nothing has to be reported any more.
    lib.dlk_client_detach(_mirror_table.clients[one].pointer)
    assert dclient.unlock(one, lock_id)[0] is S.BAD_RESPONSE
    reinit(one)
    assert dclient.unlock(one, lock_id)[0] is S.ALREADY_UNLOCKED
    assert dclient.trylock(two, ex(lock_id))[0] is S.SUCCESS
