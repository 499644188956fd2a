"""The client's control link: in step or closed, whatever happens to it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from control_client import TIMEOUT

from dlock.control import messages as m
from dlock.control.codec import Decoder, encode
from dlock.control.link import WINDOW, ControlLink, LinkError
from dlock.server import Server, ServerConfig, listen
from dlock.types import DlockStatus as S

Script = Callable[[socket.socket, Decoder], None]


def peer(script: Script) -> tuple[ControlLink, threading.Thread]:
    """A link to a peer that does what the script says, and then closes."""
    with listen("127.0.0.1", 0) as listener:
        link = ControlLink.connect(*listener.getsockname(), TIMEOUT)
        accepted, _ = listener.accept()

    def play() -> None:
        with accepted:
            script(accepted, Decoder())

    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    return link, thread


def take(connection: socket.socket, decoder: Decoder) -> tuple[int, m.Message]:
    while (taken := decoder.take()) is None:
        data = connection.recv(65536)
        assert data
        decoder.feed(data)
    return taken


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(ServerConfig(port=0))
    yield one
    one.stop()


def test_many_threads_share_a_link(server: Server) -> None:
    link = ControlLink.connect(server.host, server.port, TIMEOUT)
    assert link.request(m.ClientInit(1, 1, {}), TIMEOUT).status is S.SUCCESS
    got: dict[int, set[m.LockResult]] = {}

    def work(number: int) -> None:
        for _ in range(50):
            answer = link.request(m.GetLocks((m.LockSpec(b"%d" % number, 0),)), TIMEOUT)
            got.setdefault(number, set()).add(answer.results[0])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    # Each thread's own lock: first SUCCESS, then ERROR with the same id.
    assert [sorted(one.status for one in got[number]) for number in range(8)] == [
        [S.ERROR, S.SUCCESS]] * 8
    assert len({one.lock_id for results in got.values() for one in results}) == 8
    assert link.peer == "127.0.0.1"
    link.close()
    assert link.closed
    with pytest.raises(LinkError):
        _ = link.peer


def test_nobody_there() -> None:
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(LinkError, match=f"no server answers at 127.0.0.1:{port}"):
        ControlLink.connect("127.0.0.1", port, 5)
    with pytest.raises(LinkError, match="no server answers"):
        ControlLink.connect("x" * 300, 1, 5)


def late(connection: socket.socket, decoder: Decoder) -> None:
    request_id, _ = take(connection, decoder)
    connection.recv(1)  # until the link was closed
    with contextlib.suppress(OSError):
        connection.sendall(encode(request_id, m.Status(S.SUCCESS)))


def silent_end(connection: socket.socket, decoder: Decoder) -> None:
    take(connection, decoder)


def half(connection: socket.socket, decoder: Decoder) -> None:
    request_id, _ = take(connection, decoder)
    connection.sendall(encode(request_id, m.Status(S.SUCCESS))[:-1])


def rubbish(connection: socket.socket, decoder: Decoder) -> None:
    take(connection, decoder)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def other_id(connection: socket.socket, decoder: Decoder) -> None:
    request_id, _ = take(connection, decoder)
    connection.sendall(encode(request_id + 1, m.Status(S.SUCCESS)))


def other_type(connection: socket.socket, decoder: Decoder) -> None:
    request_id, _ = take(connection, decoder)
    connection.sendall(encode(request_id, m.Statuses(S.SUCCESS)))


def twice(connection: socket.socket, decoder: Decoder) -> None:
    request_id, _ = take(connection, decoder)
    connection.sendall(encode(request_id, m.Status(S.SUCCESS)) * 2)


@pytest.mark.parametrize(
    "script", [late, silent_end, half, rubbish, other_id, other_type, twice])
def test_whatever_goes_wrong_closes_the_link(script: Script) -> None:
    link, thread = peer(script)
    with pytest.raises(LinkError):
        link.request(m.Heartbeat(), 0.1 if script is late else TIMEOUT)
    assert link.closed
    with pytest.raises(LinkError, match="the link is closed"):
        link.request(m.Heartbeat(), TIMEOUT)
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def test_a_message_that_cannot_be_sent_leaves_the_link_as_it_was(server: Server) -> None:
    link = ControlLink.connect(server.host, server.port, TIMEOUT)
    with pytest.raises(m.ProtocolError):
        link.request(m.ObjectGet(b"x" * 600, 0), TIMEOUT)


def test_close_wakes_a_thread_that_waits() -> None:
    asked = threading.Event()

    def answer_nothing(connection: socket.socket, decoder: Decoder) -> None:
        take(connection, decoder)
        asked.set()
        connection.recv(1)

    link, thread = peer(answer_nothing)
    raised: list[Exception] = []

    def ask() -> None:
        try:
            link.request(m.Heartbeat(), TIMEOUT)
        except LinkError as problem:
            raised.append(problem)

    asking = threading.Thread(target=ask)
    asking.start()
    assert asked.wait(TIMEOUT)
    link.close()
    asking.join(TIMEOUT)
    thread.join(TIMEOUT)
    assert len(raised) == 1
    assert link._retired is None, "its descriptor is closed"


def test_an_interrupted_request_closes_the_link() -> None:
    def interrupt(connection: socket.socket, decoder: Decoder) -> None:
        take(connection, decoder)
        os.kill(os.getpid(), signal.SIGINT)
        connection.recv(1)

    link, thread = peer(interrupt)
    with pytest.raises(KeyboardInterrupt):
        link.request(m.Heartbeat(), TIMEOUT)
    assert link.closed
    thread.join(TIMEOUT)


def test_descriptors_are_not_inherited(server: Server) -> None:
    link = ControlLink.connect(server.host, server.port, TIMEOUT)
    assert link._socket is not None
    assert not link._socket.get_inheritable()
    link.close()


def test_several_requests_in_one_round_trip(server: Server) -> None:
    link = ControlLink.connect(server.host, server.port, TIMEOUT)
    welcome, first = link.exchange([m.ClientInit(1, 1, {}), m.Stats()], TIMEOUT)
    assert isinstance(welcome, m.Welcome)
    assert isinstance(first, m.StatsReply)
    got = link.request(m.GetLocks((m.LockSpec(b"a", 0),)), TIMEOUT)
    released, others = link.exchange(
        [m.ReleaseLocks((got.results[0].lock_id,)), m.GetLocks((m.LockSpec(b"b", 0),))], TIMEOUT)
    assert released == m.Statuses(S.SUCCESS, (S.SUCCESS,))
    assert others.results[0].status is S.SUCCESS
    assert link.request(m.Stats(), TIMEOUT).stats["locks"] == 1


def test_answers_may_come_in_any_order() -> None:
    def turned_round(connection: socket.socket, decoder: Decoder) -> None:
        asked = [take(connection, decoder) for _ in range(2)]
        for number, message in reversed(asked):
            answer = m.Status(S.DONE) if isinstance(message, m.Heartbeat) else m.Statuses(S.FAIL)
            connection.sendall(encode(number, answer))

    link, _ = peer(turned_round)
    answers = link.exchange([m.Heartbeat(), m.ReleaseLocks((1,))], TIMEOUT)
    assert answers == [m.Status(S.DONE), m.Statuses(S.FAIL)]


def test_an_answer_of_the_wrong_kind_among_several_closes_the_link() -> None:
    def crossed(connection: socket.socket, decoder: Decoder) -> None:
        for answer in (m.Statuses(S.SUCCESS), m.Status(S.SUCCESS)):
            number, _ = take(connection, decoder)
            connection.sendall(encode(number, answer))

    link, _ = peer(crossed)
    with pytest.raises(LinkError, match="was answered with"):
        link.exchange([m.Heartbeat(), m.ReleaseLocks((1,))], TIMEOUT)
    assert link.closed


def test_an_answer_that_comes_twice_closes_the_link() -> None:
    def twice(connection: socket.socket, decoder: Decoder) -> None:
        number, _ = take(connection, decoder)
        connection.sendall(2 * encode(number, m.Status(S.SUCCESS)))

    link, _ = peer(twice)
    with pytest.raises(LinkError, match="not asked"):
        link.exchange([m.Heartbeat(), m.Heartbeat()], TIMEOUT)
    assert link.closed


def test_a_farewell_arrives_and_is_not_waited_for(server: Server) -> None:
    link = ControlLink.connect(server.host, server.port, TIMEOUT)
    link.request(m.ClientInit(1, 1, {}), TIMEOUT)
    link.request(m.GetLocks((m.LockSpec(b"a", 0),)), TIMEOUT)
    link.farewell(m.ClientDeinit())
    assert link.closed
    deadline = time.monotonic() + TIMEOUT
    while server.stats()["clients"] or server.stats()["locks"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- streams -------------------------------------------------------------------------------------


def asks(count: int) -> list[m.Heartbeat]:
    return [m.Heartbeat() for _ in range(count)]


def test_a_stream_keeps_a_window_and_the_order() -> None:
    most = 0

    def answer_late(connection: socket.socket, decoder: Decoder) -> None:
        nonlocal most
        waiting: list[int] = []
        for left in range(100, 0, -1):
            waiting.append(take(connection, decoder)[0])
            most = max(most, len(waiting))
            if len(waiting) == WINDOW or left == 1:
                while waiting:
                    number = waiting.pop()  # the newest first
                    connection.sendall(encode(number, m.Status(S.DONE)))

    link, thread = peer(answer_late)
    assert link.stream(asks(100), TIMEOUT, TIMEOUT) == [m.Status(S.DONE)] * 100
    thread.join(TIMEOUT)
    assert most == WINDOW


def test_a_stream_stops_when_its_time_is_over_and_the_link_goes_on(server: Server) -> None:
    link = ControlLink.connect(server.host, server.port, TIMEOUT)
    assert link.request(m.ClientInit(1, 1, {}), TIMEOUT).status is S.SUCCESS
    assert link.stream(asks(5), 0, TIMEOUT) == [m.Status(S.SUCCESS)]
    assert link.stream(asks(50), TIMEOUT, TIMEOUT) == [m.Status(S.SUCCESS)] * 50
    assert link.stream([], TIMEOUT, TIMEOUT) == []
    assert link.request(m.Heartbeat(), TIMEOUT).status is S.SUCCESS


@pytest.mark.parametrize(
    "script", [silent_end, half, rubbish, other_id, other_type, twice])
def test_whatever_goes_wrong_in_a_stream_closes_the_link(script: Script) -> None:
    link, thread = peer(script)
    with pytest.raises(LinkError):
        link.stream(asks(40), TIMEOUT, TIMEOUT)
    assert link.closed
    thread.join(TIMEOUT)
    assert not any(one.name == "dlock-claims" for one in threading.enumerate())


def test_a_stream_without_answers_ends_in_time() -> None:
    end = threading.Event()

    def read_nothing(connection: socket.socket, decoder: Decoder) -> None:
        end.wait(TIMEOUT)

    link, thread = peer(read_nothing)
    claims = [m.ObjectGet(b"x" * 512, 0) for _ in range(100_000)]
    with pytest.raises(LinkError, match="no answer in time"):
        link.stream(claims, TIMEOUT, 0.2)
    end.set()
    thread.join(TIMEOUT)


def test_a_stream_that_cannot_be_sent_closes_the_link(server: Server) -> None:
    link = ControlLink.connect(server.host, server.port, TIMEOUT)
    with pytest.raises(LinkError):
        link.stream([m.ObjectGet(b"x", 0), m.ObjectGet(b"x" * 600, 0)], TIMEOUT, TIMEOUT)
    assert link.closed
    with pytest.raises(LinkError, match="the link is closed"):
        link.stream(asks(1), TIMEOUT, TIMEOUT)


def test_an_interrupted_stream_closes_the_link() -> None:
    def interrupt(connection: socket.socket, decoder: Decoder) -> None:
        take(connection, decoder)
        os.kill(os.getpid(), signal.SIGINT)
        connection.recv(1 << 20)
        connection.recv(1)

    link, thread = peer(interrupt)
    with pytest.raises(KeyboardInterrupt):
        link.stream(asks(40), TIMEOUT, TIMEOUT)
    assert link.closed
    thread.join(TIMEOUT)
