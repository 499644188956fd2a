"""A primary whose turns the test takes itself, under a clock that the test sets, at sockets that
the test made: no thread, no waiting, and the same as with threads.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from control_client import answers, encode, eventually

from dlock import _core
from dlock.control import messages as m
from dlock.control.codec import Decoder
from dlock.control.loop import SERVES_PER_TTL
from dlock.control.state_dir import StateDirError
from dlock.control.state_file import State, encode_state
from dlock.primary import AddressError, Primary, ServerConfig, ServerError, StateError
from dlock.types import DlockStatus as S

MS_NS = 1_000_000
TTL_MS = 10_000
ENDED_NS = 2**64 - 1
PLACE = ("192.0.2.7", 21616, 21617)  # what clients are told; nobody listens there


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def listening() -> socket.socket:
    """Under a name that the kernel chooses."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("")
    listener.listen(64)
    return listener


class ByHand:
    """A primary, its clock, and who is connected to it."""

    def __init__(self, state_dir: Path | None = None, *, take_over: bool = False,
                 random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self.now_ns = self.begin_ns = _core.now_ns()  # not far from what other tests have seen
        _core.set_clock(self.now_ns)
        control, self.data = listening(), listening()
        self.control_name = control.getsockname()
        host, port, data_port = PLACE
        self.primary = Primary(
            ServerConfig(host=host, port=port, data_port=data_port, max_locks=64, max_clients=64,
                         max_objects=16, session_ttl_ms=TTL_MS, wait_mode="block",
                         state_dir=state_dir, take_over=take_over),
            listener=control, data_listen_fd=self.data.fileno(), random_bytes=random_bytes)
        self.primary.loop.begin()
        self.sockets: list[socket.socket] = []

    def connect(self, name: object) -> socket.socket:
        """A connection that does not wait either."""
        one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        one.connect(name)  # type: ignore[arg-type]
        one.setblocking(False)
        self.sockets.append(one)
        return one

    def settle(self) -> None:
        """Turns until there is nothing to do at this time; not for ever."""
        for _ in range(100):
            loop_ns, plane_ns = self.primary.loop.turn(), self.primary.plane.turn()
            self.again_ns = min(loop_ns, plane_ns)
            ready = select.select([self.primary.loop], [], [], 0)[0]
            if self.primary.loop.stopping or (not ready and self.again_ns > self.now_ns):
                return
        raise AssertionError("it never comes to rest")

    def pass_ms(self, ms: int) -> None:
        """Time goes on, with turns whenever they are wanted."""
        end_ns = self.now_ns + ms * MS_NS
        self.settle()
        while self.again_ns < end_ns:
            self.jump_to(self.again_ns)
            self.settle()
        self.jump_to(end_ns)
        self.settle()

    def jump_to(self, now_ns: int) -> None:
        """Nobody has a turn meanwhile."""
        self.now_ns = now_ns
        _core.set_clock(now_ns)

    def ask(self, connection: socket.socket, message: m.Message, number: int = 1) -> m.Message:
        """One request and its answer."""
        connection.sendall(encode(number, message))
        self.settle()
        taken = self.heard(connection)
        assert len(taken) == 1
        return taken[0]

    def heard(self, connection: socket.socket) -> list[m.Message]:
        """What lies there."""
        decoder, messages = Decoder(), []
        try:
            decoder.feed(connection.recv(65536))
        except BlockingIOError:
            return []
        while (taken := decoder.take()) is not None:
            messages.append(taken[1])
        return messages

    def end_epoch(self) -> None:
        """The last turns of an orderly end."""
        self.primary.loop.stop()
        self.primary.loop.finish()
        self.primary.plane.stop()
        while self.primary.plane.turn() != ENDED_NS:
            self.jump_to(self.now_ns + 10 * MS_NS)

    def close(self) -> None:
        """Everything, whatever the test has left."""
        self.primary.close()
        self.data.close()
        for one in self.sockets:
            one.close()
        _core.set_clock(0)


Start = Callable[..., ByHand]


@pytest.fixture
def start() -> Iterator[Start]:
    """Primaries that are closed at the end, in whatever state they are."""
    started: list[ByHand] = []

    def one(*arguments: object, **options: object) -> ByHand:
        started.append(ByHand(*arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    yield one
    for primary in started:
        primary.close()
    _core.set_clock(0)


def attached(hand: ByHand, welcome: m.Welcome) -> socket.socket:
    """A data connection that has proved the session."""
    link = hand.connect(hand.data.getsockname())
    frame = _core.layout("dlk_attach", (
        "request_id", "op", "version", "client_id", "session_slot", "attach", "magic", "secret"))
    link.sendall(frame.pack(1, _core.DLK_OP_ATTACH, _core.DLK_PROTOCOL_VERSION_MAX,
                            welcome.client_id, welcome.session_slot, welcome.attach,
                            _core.DLK_ATTACH_MAGIC, welcome.secret))
    hand.settle()
    assert reply(link).result == _core.DLK_RESULT_DONE
    return link


_REQUEST = _core.layout("dlk_request", _core.Request._fields)
_REPLY = _core.layout("dlk_reply", _core.Reply._fields)


def reply(link: socket.socket) -> _core.Reply:
    return _core.Reply(*_REPLY.unpack(link.recv(_REPLY.size)))


def gone_without_a_word(connection: socket.socket) -> bool:
    """Closed, with or without what it never read."""
    try:
        return connection.recv(65536) == b""
    except ConnectionResetError:
        return True


# ---- It serves -----------------------------------------------------------------------------------


def test_a_whole_life_takes_no_thread_and_no_time(start: Start, tmp_path: Path) -> None:
    before = threading.active_count()
    hand = start(tmp_path)
    client = hand.connect(hand.control_name)
    welcome = hand.ask(client, m.ClientInit(1, 1, {"program": "by hand"}))
    assert isinstance(welcome, m.Welcome)
    assert (welcome.status, welcome.data_port) == (S.SUCCESS, PLACE[2])
    got = hand.ask(client, m.GetLocks((m.LockSpec(b"name", 0),)))
    assert isinstance(got, m.LockIds)
    lock = got.results[0]
    link = attached(hand, welcome)
    link.sendall(_REQUEST.pack(*_core.Request(
        request_id=2, op=_core.DLK_OP_LOCK, session=welcome.client_id, lock_id=lock.lock_id,
        slot=lock.slot, lease_ms=700)))
    hand.settle()
    assert reply(link).result == _core.DLK_RESULT_GRANTED
    engine = hand.primary.plane.engine
    assert _core.lib.dlk_engine_entries_in_use(engine) == 1
    assert _core.lib.dlk_engine_check(engine) == 0
    left = hand.ask(client, m.ClientDeinit())
    assert isinstance(left, m.Status)
    assert left.status is S.SUCCESS
    assert hand.now_ns == hand.begin_ns
    assert threading.active_count() == before
    hand.end_epoch()
    assert (hand.primary.host, hand.primary.port) == PLACE[:2]


def test_what_nobody_may_guess_comes_from_its_owner(start: Start) -> None:
    asked: list[int] = []

    def numbered(count: int) -> bytes:
        asked.append(count)
        return bytes([len(asked)]) * count

    hand = start(random_bytes=numbered)
    assert hand.primary.incarnation == 0x0101010101010101
    welcome = hand.ask(hand.connect(hand.control_name), m.ClientInit(1, 1, {}))
    assert isinstance(welcome, m.Welcome)
    assert len(set(welcome.secret)) == 1
    assert len(asked) > 1


def test_sessions_end_by_its_clock(start: Start) -> None:
    hand = start()
    welcome = hand.ask(hand.connect(hand.control_name), m.ClientInit(1, 1, {}))
    assert isinstance(welcome, m.Welcome)
    hand.pass_ms(TTL_MS - 1)
    assert hand.primary.stats()["clients"] == 1
    hand.pass_ms(1)
    stats = hand.primary.stats()
    assert (stats["clients"], stats["SESSIONS_EXPIRED"], stats["STALLS"]) == (0, 1, 0)


def test_who_connects_and_speaks_before_a_turn_is_heard_in_it(start: Start) -> None:
    """A turn that only accepts asks to be called again at once."""
    hand = start()
    clients = [hand.connect(hand.control_name) for _ in range(40)]
    for one in clients:
        one.sendall(encode(1, m.ClientInit(1, 1, {})))
    assert hand.primary.loop.turn() == 0
    hand.settle()
    for one in clients:
        (welcome,) = hand.heard(one)
        assert isinstance(welcome, m.Welcome)
        assert welcome.status is S.SUCCESS


# ---- It stands still, it is replaced -------------------------------------------------------------


def test_after_a_pause_it_looks_before_it_answers(start: Start, tmp_path: Path) -> None:
    """Both halves: the loop confirms first, the plane waits for that."""
    hand = start(tmp_path)
    client = hand.connect(hand.control_name)
    welcome = hand.ask(client, m.ClientInit(1, 1, {}))
    assert isinstance(welcome, m.Welcome)
    link = attached(hand, welcome)
    link.sendall(_REQUEST.pack(*_core.Request(
        request_id=2, op=_core.DLK_OP_PING, session=welcome.client_id)))
    hand.jump_to(hand.now_ns + TTL_MS // SERVES_PER_TTL * MS_NS + MS_NS)
    again_ns = hand.primary.plane.turn()
    assert again_ns == hand.now_ns + MS_NS
    with pytest.raises(BlockingIOError):
        link.recv(1)
    hand.settle()
    assert reply(link).result == _core.DLK_RESULT_DONE
    assert hand.primary.stats()["UNCONFIRMED"] == 1


def test_a_replaced_primary_says_nothing_any_more(start: Start, tmp_path: Path) -> None:
    hand = start(tmp_path)
    client = hand.connect(hand.control_name)
    welcome = hand.ask(client, m.ClientInit(1, 1, {}))
    assert isinstance(welcome, m.Welcome)
    link = attached(hand, welcome)
    (tmp_path / "state-2").write_bytes(encode_state(State(2, 1)))
    hand.jump_to(hand.now_ns + TTL_MS * MS_NS)
    link.sendall(_REQUEST.pack(*_core.Request(
        request_id=2, op=_core.DLK_OP_PING, session=welcome.client_id)))
    client.sendall(encode(2, m.Heartbeat()))
    with pytest.raises(StateDirError, match="another primary took over"):
        hand.settle()
    hand.primary.plane.stop()
    assert hand.primary.plane.turn() == ENDED_NS
    hand.primary.close()
    for one in (client, link):
        assert gone_without_a_word(one)


def test_a_paused_one_is_taken_over_and_a_dead_one_replaced(start: Start, tmp_path: Path) -> None:
    first = start(tmp_path)
    with pytest.raises(StateError, match="in use"):
        start(tmp_path)
    second = start(tmp_path, take_over=True)
    assert (first.primary.epoch, second.primary.epoch) == (1, 2)
    second.primary.release_state()
    first.primary.release_state()
    assert start(tmp_path).primary.epoch == 3


class KilledError(BaseException):
    """The process ends here."""


def test_it_can_be_killed_in_the_middle_of_a_write(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was answered; what it had is given back, and the next one starts."""
    hand = start(tmp_path)
    client = hand.connect(hand.control_name)
    client.sendall(encode(1, m.ClientInit(1, 1, {})))

    def killed(_fd: int) -> None:
        raise KilledError

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KilledError):
        hand.settle()
    monkeypatch.undo()
    hand.primary.close()
    hand.primary.close()
    assert gone_without_a_word(client)
    assert start(tmp_path).primary.epoch == 2


def test_it_begins_anew_at_the_same_sockets(start: Start) -> None:
    """Above the epoch that a client has seen. Its counters go on."""
    hand = start()
    client = hand.connect(hand.control_name)
    hand.ask(client, m.ClientInit(1, 1, {}))
    before, incarnation = hand.primary.stats(), hand.primary.incarnation
    client = hand.connect(hand.control_name)
    client.sendall(encode(1, m.ClientReinit(1, 1, 77, b"s" * 16, 41, 5, 0, {})))
    hand.settle()
    assert hand.primary.loop.stopping
    assert hand.primary.loop.epoch_above == 41
    for epoch in (42, 52):
        hand.end_epoch()
        hand.primary.begin_anew()
        hand.primary.loop.begin()
        assert hand.primary.epoch == epoch
        assert hand.primary.incarnation != incarnation
        assert hand.primary.recovery is not None
        incarnation = hand.primary.incarnation
        client = hand.connect(hand.control_name)
        link = hand.connect(hand.data.getsockname())
        stats = hand.ask(client, m.Stats())
        assert isinstance(stats, m.StatsReply)
        assert dict(stats.stats)["epoch"] == epoch
        hand.settle()
        assert hand.primary.plane.counters()[
            _core.counter_names().index("CONNECTIONS")] == 1  # the data connection
        link.close()
        client.sendall(encode(1, m.ClientReinit(1, 1, 77, b"s" * 16, epoch + 9, 5, 0, {})))
        hand.settle()
    assert hand.primary.stats()["REQUESTS"] >= before["REQUESTS"]
    assert hand.primary.stats()["CONNECTIONS"] == 2


def test_who_has_served_once_waits_in_every_epoch_after(start: Start) -> None:
    """Its first clients may believe in what they hold, however often it has begun anew since."""
    hand = start()
    hand.ask(hand.connect(hand.control_name), m.ClientInit(1, 1, {}))
    for seen in (41, 51):
        client = hand.connect(hand.control_name)
        client.sendall(encode(1, m.ClientReinit(1, 1, 77, b"s" * 16, seen, 5, 0, {})))
        hand.settle()
        hand.end_epoch()
        hand.primary.begin_anew()
        hand.primary.loop.begin()
        assert hand.primary.stats()["ready"] == 0
    hand.pass_ms(TTL_MS)
    assert hand.primary.stats()["ready"] == 0
    hand.pass_ms(1000)
    assert hand.primary.stats()["ready"] == 1


def test_who_cannot_begin_anew_gives_everything_back(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    hand = start()
    client = hand.connect(hand.control_name)
    client.sendall(encode(1, m.ClientReinit(1, 1, 77, b"s" * 16, 41, 5, 0, {})))
    hand.settle()
    hand.end_epoch()

    def none_left(*_arguments: object) -> None:
        raise MemoryError("no memory for tables of these sizes")

    monkeypatch.setattr("dlock.primary.Registry", none_left)
    with pytest.raises(MemoryError):
        hand.primary.begin_anew()
    assert hand.primary.stats()["EPOCH_AHEAD"] >= 1
    hand.close()
    assert eventually(lambda: descriptors() <= before)


# ---- What it is given ----------------------------------------------------------------------------


def test_a_start_that_fails_keeps_nothing(tmp_path: Path) -> None:
    """But for the data socket, of which it has only had a copy."""
    (tmp_path / "state-1").write_bytes(b"no state")
    control, data = listening(), listening()
    before = descriptors()
    with pytest.raises(StateError, match="damaged"):
        Primary(ServerConfig(state_dir=tmp_path), listener=control, data_listen_fd=data.fileno())
    assert control.fileno() == -1
    assert eventually(lambda: descriptors() <= before - 1)
    control = listening()
    with pytest.raises(ServerError, match="max_locks"):
        Primary(ServerConfig(max_locks=0), listener=control)
    assert control.fileno() == -1
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf, pytest.raises(AddressError):
        Primary(ServerConfig(), listener=listening(), data_listen_fd=deaf.fileno())
    data.close()
    assert eventually(lambda: descriptors() <= before - 2)


def test_a_descriptor_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="Bad file descriptor"):
        Primary(ServerConfig(state_dir=tmp_path), listener=listening(), data_listen_fd=9999)


def test_given_sockets_of_the_internet_say_where_they_are() -> None:
    """Also with threads of the caller's own."""
    control = socket.create_server(("127.0.0.1", 0))
    data = socket.create_server(("127.0.0.1", 0))
    name = control.getsockname()
    primary = Primary(ServerConfig(port=1), listener=control, data_listen_fd=data.fileno())
    assert (primary.host, primary.port) == name
    assert primary.data_port == data.getsockname()[1]
    bodies: list[Callable[[], object]] = [primary.loop.run, primary.plane.run]
    threads = [threading.Thread(target=body, daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    with socket.create_connection(name, 20) as client:
        client.sendall(encode(1, m.ClientInit(1, 1, {})))
        welcome = answers(client, 1)[0][1]
        assert isinstance(welcome, m.Welcome)
        assert welcome.data_port == primary.data_port
    primary.loop.stop()
    primary.plane.stop()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    primary.close()
    data.close()
