"""The load generator of the doors and the bare servers beside them: pieces of answers find their
place, wrong answers are counted, and it ends by itself. Nothing here is timed."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import doors, doors_scale, part_doors, report, wire  # noqa: E402
from benchmarks.plan import Plan  # noqa: E402
from benchmarks.processes import Address, connect  # noqa: E402
from benchmarks.wire import Ask, Conversation, Piece, hole  # noqa: E402

SECONDS = 0.05
needs_doors = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in part_doors.NEEDED),
    reason="needs the extra: pip install 'dlock[doors]'")


@contextlib.contextmanager
def talking(address: Address, count: int) -> Iterator[list[socket.socket]]:
    sockets = [connect(address) for _ in range(count)]
    try:
        yield sockets
    finally:
        for one in sockets:
            one.close()


class Server(threading.Thread):
    """Answers lines by a function of (connection, line); ends with its connections."""

    def __init__(self, answer: Callable[[int, bytes], bytes], connections: int) -> None:
        super().__init__(daemon=True)
        self._answer, self._connections = answer, connections
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(*self._listener.getsockname(), 0)

    def run(self) -> None:
        threads = []
        for number in range(self._connections):
            connected, _ = self._listener.accept()
            threads.append(threading.Thread(target=self._serve, args=(number, connected)))
            threads[-1].start()
        for one in threads:
            one.join()
        self._listener.close()

    def _serve(self, number: int, connected: socket.socket) -> None:
        with connected, connected.makefile("rwb") as stream, contextlib.suppress(OSError):
            for line in stream:
                stream.write(self._answer(number, line))
                stream.flush()


@contextlib.contextmanager
def server(answer: Callable[[int, bytes], bytes], connections: int) -> Iterator[Address]:
    one = Server(answer, connections)
    one.start()
    yield one.address
    one.join(20)
    assert not one.is_alive()


# ---- The generator -------------------------------------------------------------------------------


def take_and_give(number: int) -> Conversation:
    name = b"%03d" % number
    return Conversation([
        Ask(b"hello\n", b"hello"),
        Ask(b"take " + name + b"\n", b"taken", Piece(b"key=", 8, kept=2)),
        Ask(b"give " + name + b" " + hole(2, 8) + b"\n", b"given")], repeat_from=1)


class Keeper:
    """A server that grants with a new key each time, and wants it back."""

    def __init__(self) -> None:
        self.keys: dict[bytes, bytes] = {}
        self.greeted: dict[int, int] = {}
        self.given = 0
        self.wrong: list[bytes] = []

    def answer(self, number: int, line: bytes) -> bytes:
        word, *rest = line.split()
        if word == b"hello":
            self.greeted[number] = self.greeted.get(number, 0) + 1
            return b"hello\n"
        if word == b"take" and rest[0] not in self.keys:
            self.keys[rest[0]] = b"%08d" % (self.given * 7919)
            return b"taken key=" + self.keys[rest[0]] + b"\n"
        if word == b"give" and self.keys.pop(rest[0], None) == rest[1]:
            self.given += 1
            return b"given\n"
        self.wrong.append(line)
        return b"no\n"


@pytest.mark.parametrize("wait", ["block", "poll"])
@pytest.mark.parametrize("count", [1, 5])
def test_a_piece_of_an_answer_goes_into_the_next_request(count: int, wait: str) -> None:
    keeper = Keeper()
    with server(keeper.answer, count) as address, talking(address, count) as sockets:
        result = wire.talk(sockets, "lines", take_and_give, SECONDS, wait=wait, rounds_min=3)
    assert keeper.wrong == []
    assert keeper.keys == {}  # every round that was begun was finished
    assert keeper.greeted == dict.fromkeys(range(count), 1)  # what is asked once
    assert keeper.given == sum(result.counts) >= result.count > 0
    assert min(result.counts) >= 3
    assert result.errors == 0
    assert len(result.samples_ns) >= 2 * result.count


def test_wrong_answers_are_counted() -> None:
    with server(lambda _, line: b"no\n", 2) as address, talking(address, 2) as sockets:
        result = wire.talk(sockets, "lines", take_and_give, SECONDS, strict=False)
        with pytest.raises(RuntimeError, match="wrong answers"):
            wire.talk(sockets, "lines", take_and_give, SECONDS)
    assert result.count == 0
    assert result.errors > 0


def test_a_server_that_leaves_ends_it() -> None:
    def leave(_: int, line: bytes) -> bytes:
        raise OSError("I leave")

    with (server(leave, 1) as address, talking(address, 1) as sockets,
          pytest.raises(OSError, match=r"reset|Broken pipe")):
        wire.talk(sockets, "lines", take_and_give, SECONDS)


def test_conversations_have_one_shape() -> None:
    with pytest.raises(ValueError, match="lengths"):
        wire.talk([socket.socket(), socket.socket()], "lines",
                  lambda number: Conversation([Ask(b"x" * (number + 1), b"")]), SECONDS)


# ---- The bare servers, by the words of the doors -------------------------------------------------


@needs_doors
@pytest.mark.parametrize("name", sorted(doors.KINDS))
def test_every_conversation_is_one_with_its_floor(name: str) -> None:
    kind = doors.KINDS[name]
    with doors.floor(kind.framing) as address, talking(address, 3) as sockets:
        result = wire.talk(sockets, kind.framing, doors.of_floor(kind), SECONDS, rounds_min=3)
    assert result.count > 0
    assert result.errors == 0


def test_grpc_headers_are_those_of_the_protocol() -> None:
    """Read by a decoder that is not ours, as a server would: in full, and by their numbers."""
    hpack = pytest.importorskip("hpack")
    decoder = hpack.Decoder()
    conversation = doors.ldlm_grpc(7)
    seen = []
    for ask in conversation.asks:
        length = int.from_bytes(ask.request[:3], "big")
        seen.append(dict(decoder.decode(ask.request[9:9 + length])))
    for headers, method in zip(seen, ("TryLock", "Unlock") * 2, strict=True):
        assert headers[":path"] == f"/ldlm.LDLM/{method}"
        assert headers["content-type"] == "application/grpc"
        assert headers["te"] == "trailers"
        assert headers[":method"] == "POST"
        assert headers[":authority"] == "127.0.0.1"


# ---- Many at once --------------------------------------------------------------------------------


def test_many_connections_have_many_sources() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        address = Address(*listener.getsockname(), 0)
        opened = doors_scale.open_many(address, 50)
        assert {one.getsockname()[0] for one in opened} == {"127.0.0.2"}
        for one in opened:
            one.close()


def test_a_body_is_read_and_its_token_found() -> None:
    token = "0123456789abcdef0123456789ABCDEF"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert re.match(rb"GET /x HTTP/1.1\r\n", head)
        body = f'{{"sessiontoken":"{token}"}}'.encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    async def main() -> bytes:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
            return await doors_scale.ask(
                Address(*listening.sockets[0].getsockname(), 0), "GET", "/x")

    assert doors_scale._token(asyncio.run(main())) == token


# ---- The doors -----------------------------------------------------------------------------------


@needs_doors
def test_the_whole_part_runs_against_the_doors() -> None:
    """Every conversation is one with its door, and everybody in the crowds is served."""
    figures = report.Figures("doors")
    part_doors.measure(Plan(1, SECONDS, quick=True), figures)
    found = {figure.name: figure for figure in figures}
    for name in doors.KINDS:
        for connections in ("1 connection", "16 connections", "64 connections"):
            assert found[f"{name}, {connections}"].value > 0
            assert found[f"{name}, {connections}: CPU of the door"].value > 0
    served = [one for name, one in found.items() if name.endswith((": served", "and unlocked"))]
    assert len(served) == 3
    assert all(one.met for one in served)
