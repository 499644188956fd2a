"""Over what a client reaches the data plane: what it may be told, and what comes of that at real
servers that have no RDMA."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aio_tools import run
from mirror_tools import HOST, S, client_cfg, ex, free_port, start_server
from pairing_tools import OWN, PORT, THEIRS
from session_tools import until

import dlock
import dlock.aio
from dlock import _core, _pairing, _verbs, dclient, dserver
from dlock._transport import Wish, wished, wished_by_cfg
from dlock.control.registry_pairs import Pairs
from dlock.primary import Primary
from dlock.server import Server, ServerConfig
from dlock.types import ClientCfg, LockDesc

GID = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 1])
VARIABLES = ("DLOCK_TRANSPORT", "DLOCK_DEVICE", "DLOCK_GID")


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(ServerConfig(port=0, wait_mode="block", transport="tcp"))
    yield one
    one.stop()


# ---- What may be said ----------------------------------------------------------------------------


def test_nothing_said_is_whatever_is_best() -> None:
    assert wished(environment={}) == Wish("auto", _verbs.Wish())


def test_arguments_come_before_the_environment() -> None:
    environment = {"DLOCK_TRANSPORT": "tcp", "DLOCK_DEVICE": "mlx5_0", "DLOCK_GID": "192.0.2.1"}
    assert wished(environment=environment) == Wish("tcp", _verbs.Wish(b"mlx5_0", GID))
    assert wished("verbs", "rxe0", "fe80::1", environment) == Wish(
        "verbs", _verbs.Wish(b"rxe0", b"\xfe\x80" + bytes(13) + b"\x01"))
    assert wished(gid=GID, environment={}).device.gid == GID


@pytest.mark.parametrize(("arguments", "variable", "words"), [
    (("rdma",), {"DLOCK_TRANSPORT": "rdma"}, "'rdma' is not one of auto, verbs, tcp"),
    ((None, "x" * 64), {"DLOCK_DEVICE": "x" * 64}, "dlock rdma"),
    ((None, None, "rxe0"), {"DLOCK_GID": "rxe0"}, "'rxe0' is no GID"),
])
def test_what_is_none_of_it_is_refused_wherever_it_stands(
    arguments: tuple[str | None, ...], variable: dict[str, str], words: str, monkeypatch
) -> None:
    with pytest.raises(ValueError, match=words):
        wished(*arguments, environment={})
    with pytest.raises(ValueError, match=words):
        wished(environment=variable)
    names = dict(zip(("transport", "device", "gid"), arguments, strict=False))
    for connect in (dlock.connect, dlock.aio.connect):
        with pytest.raises(ValueError, match=words):
            connect("127.0.0.1:1", **names)
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    for connect in (dlock.connect, dlock.aio.connect):
        with pytest.raises(ValueError, match=words):
            connect("127.0.0.1:1")


def test_a_configuration_of_the_mirror_that_names_a_device_asks_for_rdma() -> None:
    device = _verbs.Wish(b"rxe0")
    assert wished_by_cfg("rxe0", None, {"DLOCK_TRANSPORT": "tcp"}) == Wish("verbs", device)
    assert wished_by_cfg(None, GID, {}) == Wish("verbs", _verbs.Wish(b"", GID))
    assert wished_by_cfg(None, None, {}).transport == "tcp"
    environment = {"DLOCK_TRANSPORT": "auto", "DLOCK_DEVICE": "rxe0"}
    assert wished_by_cfg(None, None, environment) == Wish("auto", device)


# ---- At a server without RDMA --------------------------------------------------------------------


def lines(caplog) -> list[str]:
    return [one.getMessage() for one in caplog.records if "data plane" in one.getMessage()]


def test_where_the_server_has_none_it_is_tcp_and_said_why(server: Server, caplog) -> None:
    caplog.set_level(logging.INFO)
    with dlock.connect(server.address) as client:
        assert client.transport.kind == str(client.transport) == "tcp"
        assert client.transport.device is None
        with client.lock("a"):
            pass
    (line,) = lines(caplog)
    assert server.address in line
    assert "over TCP: the server has no RDMA" in line
    assert [one.name for one in caplog.records if one.getMessage() == line] == ["dlock.client"]


def test_asyncio_says_so_in_its_own_log(server: Server, caplog) -> None:
    caplog.set_level(logging.INFO)

    async def program() -> None:
        async with dlock.aio.connect(server.address) as client:
            assert client.transport.kind == "tcp"
            async with client.lock("a"):
                pass

    run(program())
    (line,) = lines(caplog)
    assert [one.name for one in caplog.records if one.getMessage() == line] == ["dlock.aio"]


def test_who_wants_tcp_is_told_nothing(server: Server, caplog, monkeypatch) -> None:
    caplog.set_level(logging.INFO)
    with dlock.connect(server.address, transport="tcp") as client:
        assert client.transport.why == "TCP was asked for"
    monkeypatch.setenv("DLOCK_TRANSPORT", "tcp")
    dlock.connect(server.address).close()
    assert not lines(caplog)


def is_refused(server: Server, words: str) -> None:
    """Who wants RDMA alone, blocking and asyncio, is told so. Asked again while an answer takes
    longer than a client that is in a hurry gives it."""

    async def opened() -> None:
        await dlock.aio.connect(server.address, transport="verbs", timeout=0.1)

    for connect in (lambda: dlock.connect(server.address, transport="verbs", timeout=0.1),
                    lambda: run(opened())):

        def is_told(connect: Callable[[], object] = connect) -> bool:
            with pytest.raises(dlock.ConnectError) as raised:
                connect()
            return re.search(words, str(raised.value)) is not None

        until(is_told)
    until(lambda: server.stats()["clients"] == 0)


def test_rdma_alone_cannot_be_had(server: Server) -> None:
    is_refused(server, r"the server has no RDMA.*dlock serve")


# ---- The same of the mirror ----------------------------------------------------------------------


@pytest.fixture
def mirror_port() -> Iterator[int]:
    """Of a server without RDMA."""
    assert dserver.dserver_lib_init(1) is S.SUCCESS
    port = free_port()
    start_server(port)
    yield port
    dclient.dclient_lib_deinit()
    dserver.dserver_lib_deinit()


@pytest.mark.parametrize("wrong", [{"dev_name": "x" * 64}, {"eid": "rxe0"}, {"eid": b"short"}])
def test_a_configuration_that_cannot_be_meant_is_einval_and_logged(wrong, caplog) -> None:
    assert dclient.dclient_lib_init(ClientCfg(**wrong)) is S.EINVAL
    assert caplog.records


def test_a_word_in_the_environment_that_is_no_transport_is_einval(monkeypatch, caplog) -> None:
    monkeypatch.setenv("DLOCK_TRANSPORT", "urma")
    assert dclient.dclient_lib_init(ClientCfg()) is S.EINVAL
    assert "auto, verbs, tcp" in caplog.text


def test_a_configuration_of_other_types_is_no_configuration() -> None:
    for wrong in ({"dev_name": b"rxe0"}, {"eid": 7}):
        with pytest.raises(TypeError):
            dclient.dclient_lib_init(ClientCfg(**wrong))


def test_a_mirror_client_that_names_a_device_is_refused_where_the_server_has_none(
    mirror_port: int, caplog
) -> None:
    cfg = client_cfg(mirror_port, dev_name="none_of_ours")
    assert dclient.dclient_lib_init(cfg) is S.SUCCESS
    assert dclient.client_init(HOST) == (S.SERVER_NO_RESOURCE, None)
    assert "the server has no RDMA" in caplog.text


def test_a_mirror_client_that_names_none_goes_over_tcp(mirror_port: int, caplog) -> None:
    caplog.set_level(logging.INFO)
    assert dclient.dclient_lib_init(client_cfg(mirror_port)) is S.SUCCESS
    status, client_id = dclient.client_init(HOST)
    assert status is S.SUCCESS
    assert not lines(caplog)
    assert dclient.client_deinit(client_id) is S.SUCCESS


def test_the_environment_lets_a_mirror_client_choose(mirror_port: int, caplog, monkeypatch) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("DLOCK_TRANSPORT", "auto")
    assert dclient.dclient_lib_init(client_cfg(mirror_port)) is S.SUCCESS
    status, client_id = dclient.client_init(HOST)
    assert status is S.SUCCESS
    (line,) = lines(caplog)
    assert f"{HOST}:{mirror_port} is reached over TCP: the server has no RDMA" in line
    assert dclient.client_reinit(client_id, HOST) is S.SUCCESS
    assert len(lines(caplog)) == 1
    assert dclient.client_deinit(client_id) is S.SUCCESS


# ---- At a server that says that it has RDMA, and a machine that says so --------------------------


class PretendPair:
    """Stands for what a device would have made; the core gets no pointer from it. `freed`: how
    often, of all."""

    freed = 0

    def __init__(self, _port: _verbs.Port) -> None:
        self.own = OWN

    def hand_over(self) -> Any:
        return _core.ffi.NULL

    def free(self) -> None:
        PretendPair.freed += 1


@pytest.fixture
def pretending(monkeypatch) -> None:
    """Servers that say that they have RDMA, and whose planes have none; clients with a device."""
    monkeypatch.setattr(Primary, "_open_verbs", lambda _self: PORT)
    monkeypatch.setattr(_verbs, "choose", lambda _wish: PORT)
    monkeypatch.setattr(_verbs, "QueuePair", PretendPair)
    monkeypatch.setattr(_pairing, "avoided", _pairing.Avoided())
    monkeypatch.setattr(PretendPair, "freed", 0)


@pytest.fixture
def given(pretending, monkeypatch) -> None:
    """The same, but every queue pair is promised: nothing answers over it."""
    monkeypatch.setattr(
        Pairs, "open", lambda self, _client, call: self._out.answer(call, THEIRS))


def uses(address: str, **options: Any) -> dlock.Transport:
    """A lock of a client, blocking and asyncio, and over what."""
    with dlock.connect(address, **options) as client, client.lock("a"):

        async def program() -> dlock.Transport:
            async with dlock.aio.connect(address, **options) as another:
                async with another.lock("b"):
                    pass
                return another.transport

        assert run(program()).kind == client.transport.kind
        return client.transport


@pytest.mark.usefixtures("pretending")
def test_a_queue_pair_that_is_refused_is_tcp(server: Server, caplog) -> None:
    caplog.set_level(logging.INFO)
    way = uses(server.address)
    assert way.kind == "tcp"
    assert "the server's device cannot be used" in way.why
    assert PretendPair.freed == 2
    assert len(lines(caplog)) == 2
    assert server.stats()["QUEUE_PAIRS_REFUSED"] == 2


@pytest.mark.usefixtures("pretending")
def test_a_queue_pair_that_is_refused_is_an_error_for_who_wants_nothing_else(
    server: Server
) -> None:
    is_refused(server, "the server's device cannot be used")


def test_no_such_device_here(server: Server, monkeypatch, caplog) -> None:
    """No machine has a device of this name."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(Primary, "_open_verbs", lambda _self: PORT)
    other = Server(ServerConfig(port=0, wait_mode="block"))
    assert uses(other.address, device="none_of_ours").kind == "tcp"
    for connect in (dlock.connect, lambda *given, **named: run(opened(*given, **named))):
        with pytest.raises(dlock.ConnectError, match=r'RDMA is asked for.*"auto"'):
            connect(other.address, transport="verbs", device="none_of_ours", timeout=60)
    until(lambda: other.stats()["clients"] == 0)
    other.stop()


async def opened(address: str, **options: Any) -> dlock.aio.Client:
    return await dlock.aio.connect(address, **options)


@pytest.mark.usefixtures("pretending")
def test_the_mirror_over_tcp_where_a_queue_pair_is_refused(
    mirror_port: int, monkeypatch, caplog
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("DLOCK_TRANSPORT", "auto")
    assert dclient.dclient_lib_init(client_cfg(mirror_port)) is S.SUCCESS
    status, client_id = dclient.client_init(HOST)
    assert status is S.SUCCESS
    (line,) = lines(caplog)
    assert "over TCP: the server's device cannot be used" in line
    assert dclient.client_reinit(client_id, HOST) is S.SUCCESS
    assert PretendPair.freed == 2


@pytest.mark.usefixtures("pretending")
def test_the_mirror_with_a_device_where_a_queue_pair_is_refused(
    mirror_port: int, caplog
) -> None:
    cfg = client_cfg(mirror_port, dev_name="rxe7")
    assert dclient.dclient_lib_init(cfg) is S.SUCCESS
    assert dclient.client_init(HOST) == (S.ERROR, None)
    assert "the server's device cannot be used" in caplog.text


@pytest.mark.usefixtures("given")
def test_a_queue_pair_over_which_nothing_answers_is_tcp_at_once(server: Server, caplog) -> None:
    caplog.set_level(logging.INFO)
    assert uses(server.address).kind == "tcp"
    warnings = [one for one in caplog.records if one.levelno == logging.WARNING]
    (warning,) = (one for one in warnings if one.name.startswith("dlock."))
    assert "does not answer rxe7" in warning.getMessage()
    # Of the second client, asyncio's, that server is known.
    assert warning.name == "dlock.client"
    assert "a moment ago" in lines(caplog)[1]
    until(lambda: server.stats()["clients"] == 0)


@pytest.mark.usefixtures("given")
def test_asyncio_falls_back_too(server: Server, caplog) -> None:
    async def program() -> None:
        async with dlock.aio.connect(server.address) as client, client.lock("a"):
            assert client.transport.kind == "tcp"

    run(program())
    (warning,) = (one for one in caplog.records if one.name == "dlock.aio")
    assert warning.levelno == logging.WARNING
    until(lambda: server.stats()["clients"] == 0)


@pytest.mark.usefixtures("given")
def test_who_wants_nothing_else_is_told_that_nothing_answers(server: Server) -> None:
    is_refused(server, r"does not answer rxe7.*dlock rdma")


@pytest.mark.usefixtures("given")
def test_the_mirror_falls_back_in_the_same_call(mirror_port: int, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("DLOCK_TRANSPORT", "auto")
    assert dclient.dclient_lib_init(client_cfg(mirror_port)) is S.SUCCESS
    status, client_id = dclient.client_init(HOST)
    assert status is S.SUCCESS
    assert "client_init: its end of the queue pair does not answer rxe7" in caplog.text
    status, lock_id = dclient.get_lock(client_id, LockDesc(b"a"))
    assert dclient.trylock(client_id, ex(lock_id))[0] is S.SUCCESS
    _pairing.avoided.forget(f"{HOST}:{mirror_port}", wished_by_cfg(None, None))  # a minute later
    assert dclient.client_reinit(client_id, HOST) is S.SUCCESS
    assert f"client_reinit of {client_id}: its end" in caplog.text
    assert dclient.client_reinit_done(client_id) is S.SUCCESS
    assert dclient.unlock(client_id, lock_id)[0] is S.SUCCESS
    assert dclient.client_deinit(client_id) is S.SUCCESS


@pytest.mark.usefixtures("given")
def test_the_mirror_with_a_device_over_which_nothing_answers(mirror_port: int, caplog) -> None:
    cfg = client_cfg(mirror_port, dev_name="rxe7")
    assert dclient.dclient_lib_init(cfg) is S.SUCCESS
    assert dclient.client_init(HOST) == (S.BAD_RESPONSE, None)
    assert "does not answer rxe7" in caplog.text
