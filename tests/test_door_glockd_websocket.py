"""glockd over websockets: one message a command, one reply a message; with a client library that
knows nothing of us, and by frames made by hand."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from failover_tools import until
from glockd_tools import LIMIT_S, Glockd, Wire, glockd, leave_alone

from dlock.doors.glockd.protocol import LINE_MAX
from dlock.doors.glockd.websocket import Websocket, reply_frame

ws = pytest.importorskip("websockets.sync.client", reason="the package websockets is missing")

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
REQUEST = {
    "Host": "x", "Connection": "keep-alive, Upgrade", "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": KEY,
}
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def request(line: str = "GET /any/path?at=all HTTP/1.1", **changed: str | None) -> bytes:
    headers: dict[str, str | None] = dict(REQUEST)
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    rows = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([line, *rows, "", ""]).encode()


def frame(op: int, payload: bytes, *, last: bool = True) -> bytes:
    """A client's frame, masked as it must be."""
    mask = b"\x11\x22\x33\x44"
    size = len(payload)
    head = bytes([op | last << 7])
    head += (bytes([0x80 | size]) if size < 126 else
             b"\xfe" + size.to_bytes(2, "big") if size < 1 << 16 else
             b"\xff" + size.to_bytes(8, "big"))
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return head + mask + masked


class Hand(Wire):
    """A websocket client by hand."""

    def open(self) -> Hand:
        self.send(request())
        assert self.line() == b"HTTP/1.1 101 Switching Protocols\r\n"
        rows = []
        while (row := self.line()) != b"\r\n":
            rows.append(row)
        assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in rows
        return self

    def frame(self) -> tuple[int, bytes]:
        first, size = self.read(2)
        assert first & 0x80
        if size > 125:
            size = int.from_bytes(self.read(2 if size == 126 else 8), "big")
        return first & 15, self.read(size)


@pytest.fixture(scope="module")
def shared_door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Glockd]:
    with glockd(tmp_path_factory.mktemp("websocket")) as door:
        yield door


@pytest.fixture
def door(shared_door: Glockd) -> Iterator[Glockd]:
    yield shared_door
    leave_alone(shared_door)


@pytest.fixture
def hand(door: Glockd) -> Iterator[Hand]:
    """A client by hand that is not open yet."""
    made = Hand(socket.create_connection(("127.0.0.1", door.ws_port), LIMIT_S))
    yield made
    made.close()


def client(door: Glockd, **options: Any) -> Any:
    """A client of the library; `with client(...) as one`."""
    return ws.connect(f"ws://127.0.0.1:{door.ws_port}/", **options)


def ask(one: Any, command: str | bytes) -> str:
    one.send(command)
    reply = one.recv(LIMIT_S)
    assert isinstance(reply, str), "replies are text"
    return reply


# ---- With the library ----------------------------------------------------------------------------


def test_the_commands_are_those_of_tcp(door: Glockd) -> None:
    tcp = door.tcp()
    with client(door) as one:
        host, port = one.local_address[:2]
        assert ask(one, "me") == f"1 {host}:{port} {host}:{port}\n"
        assert ask(one, "i a") == "0 Lock Not Locked: a\r\n"
        assert ask(one, "g a") == "1 Lock Get Success: a\r\n"
        assert ask(one, "g a\n") == "1 Lock Get Success: a\n"
        assert tcp.ask(b"g a") == b"0 Lock Get Failure: a\r\n"
        assert ask(one, "i a\r\n") == "1 Lock Is Locked: a\n"
        assert ask(one, "sg a") == "1 Shared Lock Get Success: a\r\n"
        assert tcp.ask(b"sg a") == b"2 Shared Lock Get Success: a\r\n"
        assert ask(one, "sd") == f"a: {host}:{port}\na: {tcp.called.decode()}\n"
        assert ask(one, "dump") == f"map[a:{host}:{port}]\n"
        assert ask(one, "iam web") == "1 ok\n"
        assert tcp.all(b"d") == b"a: web\n"
        assert "connections: 2\n" in ask(one, "q")
        assert ask(one, "sr a") == "1 Shared Lock Release Success: a\r\n"
        assert ask(one, "r a") == "1 Lock Release Success: a\n"


def test_text_and_binary_are_understood_and_answered_in_text(door: Glockd) -> None:
    with client(door) as one:
        assert ask(one, b"g a") == "1 Lock Get Success: a\r\n"
        assert ask(one, "g \u00e4\u20ac") == "1 Lock Get Success: \u00e4\u20ac\r\n"


@pytest.mark.parametrize("command", ["", "\n", "nonsense", "d", "sd nobody", "who", "G a"])
def test_what_has_no_answer_gets_an_empty_one(door: Glockd, command: str) -> None:
    with client(door) as one:
        assert ask(one, command) == ""
        assert ask(one, "g a") == "1 Lock Get Success: a\r\n"


def test_a_line_end_within_a_message_is_a_blank(door: Glockd) -> None:
    with client(door) as one:
        assert ask(one, "g x\ng y") == "1 Lock Get Success: x g y\r\n"


def test_a_message_in_fragments_is_one_command(door: Glockd) -> None:
    with client(door) as one:
        one.send(iter(["g ", "a", "bc"]))
        assert one.recv(LIMIT_S) == "1 Lock Get Success: abc\r\n"


@pytest.mark.parametrize("origin", [None, "http://elsewhere.example"])
def test_an_origin_is_not_needed(door: Glockd, origin: str | None) -> None:
    with client(door, origin=origin) as one:
        assert ask(one, "g a") == "1 Lock Get Success: a\r\n"


def test_a_client_that_offers_protocols_is_given_its_first(door: Glockd) -> None:
    with client(door, subprotocols=["glockd", "other"]) as one:
        assert one.subprotocol == "glockd"


def test_long_names_and_long_replies(door: Glockd) -> None:
    with client(door, max_size=None) as one:
        for size in (100, 130, 65_500, 70_000):
            name = "x" * size
            assert ask(one, "g " + name) == f"1 Lock Get Success: {name}\r\n"
        assert len(ask(one, "d")) > 135_000


def test_a_message_that_is_too_long_ends_the_connection(door: Glockd) -> None:
    from websockets.exceptions import ConnectionClosed

    before = door.door.counters().get("long_lines", 0)
    with client(door, compression=None) as one:
        one.send("g " + "x" * LINE_MAX)
        with pytest.raises(ConnectionClosed) as closed:
            one.recv(LIMIT_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
    assert door.door.counters()["long_lines"] == before + 1


def test_its_locks_are_free_when_it_closes(door: Glockd) -> None:
    tcp = door.tcp()
    before = tcp.statistics()
    with client(door) as one:
        ask(one, "g a")
        ask(one, "sg a")
    until(lambda: tcp.statistics()["connections"] == before["connections"])
    after = tcp.statistics()
    assert after["orphans"] - before["orphans"] == 1
    assert after["shared_orphans"] - before["shared_orphans"] == 1
    assert tcp.ask(b"g a").startswith(b"1 ")


def test_a_ping_is_answered(door: Glockd) -> None:
    with client(door) as one:
        assert one.ping(b"hi").wait(LIMIT_S)


# ---- By hand -------------------------------------------------------------------------------------


def test_many_messages_in_one_packet_are_answered_in_order(hand: Hand) -> None:
    hand.open()
    hand.send(frame(TEXT, b"g a") + frame(PING, b"x") + frame(BINARY, b"me\n") + frame(TEXT, b"r a")
              + frame(CLOSE, b"\x03\xe8"))
    me = b"1 %b %b\n" % (hand.called, hand.called)
    frames = [hand.frame() for _ in range(5)]
    assert (PONG, b"x") in frames
    frames.remove((PONG, b"x"))
    assert frames == [(TEXT, b"1 Lock Get Success: a\r\n"), (TEXT, me),
                      (TEXT, b"1 Lock Release Success: a\n"), (CLOSE, b"\x03\xe8")]
    assert hand.rest() == b""


def test_frames_may_come_with_the_request(hand: Hand) -> None:
    hand.send(request() + frame(TEXT, b"g early"))
    while hand.line() != b"\r\n":
        pass
    assert hand.frame() == (TEXT, b"1 Lock Get Success: early\r\n")


def test_bytes_that_are_no_text_come_back_to_who_sent_them(door: Glockd, hand: Hand) -> None:
    tcp = door.tcp()
    tcp.ask(b"g \xfe")
    hand.open()
    hand.send(frame(BINARY, b"g \xff\x00"))
    assert hand.frame() == (TEXT, b"1 Lock Get Success: \xff\x00\r\n")
    hand.send(frame(TEXT, b"d"))
    listed = f"\ufffd: {tcp.called.decode()}\n\ufffd\0: {hand.called.decode()}\n"
    assert hand.frame() == (TEXT, listed.encode())


def test_a_client_that_is_only_half_gone_gets_its_replies(door: Glockd, hand: Hand) -> None:
    hand.open()
    hand.send(frame(TEXT, b"g a"))
    hand.socket.shutdown(socket.SHUT_WR)
    assert hand.frame() == (TEXT, b"1 Lock Get Success: a\r\n")
    assert hand.rest() == b""
    until(lambda: door.tcp().ask(b"g a").startswith(b"1 "))


@pytest.mark.parametrize(
    ("asked", "status", "says"),
    [
        (request(Upgrade=None, Connection=None), b"400 Bad Request", b"not websocket protocol"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"400 Bad Request", b"not websocket protocol"),
        (b"GET / HTTP/1.0\r\n\r\n", b"400 Bad Request", b"not websocket protocol"),
        (request(Sec_WebSocket_Key=None), b"400 Bad Request", b"not websocket protocol"),
        (request(Sec_WebSocket_Version="8"), b"400 Bad Request",
         b"missing or bad WebSocket Version"),
        (b"g foo\r\n\r\n", b"400 Bad Request", b"not websocket protocol"),
        (request("POST / HTTP/1.1"), b"405 Method Not Allowed", b"bad method"),
        (b"\xff\x00\r\n\r\n", b"400 Bad Request", b"not websocket protocol"),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * (80 << 10), b"400 Bad Request",
         b"not websocket protocol"),
    ],
)
def test_what_asks_for_no_websocket_is_refused(
    door: Glockd, hand: Hand, asked: bytes, status: bytes, says: bytes
) -> None:
    before = door.door.counters().get("websocket_refused", 0)
    hand.send(asked)
    answer = hand.rest()
    assert answer.startswith(b"HTTP/1.1 %b\r\n" % status)
    assert answer.endswith(b"\r\n\r\n" + says)
    assert door.door.counters()["websocket_refused"] == before + 1


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x81\x03g a", 1002),  # not masked
        (frame(3, b"x"), 1002),  # no such opcode
        (frame(0, b"x"), 1002),  # goes on with nothing
        (frame(TEXT, b"g \xff"), 1007),  # text that is none
        (b"\xff" * 40, 1002),
    ],
)
def test_frames_that_are_none_end_the_connection(
    door: Glockd, hand: Hand, sent: bytes, code: int
) -> None:
    before = door.door.counters().get("websocket_errors", 0)
    hand.open()
    hand.send(sent)
    kind, payload = hand.frame()
    assert (kind, int.from_bytes(payload[:2], "big")) == (CLOSE, code)
    assert hand.rest() == b""
    assert door.door.counters()["websocket_errors"] == before + 1


# ---- Pure ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000])
def test_the_pieces_do_not_matter(size: int) -> None:
    sent = request() + b"".join(
        [frame(TEXT, b"g a"), frame(BINARY, b"\xff" * 300), frame(TEXT, b"r ", last=False),
         frame(PING, b"p"), frame(0, b"a"), frame(TEXT, b"x" * 70_000), frame(CLOSE, b"\x03\xe8")])
    sut, messages, farewell, opened = Websocket(), [], None, 0
    out = b""
    for at in range(0, len(sent), size):
        heard = sut.feed(sent[at : at + size])
        messages += heard.messages
        out += heard.send
        opened += heard.opened
        farewell = farewell or heard.farewell
        assert heard.problem is None
    assert messages == [b"g a", b"\xff" * 300, b"r a", b"x" * 70_000]
    assert out.endswith(b"\r\n\r\n\x8a\x01p")
    assert (farewell, opened) == (b"\x88\x02\x03\xe8", 1)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_a_reply_is_one_text_frame(size: int) -> None:
    made = reply_frame(b"x" * size, b"d")
    head = {0: 2, 1: 2, 125: 2, 126: 4, 65535: 4, 65536: 10}[size]
    assert made[0] == 0x81
    assert made[head:] == b"x" * size
