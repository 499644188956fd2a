"""The mirrored server calls: statuses, limits, refusals, statistics (specification, section 4)."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from control_client import TIMEOUT, Client, eventually, frame, raw

from dlock import dclient
from dlock.control import messages as m
from dlock.dserver import (
    clear_server_debug_stats,
    dserver_lib_deinit,
    dserver_lib_init,
    get_server_debug_stats,
    server_start,
    server_stop,
)
from dlock.server import listen
from dlock.types import (
    ClientCfg,
    DebugStats,
    LockDesc,
    LockRequest,
    PrimaryCfg,
    ServerCfg,
    ServerType,
    SslCfg,
    TransMode,
)
from dlock.types import DlockStatus as S

HOST = "127.0.0.1"


def free_port() -> int:
    with listen(HOST, 0) as probe:
        return int(probe.getsockname()[1])


def cfg(port: int = 0, **fields: Any) -> ServerCfg:
    primary = {"server_ip_str": HOST, "server_port": port or free_port(),
               **fields.pop("primary", {})}
    return ServerCfg(primary=PrimaryCfg(**primary), **fields)


@pytest.fixture
def _library() -> Iterator[None]:
    assert dserver_lib_init(3) is S.SUCCESS
    yield
    dserver_lib_deinit()


def start(one: ServerCfg) -> int:
    status, server_id = server_start(one)
    assert status is S.SUCCESS
    assert server_id is not None
    return server_id


def test_the_library() -> None:
    assert server_start(cfg()) == (S.ERROR, None)
    for number in (0, -1, 33):
        assert dserver_lib_init(number) is S.ERROR
    assert dserver_lib_init(1) is S.SUCCESS
    assert dserver_lib_init(1) is S.ERROR
    port = free_port()
    server_id = start(cfg(port))
    assert 1 <= server_id <= 0xFFFFF
    assert server_start(cfg()) == (S.SERVER_NO_RESOURCE, None)
    assert dserver_lib_deinit() is S.SUCCESS
    assert server_stop(server_id) is S.ERROR
    assert not [one for one in threading.enumerate() if one.name.endswith(f"-{port}")]
    assert dserver_lib_init(32) is S.SUCCESS
    assert dserver_lib_deinit() is S.SUCCESS


@pytest.mark.usefixtures("_library")
def test_several_servers_and_their_ids() -> None:
    ids = [start(cfg()) for _ in range(3)]
    assert len(set(ids)) == 3
    assert server_start(cfg()) == (S.SERVER_NO_RESOURCE, None)
    assert server_stop(ids[1]) is S.SUCCESS
    assert server_stop(ids[1]) is S.ERROR
    start(cfg())


@pytest.mark.usefixtures("_library")
def test_the_port_is_free_at_once() -> None:
    port = free_port()
    for _ in range(3):
        server_id = start(cfg(port))
        with Client(HOST, port) as client:
            assert client.get(b"a")[0].status is S.SUCCESS
            assert server_stop(server_id) is S.SUCCESS


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize(("one", "words"), [
    (cfg(type=ServerType.REPLICA), "REPLICA|type 1"),
    (cfg(type=7), "type 7"),
    (cfg(tp_mode=5), "tp_mode"),
    (cfg(ssl=SslCfg(ssl_enable=True)), "TLS is not supported yet"),
    (cfg(primary={"recovery_client_num": -1}), "recovery_client_num is -1"),
    (cfg(primary={"recovery_client_num": 1001}), "recovery_client_num is 1001"),
    (cfg(primary={"server_ip_str": None}), "server_ip_str"),
    (cfg(primary={"server_ip_str": "not an address"}), "no address"),
    (cfg(primary={"server_port": 70000}), "port is 70000"),
    (cfg(primary={"ctrl_cpuset": "x"}), "no list of CPUs"),
    (cfg(primary={"cmd_cpuset": "4000"}), "CPU 4000"),
    (cfg(max_locks=0), "max_locks"),
    (cfg(max_clients=None), "max_clients is missing"),
    (cfg(session_ttl=0.5), "session_ttl"),
    (cfg(session_ttl=float("nan")), "no duration"),
    (cfg(max_lease=0), "max_lease"),
    (cfg(recovery_deadline=5), "recovery deadline"),
])
def test_what_is_refused_is_said(
    one: ServerCfg, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert server_start(one) == (S.ERROR, None)
    (record,) = caplog.records
    assert any(word in record.getMessage() for word in words.split("|"))


@pytest.mark.usefixtures("_library")
def test_a_taken_port_is_an_error() -> None:
    with listen(HOST, 0) as taken:
        assert server_start(cfg(taken.getsockname()[1])) == (S.ERROR, None)
    start(cfg(recovery_deadline=11, tp_mode=TransMode.UNI_CONN))


@pytest.mark.usefixtures("_library")
def test_a_server_that_asks_for_too_much_memory_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_arguments: object) -> None:
        raise MemoryError("no memory for tables of these sizes")

    with monkeypatch.context() as patch:
        patch.setattr("dlock.primary._plane.Plane", none_left)
        assert server_start(cfg()) == (S.SERVER_NO_RESOURCE, None)
    start(cfg())


@pytest.mark.usefixtures("_library")
def test_missing_and_wrong_arguments() -> None:
    assert dserver_lib_init(None) is S.EINVAL  # type: ignore[arg-type]
    assert server_start(None) == (S.EINVAL, None)  # type: ignore[arg-type]
    assert server_stop(None) is S.EINVAL  # type: ignore[arg-type]
    assert get_server_debug_stats(None) == (S.EINVAL, None)  # type: ignore[arg-type]
    assert clear_server_debug_stats(None) is S.EINVAL  # type: ignore[arg-type]
    calls: list[Callable[[], object]] = [
        lambda: dserver_lib_init("1"),  # type: ignore[arg-type]
        lambda: server_start({}),  # type: ignore[arg-type]
        lambda: server_start(cfg(max_locks="5")),
        lambda: server_start(cfg(primary={"server_port": "5"})),
        lambda: server_start(cfg(ssl=5)),
        lambda: server_stop(1.5),  # type: ignore[arg-type]
        lambda: get_server_debug_stats(b""),  # type: ignore[arg-type]
        lambda: clear_server_debug_stats([]),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()
    assert server_stop(0) is S.ERROR
    assert get_server_debug_stats(-1) == (S.ERROR, None)
    assert clear_server_debug_stats(2**70) is S.ERROR


@pytest.mark.usefixtures("_library")
def test_statistics() -> None:
    port = free_port()
    server_id = start(cfg(port))
    assert get_server_debug_stats(server_id) == (S.SUCCESS, DebugStats())
    with Client(HOST, port) as client, raw(HOST, port) as hostile:
        client.get(b"a")
        client.ask(m.ReleaseLocks((77, 78)))
        client.get(b"a", kind=1)
        assert client.welcome is not None
        client.ask(m.ObjectRelease(5))
        with Client(HOST, port, init=False) as other:
            other.ask(m.ClientReinit(1, 1, client.welcome.client_id, b"x" * 16, 0, 0, 0, {}))
            other.ask(m.Heartbeat())
        hostile.sendall(frame(b"\xc1"))
        wanted = DebugStats(LOCK_NOT_GET=2, EINVAL_LOCK_TYPE=1, OBJECT_NOT_GET=1,
                            CLIENT_ID_VERIFY_FAIL=1, CLIENT_NOT_INIT=1, BAD_REQUEST=1)
        assert eventually(lambda: get_server_debug_stats(server_id) == (S.SUCCESS, wanted))
        assert clear_server_debug_stats(server_id) is S.SUCCESS
        assert get_server_debug_stats(server_id) == (S.SUCCESS, DebugStats())
        client.ask(m.ReleaseLocks((77,)))
        assert get_server_debug_stats(server_id)[1] == DebugStats(LOCK_NOT_GET=1)


@pytest.mark.usefixtures("_library")
def test_stop_wakes_who_waits_for_a_lock() -> None:
    """Long before the wait of the lock, or the time for an answer, would be over."""
    port = free_port()
    server_id = start(cfg(port))
    assert dclient.dclient_lib_init(
        ClientCfg(primary_port=port, lock_wait=300, reply_timeout=300)) is S.SUCCESS
    try:
        clients = [dclient.client_init(HOST)[1] for _ in range(2)]
        locks = [dclient.get_lock(one, LockDesc(b"a", 0))[1] for one in clients]
        assert dclient.trylock(clients[0], LockRequest(locks[0], 0, 60))[0] is S.SUCCESS
        got: list[S] = []
        waiter = threading.Thread(daemon=True, target=lambda: got.append(
            dclient.lock(clients[1], LockRequest(locks[1], 0, 60))[0]))
        waiter.start()
        from dlock import dserver
        server = dserver._library.servers[server_id]
        assert eventually(lambda: server.stats()["WAITS"] == 1)
        assert server_stop(server_id) is S.SUCCESS
        waiter.join(TIMEOUT)
        assert not waiter.is_alive()
        assert got == [S.BAD_RESPONSE]
    finally:
        dclient.dclient_lib_deinit()


@pytest.mark.usefixtures("_library")
def test_a_forked_child_has_no_servers() -> None:
    port = free_port()
    server_id = start(cfg(port))
    child = os.fork()
    if child == 0:
        ok = (server_stop(server_id) is S.ERROR and dserver_lib_deinit() is S.SUCCESS
              and dserver_lib_init(1) is S.SUCCESS)
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with Client(HOST, port) as client:
        assert client.ask(m.Heartbeat()).status is S.SUCCESS
