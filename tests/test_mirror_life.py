"""Life cycle, statistics and limits (specification, sections 2 and 4)."""

from __future__ import annotations

import dataclasses
import logging
import time

import pytest
from mirror_tools import (
    ATOMIC,
    FAIR,
    RW,
    S,
    Service,
    client_cfg,
    ex,
    extend_ex,
    free_port,
    get,
    sh,
    until,
)

from dlock import _mirror_table, dclient, dserver
from dlock.types import ClientCfg, DebugStats, LockDesc, SslCfg


@pytest.fixture(autouse=True)
def _library_is_closed():
    yield
    dclient.dclient_lib_deinit()
    dserver.dserver_lib_deinit()


# ---- library -------------------------------------------------------------------------------------


def test_library_init() -> None:
    assert dclient.dclient_lib_init(None) is S.EINVAL
    assert dclient.dclient_lib_init(ClientCfg()) is S.SUCCESS
    assert dclient.dclient_lib_init(ClientCfg()) is S.ERROR
    assert dclient.dclient_lib_init(None) is S.EINVAL
    assert dclient.dclient_lib_deinit() is S.SUCCESS
    assert dclient.dclient_lib_init(ClientCfg()) is S.SUCCESS


@pytest.mark.parametrize(
    "cfg",
    [
        ClientCfg(primary_port=65536),
        ClientCfg(tp_mode=2),
        ClientCfg(wait_mode="sleep"),
        ClientCfg(lock_wait=-1),
        ClientCfg(lock_wait=None),  # type: ignore[arg-type]
        ClientCfg(reply_timeout=0),
        ClientCfg(reply_timeout=1e9),
        ClientCfg(reply_timeout=float("nan")),
    ],
)
def test_impossible_configurations(cfg: ClientCfg) -> None:
    assert dclient.dclient_lib_init(cfg) is S.EINVAL


def test_tls_is_refused_with_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert dclient.dclient_lib_init(ClientCfg(ssl=SslCfg(ssl_enable=True))) is S.ERROR
    assert "TLS" in caplog.text
    full = SslCfg(False, "ca", "crl", "cert", "key", print, print, print)
    assert dclient.dclient_lib_init(ClientCfg(ssl=full)) is S.SUCCESS


@pytest.mark.parametrize(
    ("configured", "environment", "mode"),
    [
        ("adaptive", None, "adaptive"),
        ("adaptive", "poll", "poll"),
        ("adaptive", "", "adaptive"),
        ("block", "poll", "block"),
    ],
)
def test_wait_mode(monkeypatch: pytest.MonkeyPatch, configured, environment, mode) -> None:
    from dlock._mirror_life import WAIT_MODES

    monkeypatch.delenv("DLOCK_WAIT", raising=False)
    if environment is not None:
        monkeypatch.setenv("DLOCK_WAIT", environment)
    assert dclient.dclient_lib_init(ClientCfg(wait_mode=configured)) is S.SUCCESS
    settings = _mirror_table.settings()
    assert settings is not None
    assert settings.wait_mode == WAIT_MODES[mode]


@pytest.mark.parametrize("mode", ["block", "adaptive", "poll"])
@pytest.mark.data_plane
def test_each_wait_mode_locks(start_service, mode: str) -> None:
    service = start_service(client={"wait_mode": mode})
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    assert dclient.lock(client, ex(lock_id))[0] is S.SUCCESS
    assert dclient.unlock(client, lock_id)[0] is S.SUCCESS


# ---- clients -------------------------------------------------------------------------------------


def test_client_ids_are_unique_and_in_range(service: Service) -> None:
    clients = {service.client() for _ in range(8)}
    assert len(clients) == 8
    assert all(1 <= client <= 0x7FFFFFFF for client in clients)


def test_client_init_refusals() -> None:
    assert dclient.client_init("127.0.0.1") == (S.CLIENTMGR_NOT_INIT, None)
    assert dclient.dclient_lib_init(client_cfg(free_port(), reply_timeout=1)) is S.SUCCESS
    assert dclient.client_init(None) == (S.EINVAL, None)
    assert dclient.client_init("") == (S.EINVAL, None)
    assert dclient.client_init("127.0.0.1") == (S.BAD_RESPONSE, None)


@pytest.mark.data_plane
def test_a_process_has_32_clients(service: Service) -> None:
    clients = [service.client() for _ in range(32)]
    assert dclient.client_init("127.0.0.1") == (S.ERROR, None)
    assert dclient.client_deinit(clients[0]) is S.SUCCESS
    service.client()
    assert dclient.client_init("127.0.0.1") == (S.ERROR, None)


def test_max_clients_of_a_server(start_service) -> None:
    service = start_service(max_clients=2)
    one, _ = service.client(), service.client()
    assert dclient.client_init("127.0.0.1") == (S.SERVER_NO_RESOURCE, None)
    lock_id = service.lock(ATOMIC, one)
    assert dclient.trylock(one, ex(lock_id))[0] is S.SUCCESS  # still serving
    assert dclient.client_deinit(one) is S.SUCCESS
    service.client()


def test_max_locks_of_a_server(start_service) -> None:
    service = start_service(max_locks=3)
    one, two = service.client(), service.client()
    locks = [service.lock(ATOMIC, one) for _ in range(3)]
    assert dclient.get_lock(two, LockDesc(b"x")) == (S.SERVER_NO_RESOURCE, None)
    assert dclient.batch_get_lock(two, [LockDesc(b"x")]) == (S.SUCCESS, [-1])
    assert dclient.trylock(one, ex(locks[0]))[0] is S.SUCCESS  # still serving
    assert dclient.release_lock(one, locks[1]) is S.SUCCESS
    get(two, LockDesc(b"x"))


def test_client_deinit(service: Service) -> None:
    client = service.client()
    assert dclient.client_deinit(client) is S.SUCCESS
    assert dclient.client_deinit(client) is S.CLIENT_NOT_INIT
    assert dclient.trylock(client, ex(1)) == (S.CLIENT_NOT_INIT, None)
    assert dclient.get_client_debug_stats(client) == (S.CLIENT_NOT_INIT, None)


def test_client_deinit_without_a_server(start_service) -> None:
    service = start_service(client={"reply_timeout": 1})
    client = service.client()
    dserver.server_stop(service.server_id)
    assert dclient.client_deinit(client) is S.BAD_RESPONSE
    assert dclient.client_deinit(client) is S.CLIENT_NOT_INIT  # gone here all the same


@pytest.mark.data_plane
def test_client_deinit_ends_calls_that_wait(service: Service, background) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(ATOMIC, one, two)
    dclient.trylock(one, ex(lock_id))
    waiting = background(dclient.lock, two, ex(lock_id))
    time.sleep(0.05)
    assert dclient.client_deinit(two) is S.SUCCESS
    assert waiting.result(timeout=30)[0] in (S.BAD_RESPONSE, S.CLIENT_REMOVED_BY_SERVER)


def test_library_deinit_lets_the_clients_leave(service: Service) -> None:
    one = service.client()
    desc = LockDesc(b"name", ATOMIC)
    dclient.trylock(one, ex(get(one, desc)))
    assert dclient.dclient_lib_deinit() is S.SUCCESS
    assert dclient.trylock(one, ex(1))[0] is S.CLIENTMGR_NOT_INIT
    dclient.dclient_lib_init(client_cfg(service.port))
    two = service.client()
    assert dclient.trylock(two, ex(get(two, desc)))[0] is S.SUCCESS


@pytest.mark.data_plane
def test_client_heartbeat(service: Service) -> None:
    client = service.client()
    assert dclient.client_heartbeat(client, 300) is S.SUCCESS
    for timeout in (0, 301, -1, None):
        assert dclient.client_heartbeat(client, timeout) is S.EINVAL
    assert dclient.client_heartbeat(client ^ 1, 1) is S.EINVAL
    assert dclient.client_heartbeat(client, 1) in (S.SUCCESS, S.BAD_RESPONSE)  # of a slow machine
    dserver.server_stop(service.server_id)
    assert dclient.client_heartbeat(client, 1) is S.BAD_RESPONSE


@pytest.mark.data_plane
def test_an_idle_client_stays(start_service) -> None:
    service = start_service(session_ttl=3)
    one, two = service.client(), service.client()
    lock_id = service.lock(RW, one, two)
    dclient.trylock(one, ex(lock_id))
    time.sleep(4.5)
    assert dclient.trylock(two, ex(lock_id))[0] is S.FAIL
    assert dclient.unlock(one, lock_id)[0] is S.SUCCESS


@pytest.mark.data_plane
def test_a_stopped_server_wakes_a_waiter_and_leaves_the_local_state(
    service: Service, background
) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(ATOMIC, one, two)
    held = dclient.trylock(one, ex(lock_id))[1]
    waiting = background(dclient.lock, two, ex(lock_id))
    time.sleep(0.05)
    assert dserver.server_stop(service.server_id) is S.SUCCESS
    assert waiting.result(timeout=30)[0] is S.BAD_RESPONSE
    assert dclient.trylock(one, ex(lock_id))[0] is S.BAD_RESPONSE
    assert dclient.trylock(one, ex(lock_id, 0)) == (S.SUCCESS, held)
    assert dclient.get_lock(one, LockDesc(b"x")) == (S.BAD_RESPONSE, None)
    assert dclient.batch_get_lock(one, [LockDesc(b"x")] * 2) == (S.SUCCESS, [-1, -1])
    assert dclient.release_lock(two, lock_id) is S.BAD_RESPONSE
    assert dclient.unlock(one, lock_id)[0] is S.BAD_RESPONSE
    assert dclient.unlock(one, lock_id)[0] is S.ALREADY_UNLOCKED  # cleared before it was sent


@pytest.mark.data_plane
def test_a_server_stopped_in_its_tracks_is_bad_response(far_service, background) -> None:
    service = far_service(reply_timeout=3)
    client = service.client()
    held, free, entered = (service.lock(ATOMIC, client) for _ in range(3))
    dclient.trylock(client, ex(held))
    dclient.trylock(client, ex(entered))
    service.stop_in_its_tracks()
    calls = [background(dclient.trylock, client, ex(free)),
             background(dclient.trylock, client, ex(entered)),
             background(dclient.unlock, client, held)]
    assert [call.result(timeout=30)[0] for call in calls] == [S.BAD_RESPONSE] * 3
    assert dclient.client_heartbeat(client, 1) is S.BAD_RESPONSE
    assert dclient.client_init("127.0.0.1") == (S.BAD_RESPONSE, None)
    service.go_on()
    # The re-entry without an answer is not counted.
    assert dclient.unlock(client, entered)[0] is S.SUCCESS


# ---- statistics ----------------------------------------------------------------------------------


def counted(stats: DebugStats) -> dict[str, int]:
    return {name: count for name, count in dataclasses.asdict(stats).items() if count}


def test_statistics_of_a_client(service: Service) -> None:
    one, two = service.client(), service.client()
    atomic, rw, fair = (service.lock(kind, one, two) for kind in (ATOMIC, RW, FAIR))
    assert dclient.get_client_debug_stats(one) == (S.SUCCESS, DebugStats())
    dclient.trylock(one, ex(atomic))
    dclient.trylock(one, ex(atomic))
    dclient.trylock(two, ex(atomic))
    dclient.trylock(one, sh(atomic))
    dclient.lock_extend(one, extend_ex(rw))
    dclient.trylock(one, ex(999_999))
    dclient.trylock(one, ex(fair))
    dclient.trylock(two, ex(fair))
    dclient.trylock(two, sh(fair))
    dclient.release_lock(two, fair)
    dclient.unlock(two, rw)
    dclient.lock_result_check(two)
    dclient.batch_trylock(two, [ex(atomic), ex(atomic), ex(999_999), None])
    dclient.batch_unlock(two, [])
    assert counted(dclient.get_client_debug_stats(one)[1]) == {
        "ALREADY_LOCKED": 1,
        "EINVAL_LOCK_OP": 2,
        "LOCK_NOT_GET": 1,
    }
    assert counted(dclient.get_client_debug_stats(two)[1]) == {
        "FAIL": 3,
        "EAGAIN": 1,
        "ETICKET": 1,
        "TICKET_TO_UNLOCK": 1,
        "ALREADY_UNLOCKED": 1,
        "NO_ASYNC": 1,
        "LOCK_NOT_GET": 1,
        "EINVAL_LOCK_OP": 2,
    }
    assert dclient.clear_client_debug_stats(two) is S.SUCCESS
    assert dclient.get_client_debug_stats(two) == (S.SUCCESS, DebugStats())


def test_the_server_counts_by_the_specific_name(service: Service) -> None:
    one, two = service.client(), service.client()
    atomic, rw, fair = (service.lock(kind, one, two) for kind in (ATOMIC, RW, FAIR))
    dserver.clear_server_debug_stats(service.server_id)
    dclient.trylock(one, ex(atomic, 3))
    dclient.trylock(two, ex(atomic))
    dclient.trylock(one, ex(rw))
    dclient.trylock(two, ex(rw))
    dclient.trylock(two, sh(rw))
    dclient.trylock(two, sh(rw))
    time.sleep(3.1)
    dclient.trylock(two, ex(atomic))
    dclient.unlock(one, atomic)
    status, stats = dserver.get_server_debug_stats(service.server_id)
    assert status is S.SUCCESS
    assert stats.ATOMIC_TRYLOCK_FAIL == 1
    assert stats.ATOMIC_UNLOCK_FAIL == 1
    assert stats.RW_TRYLOCK_EX_FAIL == 1
    assert stats.RW_TRYLOCK_SH_FAIL == 2
    assert stats.FAIL == 0
    assert counted(dclient.get_client_debug_stats(two)[1]) == {"FAIL": 4}
    assert fair


# ---- removed clients -----------------------------------------------------------------------------


@pytest.mark.data_plane
def test_a_removed_client_says_so_in_every_call(start_service) -> None:
    from test_mirror_order import EXCEPTED, NAMING_A_CLIENT, status_of

    service = start_service(session_ttl=3)
    client, witness = service.client(), service.client()
    lock_id = service.lock(RW, client, witness)
    dclient.trylock(client, ex(lock_id))
    _mirror_table.clients[client].leave()  # no heartbeat reaches the server any more
    until(lambda: dclient.trylock(witness, ex(lock_id))[0] is S.SUCCESS)
    assert dclient.client_reinit(client, "127.0.0.1") is S.CLIENT_REMOVED_BY_SERVER
    for name, call in NAMING_A_CLIENT.items():
        if name not in EXCEPTED:
            assert status_of(call(client)) is S.CLIENT_REMOVED_BY_SERVER, name
    assert dclient.trylock(client, ex(lock_id)) == (S.CLIENT_REMOVED_BY_SERVER, None)
    assert dclient.get_client_debug_stats(client)[0] is S.SUCCESS
    assert dclient.clear_client_debug_stats(client) is S.SUCCESS
    assert dclient.client_deinit(client) is S.SUCCESS
    assert dclient.client_deinit(client) is S.CLIENT_NOT_INIT
