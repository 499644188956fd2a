"""A real server and its state directory: what is promised is on disk, a restart takes its clients
back, and one that was replaced stops. And a server without one that meets a client of a newer
primary."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from control_client import TIMEOUT, Client, answers, encode, eventually, raw
from state_dir_children import entry, files, ids, on_disk
from test_state_file import format_1

from dlock import _core
from dlock.control import messages as m
from dlock.control.link import ControlLink, LinkError
from dlock.control.registry_effects import PersistSession
from dlock.control.roster import believed_ms, with_margin_ms
from dlock.control.state_dir import open_state_dir
from dlock.control.state_file import State, changed, encode_state
from dlock.server import Server, ServerConfig, StateError
from dlock.types import DlockStatus as S

TTL_MS = 3000


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    started: list[Server] = []
    yield started
    for one in started:
        one.stop()


def start(servers: list[Server], folder: Path | None, **config: Any) -> Server:
    servers.append(Server(ServerConfig(
        **{"port": 0, "session_ttl_ms": TTL_MS, "state_dir": folder, **config})))
    return servers[-1]


def client(server: Server, *, init: bool = True) -> Client:
    return Client(server.host, server.port, init=init)


def again(
    one: Client, welcome: m.Welcome | None, *, epoch: int = 0, incarnation: int = 0,
    secret: bytes | None = None,
) -> m.Welcome:
    """ClientReinit of this session on this connection."""
    assert welcome is not None
    return one.ask(m.ClientReinit(
        1, 1, welcome.client_id, secret or welcome.secret, epoch or welcome.epoch,
        incarnation or welcome.incarnation, 1, {"host": "n1", "pid": 7}))


def ready(server: Server) -> bool:
    return eventually(lambda: server.stats()["ready"] == 1)


# ---- Promises ------------------------------------------------------------------------------------


def test_a_session_is_on_disk_before_it_is_answered_and_off_it_before_it_is_freed(
    tmp_path: Path, servers: list[Server]
) -> None:
    server = start(servers, tmp_path, session_ttl_ms=60_000)
    with client(server) as one, client(server) as two:
        assert one.welcome is not None
        assert two.welcome is not None
        assert ids(tmp_path) == {one.welcome.client_id, two.welcome.client_id}
        assert one.ask(m.DeclareLease(70_000)).status is S.SUCCESS
        assert on_disk(tmp_path).roster[one.welcome.client_id].lease_ms == 131_072
        assert one.ask(m.ClientDeinit()).status is S.SUCCESS
        assert ids(tmp_path) == {two.welcome.client_id}


def test_sessions_that_come_together_are_written_together(
    tmp_path: Path, servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one write is under way others come: they share the next one."""
    server = start(servers, tmp_path, session_ttl_ms=60_000)
    connections = [raw(server.host, server.port) for _ in range(50)]
    assert eventually(lambda: server.stats()["connections"] == 50)
    state = server._primary.state
    assert state is not None
    real, commits, gate = type(state).commit, [], threading.Event()

    def slow(self: Any) -> int:
        commits.append(len(self.roster.entries))
        assert gate.wait(TIMEOUT)
        return real(self)

    monkeypatch.setattr(type(state), "commit", slow)
    connections[0].sendall(encode(1, m.ClientInit(1, 1, {})))
    assert eventually(lambda: commits == [1])
    for one in connections[1:]:
        one.sendall(encode(1, m.ClientInit(1, 1, {})))
    gate.set()
    welcomes = [answers(one, 1)[0][1] for one in connections]
    assert {one.status for one in welcomes} == {S.SUCCESS}  # type: ignore[attr-defined]
    assert ids(tmp_path) == {one.client_id for one in welcomes}  # type: ignore[attr-defined]
    assert commits[-1] == 50
    assert len(commits) < 10, commits
    for one in connections:
        one.close()


def test_nothing_is_promised_that_cannot_be_written(
    tmp_path: Path, servers: list[Server]
) -> None:
    server = start(servers, tmp_path, session_ttl_ms=60_000)
    with client(server) as one:
        (tmp_path / f"state-1.{server._primary.incarnation:016x}.new").mkdir()
        with pytest.raises(LinkError):
            one.ask(m.DeclareLease(70_000))
        assert server.wait(TIMEOUT)
        assert "must not promise" in (server.failure or "")


# ---- Restarts ------------------------------------------------------------------------------------


def test_a_restart_takes_its_clients_back(tmp_path: Path, servers: list[Server]) -> None:
    first = start(servers, tmp_path, session_ttl_ms=60_000)
    with client(first) as one, client(first) as two:
        first.stop()
        second = start(servers, tmp_path, session_ttl_ms=60_000)
        assert second.epoch == first.epoch + 1
        assert second.recovery is not None
        assert {entry.client_id for entry in second.recovery.roster} == ids(tmp_path)
        with client(second, init=False) as back, client(second, init=False) as other:
            assert back.ask(m.ClientInit(1, 1, {})).status is S.NOT_READY
            assert again(back, one.welcome).status is S.SUCCESS
            assert back.ask(m.ReinitDone()).status is S.SUCCESS
            assert second.stats()["recovery_absent"] == 1
            assert again(other, two.welcome).status is S.SUCCESS
            assert other.ask(m.ReinitDone()).status is S.SUCCESS
            assert ready(second)
            assert back.get(b"a")[0].status is S.SUCCESS
    assert eventually(lambda: files(tmp_path) == {"state-2", "lock-2"})
    assert len(ids(tmp_path)) == 2


def test_a_restart_waits_for_those_who_could_believe(
    tmp_path: Path, servers: list[Server]
) -> None:
    first = start(servers, tmp_path)
    with client(first) as one:
        assert one.ask(m.DeclareLease(4000)).status is S.SUCCESS
        first.stop()
    started = time.monotonic()
    second = start(servers, tmp_path)
    with client(second) as early:
        assert early.welcome == m.Welcome(S.NOT_READY)
    assert ready(second)
    assert time.monotonic() - started > believed_ms(TTL_MS, 4096) / 1000
    assert ids(tmp_path) == set()
    with client(second, init=False) as late:
        assert again(late, one.welcome).status is S.CLIENT_REMOVED_BY_SERVER
    second.stop()
    third = start(servers, tmp_path)
    assert third.recovery is None, "nobody was left"
    assert third.stats()["ready"] == 1


def test_a_deadline_makes_it_shorter(tmp_path: Path, servers: list[Server]) -> None:
    first = start(servers, tmp_path)
    with client(first) as one:
        assert one.ask(m.DeclareLease(3_600_000)).status is S.SUCCESS
        first.stop()
    second = start(servers, tmp_path, recovery_deadline_ms=with_margin_ms(TTL_MS))
    assert ready(second)
    assert second.stats()["CLIENTS_EVICTED"] == 1


def test_a_recovery_that_is_killed_is_begun_again(tmp_path: Path, servers: list[Server]) -> None:
    """Any number of times; who came back to one of them is still waited for by the next."""
    first = start(servers, tmp_path, session_ttl_ms=60_000)
    with client(first) as one, client(first):
        first.stop()
        for _ in range(3):
            server = start(servers, tmp_path, session_ttl_ms=60_000)
            with client(server, init=False) as back:
                assert again(back, one.welcome).status is S.SUCCESS
                assert back.ask(m.ReinitDone()).status is S.SUCCESS
                stats = server.stats()
                assert (stats["recovery_expected"], stats["recovery_back"]) == (2, 1)
            server.stop()
    assert len(list(tmp_path.glob("state-*"))) == 4


def test_there_is_room_for_all_who_are_waited_for(
    tmp_path: Path, servers: list[Server], caplog: pytest.LogCaptureFixture
) -> None:
    first = start(servers, tmp_path, session_ttl_ms=60_000)
    clients = [client(first) for _ in range(3)]
    first.stop()
    with caplog.at_level(logging.WARNING, "dlock.control"):
        second = start(servers, tmp_path, session_ttl_ms=60_000, max_clients=1)
    assert "more clients than max_clients are waited for max_clients=1 raised_to=3" in caplog.text
    for one in clients:
        with client(second, init=False) as back:
            assert again(back, one.welcome).status is S.SUCCESS
            assert back.ask(m.ReinitDone()).status is S.SUCCESS
        one.link.close()
    assert ready(second)


def test_a_number_of_clients_is_waited_for_where_there_is_no_roster(
    tmp_path: Path, servers: list[Server]
) -> None:
    for folder in (None, tmp_path / "new"):
        server = start(servers, folder, session_ttl_ms=60_000, recovery_client_num=1)
        assert server.stats()["recovery_absent"] == 1
        with client(server, init=False) as one:
            stranger = m.ClientReinit(1, 1, 77, b"s" * 16, 0, 0, 0, {})
            assert one.ask(stranger).status is S.SUCCESS
            assert one.ask(m.ReinitDone()).status is S.SUCCESS
            assert ready(server)


def test_a_directory_of_an_earlier_version_is_waited_out(
    tmp_path: Path, servers: list[Server]
) -> None:
    (tmp_path / "state").write_bytes(
        format_1(epoch=4, session_ttl_ms=1000, longest_lease_ms=0))
    started = time.monotonic()
    server = start(servers, tmp_path)
    assert server.epoch == 5
    assert ready(server)
    assert time.monotonic() - started > believed_ms(1000, 0) / 1000
    assert eventually(lambda: files(tmp_path) == {"state-5", "lock-5"})


# ---- Two primaries -------------------------------------------------------------------------------


def test_a_replaced_primary_stops_serving(tmp_path: Path, servers: list[Server]) -> None:
    """By itself, also when nothing is asked of it."""
    server = start(servers, tmp_path)
    with client(server, init=False) as one:
        assert one.stats()["epoch"] == 1
        (tmp_path / "state-2").write_bytes(encode_state(State(2, 1)))
        assert server.wait(TIMEOUT)
        assert "another primary took over" in (server.failure or "")
        with pytest.raises(LinkError):
            one.ask(m.Stats())
    with pytest.raises(LinkError):
        ControlLink.connect(server.host, server.port, 1)


def test_an_answer_that_comes_late_is_not_sent_unconfirmed(
    tmp_path: Path, servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stall lies between the look of this turn and its answer."""
    server = start(servers, tmp_path, session_ttl_ms=60_000)
    loop = server._primary.loop
    real = loop._registry.request

    def stalled(*arguments: Any) -> Any:
        effects = real(*arguments)
        (tmp_path / "state-2").write_bytes(encode_state(State(2, 1)))
        loop._serve_until_ns = 0
        return effects

    with client(server, init=False) as one:
        monkeypatch.setattr(loop._registry, "request", stalled)
        with pytest.raises(LinkError):
            one.ask(m.Stats())
    assert server.wait(TIMEOUT)
    assert "another primary took over" in (server.failure or "")


def test_a_take_over_grants_nothing_before_the_other_one_has_stopped(
    tmp_path: Path, servers: list[Server]
) -> None:
    first = start(servers, tmp_path)
    with pytest.raises(StateError, match="--take-over"):
        start(servers, tmp_path)
    before_ns = _core.now_ns()
    second = start(servers, tmp_path, take_over=True)
    assert second.recovery is not None
    assert second.recovery.reread
    assert second.recovery.not_before_ns - before_ns >= with_margin_ms(TTL_MS // 4) * 1_000_000
    assert ready(second)
    assert _core.now_ns() >= second.recovery.not_before_ns
    assert first.wait(TIMEOUT)
    assert "it has epoch 2, this one has 1" in (first.failure or "")
    assert second.failure is None


def test_a_session_that_was_opened_meanwhile_is_waited_for_too(
    tmp_path: Path, servers: list[Server]
) -> None:
    """The other one wrote it after our look, and answered within its quarter of session_ttl."""
    first = open_state_dir(tmp_path, 1, 4000)
    first.apply(PersistSession(entry(5)))
    first.commit()
    second = start(servers, tmp_path, session_ttl_ms=4000, take_over=True)
    late = changed(on_disk(tmp_path), epoch=1, incarnation=1, late=(),
                   roster={5: entry(5), 9: entry(9)})
    (tmp_path / "state-1").write_bytes(encode_state(late))
    assert second.stats()["recovery_expected"] == 1
    assert eventually(lambda: second.stats()["recovery_expected"] == 2)
    assert eventually(lambda: ids(tmp_path) == {5, 9})
    first.close()


# ---- Without a state directory -------------------------------------------------------------------


def test_a_client_of_a_newer_primary_makes_it_begin_anew(
    servers: list[Server], caplog: pytest.LogCaptureFixture
) -> None:
    """On the same control socket, above what the client has seen; to its own clients that is like a
    crash, and both come back."""
    server = start(servers, None)
    with client(server) as own:
        assert own.welcome is not None
        with client(server, init=False) as stranger:
            newer = m.ClientReinit(1, 1, 77, b"s" * 16, 41, 5, 0, {})
            answer = stranger.ask(newer)
            assert answer.status is S.NOT_READY
        assert eventually(lambda: server.epoch == 42)
        assert server.failure is None
        with client(server, init=False) as back, client(server, init=False) as stranger:
            assert stranger.ask(m.ClientReinit(1, 1, 77, b"s" * 16, 41, 5, 0, {})).epoch == 42
            assert stranger.ask(m.ReinitDone()).status is S.SUCCESS
            assert again(back, own.welcome).epoch == 42
            assert back.ask(m.ReinitDone()).status is S.SUCCESS
            assert back.ask(m.ClientInit(1, 1, {})).status is not S.SUCCESS
            assert eventually(lambda: back.ask(m.Heartbeat()).status is S.SUCCESS
                              and server.stats()["ready"] == 1)
            assert back.get(b"a")[0].status is S.SUCCESS
    assert server.stats()["epoch"] == 42
    assert server.recovery is not None
    assert server.recovery.not_before_ns > server.recovery.started_ns
    with client(server) as fresh:
        assert fresh.welcome is not None
        with socket.create_connection((server.host, fresh.welcome.data_port), TIMEOUT):
            pass


def test_epochs_only_go_up(servers: list[Server]) -> None:
    server = start(servers, None, epoch_above=9)
    epochs = [server.epoch]
    for seen in (20, 5, 30):
        with client(server, init=False) as one:
            eventually(lambda: one.stats()["epoch"] == server.epoch)
            one.ask(m.ClientReinit(1, 1, 77, b"s" * 16, seen, 5, 0, {}))
        eventually(lambda seen=seen: server.epoch > seen)  # type: ignore[misc]
        epochs.append(server.epoch)
    assert epochs == [10, 21, 21, 31]


def test_a_stop_while_it_begins_anew_is_a_stop(servers: list[Server]) -> None:
    for _ in range(10):
        server = start(servers, None)
        with client(server, init=False) as one:
            one.ask(m.ClientReinit(1, 1, 77, b"s" * 16, 41, 5, 0, {}))
            server.stop()
        assert server.wait(0)
        assert not any(thread.is_alive() for thread in server._threads)
        with pytest.raises(OSError, match=r"."):
            socket.create_connection((server.host, server.port), 1)
