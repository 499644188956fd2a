"""What a server serves: TCP always, RDMA where it is wanted and can be had; and what it says."""

from __future__ import annotations

import logging
import os
import random
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from control_client import Client, eventually
from test_serve import COMMAND, Serve

from dlock import _plane, _verbs, dserver
from dlock._verbs import Port, VerbsError, Wish
from dlock.control import messages as m
from dlock.primary import Primary
from dlock.server import Server, ServerConfig, ServerError, TransportError
from dlock.types import DlockStatus as S
from dlock.types import PrimaryCfg, ServerCfg

ABSENT = "none_of_ours"  # no machine has a device of this name
PORT = Port(
    ABSENT.encode().ljust(64, b"\0"), bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 1]), 1, 1, 2, 1,
    1, 1, 1024, 0, 1, 400, 0, 32767, 32767, 128)


def config(**fields: Any) -> ServerConfig:
    small = {"port": 0, "max_locks": 16, "max_clients": 4, "max_objects": 4}
    return ServerConfig(**{**small, **fields})


def transport_lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [one for one in caplog.records if getattr(one, "event", "") == "transport"]


@pytest.fixture
def primaries() -> Iterator[Callable[..., Primary]]:
    """Starts primaries whose turns nobody takes."""
    started: list[Primary] = []

    def start(**fields: Any) -> Primary:
        started.append(Primary(config(**fields)))
        return started[-1]

    yield start
    for one in started:
        one.close()


# ---- The configuration ---------------------------------------------------------------------------


@pytest.mark.parametrize(("fields", "words"), [
    ({"transport": "rdma"}, "auto, verbs, tcp"),
    ({"device": "x" * 64}, "dlock rdma"),
    ({"gid": "no address"}, "no GID"),
    ({"gid": b"short"}, "16 bytes"),
    ({"gid": "::", "transport": "tcp"}, "stands for any"),
])
def test_what_cannot_be_meant_is_refused_at_once(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ServerError, match=words):
        config(**fields).check()


def test_what_is_asked_for_is_what_is_looked_for() -> None:
    assert config().wish == config(device="", gid="").wish == Wish()
    assert config(device="rxe0", gid="192.0.2.1").wish == Wish(b"rxe0", PORT.gid)
    config(device="rxe0", gid=PORT.gid, transport="verbs").check()


# ---- A machine without that device ---------------------------------------------------------------


def test_auto_goes_on_over_tcp_and_says_why_in_one_line(
    primaries: Callable[..., Primary], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dlock.control"):
        primary = primaries(device=ABSENT)
    (line,) = transport_lines(caplog)
    assert line.levelno == logging.INFO
    fields: Any = line.fields  # type: ignore[attr-defined]
    assert fields["serves"] == "TCP"
    assert fields["asked"] == "auto"
    assert len(fields["why"]) > 20
    assert primary.verbs_port is None
    assert primary.stats()["verbs"] == 0


def test_verbs_is_an_error_that_says_what_to_do_and_keeps_nothing(
    primaries: Callable[..., Primary], caplog: pytest.LogCaptureFixture
) -> None:
    primaries(transport="tcp")  # whatever the first of a process opens is open
    before = len(os.listdir("/proc/self/fd"))
    listener = socket.create_server(("127.0.0.1", 0))
    with caplog.at_level(logging.INFO, "dlock.control"), \
            pytest.raises(TransportError, match=r"cannot be had.*`dlock rdma`.*auto or tcp"):
        Primary(config(transport="verbs", device=ABSENT), listener=listener)
    assert listener.fileno() == -1
    assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)
    assert not transport_lines(caplog), "the error says it"


def test_tcp_does_not_look_for_devices(
    primaries: Callable[..., Primary], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def looked(_wish: Wish) -> Port:
        raise AssertionError("it has looked")

    monkeypatch.setattr(_verbs, "choose", looked)
    with caplog.at_level(logging.INFO, "dlock.control"):
        primaries(transport="tcp")
    (line,) = transport_lines(caplog)
    assert line.fields["serves"] == "TCP"  # type: ignore[attr-defined]


def test_a_port_that_the_plane_cannot_use_is_like_none(
    primaries: Callable[..., Primary], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """There is no such device, and the plane finds that out."""
    monkeypatch.setattr(_verbs, "choose", lambda _wish: PORT)
    with caplog.at_level(logging.INFO, "dlock.control"):
        assert primaries().verbs_port is None
    (line,) = transport_lines(caplog)
    assert line.fields["serves"] == "TCP"  # type: ignore[attr-defined]
    with pytest.raises(TransportError, match="cannot be had"):
        Primary(config(transport="verbs"))


def test_a_server_that_has_served_goes_on_over_tcp_when_the_device_is_gone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    """Its next epoch finds no device any more: that is a warning, not the end."""
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "dlock.control"):
        patch.setattr(_verbs, "choose", lambda _wish: PORT)
        patch.setattr(_plane.Plane, "verbs_open", lambda _plane, _port: (True, "as asked"))
        primary = Primary(config(transport="verbs", device=ABSENT))
    try:
        assert primary.verbs_port == PORT
        assert primary.stats()["verbs"] == 1
        (line,) = transport_lines(caplog)
        assert line.fields["serves"] == f"RDMA at {PORT}, and TCP"  # type: ignore[attr-defined]
        primary.loop.epoch_above = 41
        with caplog.at_level(logging.INFO, "dlock.control"):
            primary.begin_anew()
        assert primary.verbs_port is None
        assert primary.stats()["verbs"] == 0
        assert transport_lines(caplog)[1].levelno == logging.WARNING
    finally:
        primary.close()


# ---- DLock's configuration -----------------------------------------------------------------------


@pytest.fixture
def _library() -> Iterator[None]:
    assert dserver.dserver_lib_init(4) is S.SUCCESS
    yield
    dserver.dserver_lib_deinit()


def cfg(**fields: Any) -> ServerCfg:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return ServerCfg(primary=PrimaryCfg(server_ip_str="127.0.0.1", server_port=port),
                     max_locks=16, max_clients=4, max_objects=4, **fields)


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize(("fields", "words"), [
    ({"dev_name": ABSENT}, "cannot be had"),
    ({"eid": "203.0.113.250"}, "cannot be had"),
    ({"eid": b"\xfe\x80" + bytes(13) + b"\x07"}, "cannot be had"),
    ({"eid": b"x"}, "no GID|16 bytes"),
    ({"dev_name": "x" * 64}, "no name of a device"),
])
def test_a_device_that_dlock_names_and_that_is_not_there(
    fields: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert dserver.server_start(cfg(**fields)) == (S.ERROR, None)
    (record,) = caplog.records
    assert any(word in record.getMessage() for word in words.split("|"))


def test_without_a_name_the_environment_says_what_dlock_serves(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DLOCK_TRANSPORT", "DLOCK_DEVICE", "DLOCK_GID"):
        monkeypatch.delenv(name, raising=False)
    assert dserver._config_of(cfg()).transport == "tcp"
    monkeypatch.setenv("DLOCK_TRANSPORT", "auto")
    monkeypatch.setenv("DLOCK_DEVICE", "rxe0")
    monkeypatch.setenv("DLOCK_GID", "192.0.2.1")
    asked = dserver._config_of(cfg())
    assert (asked.transport, asked.device, asked.gid) == ("auto", "rxe0", "192.0.2.1")
    named = dserver._config_of(cfg(dev_name="mlx5_0"))
    assert (named.transport, named.device, named.gid) == ("verbs", "mlx5_0", None)


@pytest.mark.usefixtures("_library")
def test_clients_without_room_at_the_device_are_dlocks_missing_buffers(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    status, server_id = dserver.server_start(cfg())
    assert status is S.SUCCESS
    assert server_id is not None
    real = Server.stats
    for more, shown in ((3, 3), (5, 5), (9, 4)):
        monkeypatch.setattr(Server, "stats", lambda one, more=more: {
            **real(one), "VERBS_NO_ROOM": more})
        stats = dserver.get_server_debug_stats(server_id)[1]
        assert stats is not None
        assert shown == stats.NO_URMA_BUF
        if more == 5:
            assert dserver.clear_server_debug_stats(server_id) is S.SUCCESS


# ---- `dlock serve` -------------------------------------------------------------------------------


def serve(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of one that ends by itself."""
    kept = {name: text for name, text in os.environ.items()
            if name not in ("DLOCK_TRANSPORT", "DLOCK_DEVICE", "DLOCK_GID")}
    done = subprocess.run(
        [*COMMAND, "serve", "--listen", "127.0.0.1:0", *arguments], capture_output=True, text=True,
        timeout=120, check=False, cwd=folder, env={**kept, **environment})
    return done.returncode, done.stdout, done.stderr


def test_serve_does_not_start_where_the_rdma_it_is_told_to_serve_cannot_be_had(
    tmp_path: Path
) -> None:
    code, out, err = serve(tmp_path, "--transport", "verbs", "--device", ABSENT)
    assert (code, out) == (2, "")
    assert "RDMA is asked for and cannot be had" in err
    code, out, err = serve(tmp_path, DLOCK_TRANSPORT="verbs", DLOCK_GID="203.0.113.250")
    assert (code, out) == (2, "")
    assert "`dlock rdma`" in err
    code, out, err = serve(tmp_path, "--gid", "nonsense")
    assert (code, out) == (2, "")
    assert "no GID" in err


def test_serve_shows_what_it_was_told_of_rdma(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('device = "rxe0"\n')
    code, out, _ = serve(tmp_path, "--config", "c.toml", "--gid", "192.0.2.1", "--print-config",
                         DLOCK_TRANSPORT="verbs")
    assert code == 0
    assert 'transport = "verbs"  # DLOCK_TRANSPORT' in out
    assert 'device = "rxe0"  # c.toml: device' in out
    assert 'gid = "192.0.2.1"  # --gid' in out


# ---- A real device -------------------------------------------------------------------------------


@pytest.fixture
def servers() -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(**fields: Any) -> Server:
        started.append(Server(config(**{"transport": "verbs", **fields})))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def ask_for_pair(client: Client, pair: _verbs.QueuePair) -> m.QueuePair:
    return client.ask(m.OpenQueuePair(*pair.own[:-1]))


@pytest.mark.rdma
@pytest.mark.parametrize("transport", ["auto", "verbs"])
def test_a_device_that_is_there_is_served_and_said(
    servers: Callable[..., Server], transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dlock.control"):
        server = servers(transport=transport)
    (line,) = transport_lines(caplog)
    port = _verbs.choose(Wish())
    fields: Any = line.fields  # type: ignore[attr-defined]
    assert fields["serves"] == f"RDMA at {port}, and TCP"
    assert (server.transport, server.rdma) == ("verbs", str(port))
    with Client(server.host, server.port) as client:
        assert client.welcome is not None
        assert client.welcome.verbs == 1
        assert client.stats()["verbs"] == 1


@pytest.mark.rdma
def test_the_device_and_the_gid_that_are_named_are_taken(servers: Callable[..., Server]) -> None:
    found, _ = _verbs.ports()
    for port in (one for one in found if one.active):
        assert servers(device=port.name, gid=port.gid).rdma == str(port)
        assert servers(gid=_verbs.gid_text(port.gid)).transport == "verbs"
    with pytest.raises(TransportError):
        servers(device=found[0].name, gid="203.0.113.250")


@pytest.mark.rdma
@pytest.mark.usefixtures("_library")
def test_dlocks_dev_name_and_eid_choose() -> None:
    port = _verbs.choose(Wish())
    for fields in ({"dev_name": port.name}, {"eid": port.gid},
                   {"dev_name": port.name, "eid": _verbs.gid_text(port.gid)}):
        assert dserver.server_start(cfg(**fields))[0] is S.SUCCESS


@pytest.mark.rdma
def test_a_session_gets_one_queue_pair_for_each_attach_number(
    servers: Callable[..., Server]
) -> None:
    server = servers()
    port = _verbs.choose(Wish())
    with Client(server.host, server.port) as client:
        pair = _verbs.QueuePair(port)
        told = ask_for_pair(client, pair)
        assert told.status is S.SUCCESS
        assert told.gid == port.gid
        assert told.queue_pair != pair.own.queue_pair
        assert told.window >= 2
        assert ask_for_pair(client, pair).status is S.ERROR
        assert client.ask(m.ListClients(0)).clients[0].verbs
        assert client.stats()["queue_pairs_under_way"] == 0
        welcome = client.welcome
        assert welcome is not None
        again = client.ask(m.ClientReinit(
            1, 1, welcome.client_id, welcome.secret, welcome.epoch, welcome.incarnation, 0, {}))
        assert again.status is S.SUCCESS
        assert ask_for_pair(client, _verbs.QueuePair(port)).status is S.SUCCESS


@pytest.mark.rdma
def test_an_end_that_cannot_be_reached_is_refused_and_the_session_goes_on(
    servers: Callable[..., Server]
) -> None:
    server = servers()
    port = _verbs.choose(Wish())
    with Client(server.host, server.port) as client:
        pair = _verbs.QueuePair(port)
        nowhere = m.OpenQueuePair(*pair.own._replace(ethernet=1 - pair.own.ethernet)[:-1])
        assert client.ask(nowhere).status is S.ERROR
        assert ask_for_pair(client, pair).status is S.SUCCESS, "it may ask again"


@pytest.mark.rdma
def test_ends_that_make_no_sense_are_answered_and_everybody_is_served_on(
    servers: Callable[..., Server]
) -> None:
    source = random.Random(7)
    server = servers()
    port = _verbs.choose(Wish())
    with Client(server.host, server.port) as client:
        for _ in range(60):
            gid = source.choice([port.gid, source.randbytes(16), bytes(16)])
            told = client.ask(m.OpenQueuePair(
                source.randint(1, 2**24 - 1), source.randint(0, 2**24 - 1), gid,
                source.randint(0, 2**16 - 1), source.randint(1, 5), source.randint(0, 1),
                source.randint(2, 2**15 - 1), source.randint(64, 2**16 - 1),
                source.randint(0, 255)))
            assert told.status in (S.SUCCESS, S.ERROR, S.SERVER_NO_RESOURCE)
            assert client.ask(m.Heartbeat()).status is S.SUCCESS
    with Client(server.host, server.port) as client:
        assert eventually(lambda: ask_for_pair(
            client, _verbs.QueuePair(port)).status is S.SUCCESS)
        assert client.stats()["queue_pairs_under_way"] == 0


@pytest.mark.rdma
def test_queue_pairs_whose_clients_vanish_are_given_back(servers: Callable[..., Server]) -> None:
    """More of them than the device has room for at once, if any was kept."""
    server = servers(max_clients=4, session_ttl_ms=1000)
    port = _verbs.choose(Wish())
    for _ in range(12):
        with Client(server.host, server.port) as client:
            assert eventually(lambda: ask_for_pair(
                client, _verbs.QueuePair(port)).status is S.SUCCESS)
            assert client.ask(m.ClientDeinit()).status is S.SUCCESS


@pytest.mark.rdma
def test_the_key_of_an_object_is_told(servers: Callable[..., Server]) -> None:
    server = servers()
    with Client(server.host, server.port) as client:
        made = client.ask(m.ObjectCreate(b"o", 5, 60))
        got = client.ask(m.ObjectGet(b"o", 0))
        assert made.status is got.status is S.SUCCESS
        assert made.key == got.key
        assert bool(made.key) == bool(_verbs.choose(Wish()).atomicity
                                      and _verbs.choose(Wish()).windows_max)


@pytest.mark.rdma
def test_serve_says_where_it_serves_rdma(tmp_path: Path) -> None:
    """On standard output, and in one line of the log."""
    one = Serve(tmp_path, "--listen", "127.0.0.1:0", "--state-dir", "none", "--transport", "verbs")
    try:
        port = _verbs.choose(Wish())
        assert f"; RDMA at {port}" in one.greeting
    finally:
        code, errors = one.end()
    assert code == 0
    (line,) = [line for line in errors.splitlines() if " transport serves=" in line]
    assert f"RDMA at {port}, and TCP" in line


@pytest.mark.rdma
def test_without_a_device_of_that_name_there_is_none() -> None:
    with pytest.raises(VerbsError):
        _verbs.choose(Wish(ABSENT.encode()))
