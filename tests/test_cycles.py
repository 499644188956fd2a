"""Refused cycles in the control plane: told, kept, asked for; and from end to end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
from control_client import TIMEOUT, Client, raw
from proxy import Proxy
from registry_world import World

import dlock
import dlock.aio
from dlock import _core
from dlock.control import messages as m
from dlock.control.codec import encode
from dlock.control.registry_cycles import CYCLES_MAX
from dlock.server import Server, ServerConfig
from dlock.types import DlockStatus as S


class Tangle:
    """Two clients, each with a lock that the other wants."""

    def __init__(self, info: dict[str, object] | None = None) -> None:
        self.world = World()
        self.requests = 0
        self.names = (b"left", b"right")
        init = m.ClientInit(1, 1, info or {"host": "here"})
        self.welcomes = [self.world.ask(connection, init) for connection in (1, 2)]
        locks = [self.world.get(1, name) for name in self.names]
        self.locks = [self.world.get(2, name) for name in self.names]
        assert [one.slot for one in locks] == [one.slot for one in self.locks]

    def lock(self, who: int, lock: int, wait: bool = True) -> _core.Reply:
        """Client `who`, as its actor 7, wants this lock. Events stay where they are."""
        self.requests += 1
        replies, events = self.world.engine.step([_core.Request(
            request_id=self.requests, op=_core.DLK_OP_LOCK, flags=_core.DLK_FLAG_DEADLOCK,
            session=self.welcomes[who].session_slot, lock_id=self.locks[lock].lock_id,
            slot=self.locks[lock].slot, owner=7 << 32 | self.requests,
            wait_ms=_core.DLK_WAIT_FOREVER if wait else 0)], self.world.now_ns)
        self.world.events += events
        return replies[-1]

    def tie(self) -> None:
        assert self.lock(0, 0).result == _core.DLK_RESULT_GRANTED
        assert self.lock(1, 1).result == _core.DLK_RESULT_GRANTED
        assert self.lock(0, 1).result == _core.DLK_RESULT_QUEUED

    def refused(self) -> int:
        """The number of one more refused cycle."""
        reply = self.lock(1, 0)
        assert reply.result == _core.DLK_RESULT_DEADLOCK
        return reply.value


def test_a_cycle_is_told_by_name() -> None:
    tangle = Tangle()
    tangle.tie()
    answer = tangle.world.ask(9, m.GetCycle(tangle.refused()))
    first, second = (welcome.client_id for welcome in tangle.welcomes)
    here = {"host": "here"}
    assert answer == m.Cycle(S.SUCCESS, (
        m.CycleEdge(b"left", second, 7, here), m.CycleEdge(b"right", first, 7, here)), 2)


def test_a_question_that_overtakes_the_events_is_answered_right() -> None:
    tangle = Tangle()
    tangle.tie()
    number = tangle.refused()
    waiting = list(tangle.world.events)
    assert len(waiting) == 2
    key = tangle.world.send(2, m.GetCycle(number))
    assert key not in tangle.world.answers
    tangle.world.run()
    assert tangle.world.status(key) is S.SUCCESS


def test_names_are_kept_when_their_owners_are_gone() -> None:
    tangle = Tangle()
    tangle.tie()
    number = tangle.refused()
    tangle.world.run()
    before = tangle.world.ask(9, m.GetCycle(number))
    for connection in (1, 2):
        tangle.world.ask(connection, m.ClientDeinit())
    assert tangle.world.stats()["locks"] == 0
    assert tangle.world.ask(9, m.GetCycle(number)) == before


def test_who_is_gone_before_the_events_come_has_no_name() -> None:
    tangle = Tangle()
    tangle.tie()
    number = tangle.refused()
    late = list(tangle.world.events)
    tangle.world.events.clear()
    for connection in (1, 2):
        tangle.world.ask(connection, m.ClientDeinit())
    tangle.world.events.extend(late)
    answer = tangle.world.ask(9, m.GetCycle(number))
    assert [(edge.descriptor, edge.info) for edge in answer.edges] == [(b"", {}), (b"", {})]


def test_the_last_1024_are_kept() -> None:
    tangle = Tangle()
    tangle.tie()
    numbers = [tangle.refused() for _ in range(CYCLES_MAX + 1)]
    assert numbers == list(range(1, CYCLES_MAX + 2))
    tangle.world.run()
    assert tangle.world.ask(9, m.GetCycle(numbers[0])) == m.Cycle(S.FAIL)
    assert tangle.world.ask(9, m.GetCycle(numbers[1])).status is S.SUCCESS
    assert tangle.world.ask(9, m.GetCycle(numbers[-1])).status is S.SUCCESS
    assert tangle.world.ask(9, m.GetCycle(CYCLES_MAX + 2)).status is S.FAIL
    assert tangle.world.stats()["FAIL"] == 2


def test_a_cycle_that_was_not_wholly_told_is_unknown() -> None:
    tangle = Tangle()
    tangle.tie()
    number = tangle.refused()
    tangle.world.events.pop()
    assert tangle.world.ask(9, m.GetCycle(number)).status is S.FAIL


def test_the_longest_answer_fits_a_message() -> None:
    """32 edges, each with the longest name and as much info as a client may give."""
    info: dict[str, object] = {f"{item:032}": "x" * 256 for item in range(16)}
    tangle = Tangle(info)
    name = b"d" * 512
    lock = tangle.world.get(1, name)
    who = tangle.welcomes[0].client_id
    edges = _core.DLK_CYCLE_EDGES_MAX
    for actor in range(edges):
        tangle.world.events.append(_core.Event(
            _core.DLK_EVENT_DEADLOCK, who, lock.slot, lock.lock_id, 5, 40 << 32 | actor))
    answer = tangle.world.ask(9, m.GetCycle(5))
    assert (answer.status, answer.length, len(answer.edges)) == (S.SUCCESS, 40, edges)
    assert [edge.actor for edge in answer.edges] == list(range(edges))
    assert answer.edges[0].info == info
    assert answer.edges[-1].info == {}
    assert len(encode(1, answer)) <= _core.DLK_CONTROL_MESSAGE_BYTES_MAX


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(ServerConfig(port=0, session_ttl_ms=60_000))
    yield one
    one.stop()


ATTACH = _core.layout("dlk_attach", (
    "op", "version", "client_id", "session_slot", "attach", "magic", "secret"))
REQUEST = _core.layout("dlk_request", _core.Request._fields)
REPLY = _core.layout("dlk_reply", _core.Reply._fields)


class Peer:
    """A client whose data connection is driven frame by frame."""

    def __init__(self, server: Server) -> None:
        self.control = Client(server.host, server.port)
        welcome = self.control.welcome
        assert welcome is not None
        self.id = welcome.client_id
        self.locks = self.control.get(b"left", b"right")
        self.data = raw(server.host, welcome.data_port)
        self.data.sendall(ATTACH.pack(
            _core.DLK_OP_ATTACH, 1, self.id, welcome.session_slot, welcome.attach,
            _core.DLK_ATTACH_MAGIC, welcome.secret))
        assert self.reply().result == _core.DLK_RESULT_DONE

    def reply(self) -> _core.Reply:
        self.data.settimeout(TIMEOUT)
        frame = b""
        while len(frame) < REPLY.size:
            frame += self.data.recv(REPLY.size - len(frame))
        return _core.Reply(*REPLY.unpack(frame))

    def want(self, lock: int) -> _core.Reply:
        one = self.locks[lock]
        self.data.sendall(REQUEST.pack(*_core.Request(
            request_id=lock + 1, op=_core.DLK_OP_LOCK, flags=_core.DLK_FLAG_DEADLOCK,
            session=self.id, lock_id=one.lock_id, slot=one.slot, owner=7 << 32 | lock,
            wait_ms=_core.DLK_WAIT_FOREVER)))
        return self.reply()

    def close(self) -> None:
        self.data.close()
        self.control.link.close()


def test_from_end_to_end(server: Server) -> None:
    """A hundred times, and at once after each refusal: the cycle is always known."""
    one, other = Peer(server), Peer(server)
    assert one.want(0).result == _core.DLK_RESULT_GRANTED
    assert other.want(1).result == _core.DLK_RESULT_GRANTED
    assert one.want(1).result == _core.DLK_RESULT_QUEUED
    for number in range(1, 101):
        refused = other.want(0)
        assert (refused.result, refused.value) == (_core.DLK_RESULT_DEADLOCK, number)
        answer = other.control.ask(m.GetCycle(number))
        assert answer.status is S.SUCCESS
        told = [(edge.descriptor, edge.client_id, edge.actor) for edge in answer.edges]
        assert told == [(b"left", other.id, 7), (b"right", one.id, 7)]
        assert answer.edges[0].info == {"program": "test"}
    stats = server.stats()
    assert (stats["DEADLOCKS"], stats["DEADLOCK_GIVEN_UP"]) == (100, 0)
    assert stats["DEADLOCK_STEPS"] > 0
    one.close()
    other.close()


@pytest.fixture
def proxied() -> Iterator[Proxy]:
    server = Server(ServerConfig(host="127.0.0.1", port=0, wait_mode="block"))
    proxy = Proxy(server)
    yield proxy
    proxy.close()
    server.stop()


LATE_S = 0.4  # the server hears of the lease so much later than it was asked for


def test_a_lease_of_ones_own_that_is_over_here_and_not_there_is_no_cycle(proxied: Proxy) -> None:
    """The server still counts the hold, which this thread has no longer."""
    with dlock.connect(proxied.address) as client:
        lock, other = (client.lock("fading", lease=0.5, renew=False) for _ in range(2))
        with lock:
            pass
        proxied.silence()
        mended = threading.Timer(LATE_S, proxied.mend)
        mended.start()
        assert lock.acquire()
        while lock.held:
            time.sleep(0.001)
        assert other.acquire(timeout=20, lease=30)
        other.release()
        mended.join()
        with pytest.raises(dlock.LockLost):
            lock.release()


def test_nor_is_it_one_between_tasks(proxied: Proxy) -> None:
    async def program() -> None:
        async with await dlock.aio.connect(proxied.address) as client:
            lock, other = (client.lock("fading", lease=0.5, renew=False) for _ in range(2))
            async with lock:
                pass
            proxied.silence()
            asyncio.get_running_loop().call_later(LATE_S, proxied.mend)
            assert await lock.acquire()
            while lock.held:
                await asyncio.sleep(0.001)
            assert await other.acquire(timeout=20, lease=30)
            await other.release()
            with pytest.raises(dlock.LockLost):
                await lock.release()

    asyncio.run(program())
