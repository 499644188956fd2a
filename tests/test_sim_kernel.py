"""The kernel, the network and the event loop of the simulator, with protocols of their own in the
place of dlock's: what is delivered, when, and what befalls it."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sim.kernel import (
    MS_NS,
    NEVER_NS,
    SECOND_NS,
    Actor,
    Host,
    Kernel,
    NodeClock,
)
from sim.loop import SimLoop
from sim.machine import Machine
from sim.network import Network, Weather

PORT = 7


class LoopNode(Actor):
    """A node that is nothing but an event loop."""

    def __init__(self, small: SmallWorld, name: str, rate_ppm: int = 0) -> None:
        self.place = name
        self.clock = NodeClock(5 * SECOND_NS, rate_ppm)
        self.paused = False
        self.alive = True
        self.small = small
        self.loop = SimLoop(self, small.machine, small.network)
        super().__init__(name, self, self.loop.fd)
        self.loop.waker = self
        self.told: list[tuple[int, str]] = []
        small.kernel.watch_actor(self)
        small.nodes.append(self)

    def now_ns(self) -> int:
        return self.clock.read_ns(self.small.kernel.now_ns)

    def turn(self) -> int:
        own_ns = self.loop.run_once()
        return NEVER_NS if own_ns == NEVER_NS else self.clock.true_ns(own_ns)

    def tell(self, text: str) -> None:
        self.told.append((self.small.kernel.now_ns, text))

    def start(self, main: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        self.small.kernel.wake_soon(self)
        return self.loop.create_task(main)


class SmallWorld:
    """A kernel with a network and a few nodes."""

    def __init__(self, seed: int = 1, weather: Weather | None = None) -> None:
        self.machine = Machine(seed)
        self.kernel = Kernel(Random(seed), self.enter)
        self.network = Network(self.kernel, Random(seed), weather or Weather())
        self.nodes: list[LoopNode] = []
        self.machine.install()
        self.enter(None)

    def enter(self, host: Host | None) -> None:
        now_ns = self.kernel.now_ns
        self.machine.set_clock(host.clock.read_ns(now_ns) if host is not None else now_ns + 1)

    def run(self, span_ns: int) -> None:
        """Until so much time has gone by, and everything that is due then has happened."""
        end_ns = self.kernel.now_ns + span_ns
        self.kernel.look()
        bell = Bell(self.kernel)
        self.kernel.wake(bell, end_ns)
        while not bell.rung and self.kernel.step() is not None:
            pass

    def run_until(self, done: Callable[[], bool], span_ns: int = 100 * SECOND_NS) -> None:
        end_ns = self.kernel.now_ns + span_ns
        while not done():
            assert self.kernel.step() is not None, "nothing is to come any more"
            assert self.kernel.now_ns < end_ns, "it takes too long"

    def close(self) -> None:
        for node in self.nodes:
            for task in asyncio.all_tasks(node.loop):
                task.cancel()
        self.network.heal()
        self.run(SECOND_NS)
        self.network.close()
        for node in self.nodes:
            node.loop.close()
        self.kernel.close()
        self.machine.remove()


class Bell(Actor):
    def __init__(self, kernel: Kernel) -> None:
        super().__init__("bell")
        self.rung = False

    def turn(self) -> int:
        self.rung = True
        return NEVER_NS


@pytest.fixture
def small() -> Iterator[SmallWorld]:
    world = SmallWorld()
    yield world
    world.close()


class Echo(asyncio.Protocol):
    """Sends back what it gets, and tells its node."""

    def __init__(self, node: LoopNode) -> None:
        self.node = node

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.node.tell("made")

    def data_received(self, data: bytes) -> None:
        self.node.tell(f"got {data.decode()}")
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.node.tell("lost")


class Caller(Echo):
    """Keeps what comes."""

    def __init__(self, node: LoopNode) -> None:
        super().__init__(node)
        self.got = b""

    def data_received(self, data: bytes) -> None:
        self.got += data
        self.node.tell(f"got {data.decode()}")


def serve(small: SmallWorld, name: str = "server") -> LoopNode:
    node = LoopNode(small, name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("")
    listener.listen(8)
    node.start(node.loop.create_unix_server(lambda: Echo(node), sock=listener))
    small.network.listen(node, PORT, listener, "echo")
    small.run(MS_NS)
    return node


def call(small: SmallWorld, name: str = "alice") -> tuple[LoopNode, Caller]:
    node = LoopNode(small, name)
    connecting = node.start(node.loop.create_connection(lambda: Caller(node), "server", PORT))
    small.run_until(connecting.done)
    caller = connecting.result()[1]
    assert isinstance(caller, Caller)
    return node, caller


def send(node: LoopNode, caller: Caller, text: bytes) -> None:
    node.loop.call_soon_threadsafe(caller.transport.write, text)


# ---- Time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_ppm", [-499, 0, 7, 499])
def test_a_clock_can_be_asked_both_ways(rate_ppm: int) -> None:
    clock = NodeClock(17 * SECOND_NS, rate_ppm)
    for true_ns in (0, 1, 999, 10**9, 123_456_789_012):
        own_ns = clock.read_ns(true_ns)
        assert clock.read_ns(clock.true_ns(own_ns)) >= own_ns
        assert clock.true_ns(own_ns) <= true_ns
    before_ns = clock.read_ns(10**10)
    clock.change_rate(10**10, -rate_ppm)
    assert clock.read_ns(10**10) == before_ns


def test_a_loop_waits_in_virtual_time(small: SmallWorld) -> None:
    node = LoopNode(small, "alice", rate_ppm=400)
    began = time.perf_counter()
    sleeping = node.start(asyncio.sleep(3600))
    small.run(3599 * SECOND_NS - 2 * SECOND_NS)
    assert not sleeping.done()
    small.run_until(sleeping.done)
    # Its clock is fast: by true time it has slept for less.
    assert 3598 * SECOND_NS < small.kernel.now_ns < 3599 * SECOND_NS
    assert small.kernel.steps < 20, "it comes back only when something is due"
    assert time.perf_counter() - began < 3000


def test_the_clocks_of_the_library_are_those_of_the_node(small: SmallWorld) -> None:
    from dlock import _core

    node = LoopNode(small, "alice")
    seen: list[tuple[int, float]] = []
    small.run(SECOND_NS)
    node.start(note(seen, _core.now_ns))
    small.run(SECOND_NS)
    ((native_ns, monotonic),) = seen
    assert native_ns // 1000 == round(monotonic * 1e6)
    assert 6 * SECOND_NS <= native_ns < 7 * SECOND_NS


async def note(seen: list[tuple[int, float]], now_ns: Callable[[], int]) -> None:
    seen.append((now_ns(), time.monotonic()))


def test_nothing_sleeps(small: SmallWorld) -> None:
    with pytest.raises(AssertionError, match="seam"):
        time.sleep(0.001)


def test_a_stopped_node_has_its_turns_later(small: SmallWorld) -> None:
    node = LoopNode(small, "alice")
    sleeping = node.start(asyncio.sleep(1))
    small.run(SECOND_NS // 2)
    node.paused = True
    small.run(10 * SECOND_NS)
    assert not sleeping.done()
    node.paused = False
    small.kernel.go_on(node)
    small.run(SECOND_NS)
    assert sleeping.done()


def test_the_machine_is_given_back() -> None:
    kept = time.monotonic, os.urandom, os.fsync
    machine = Machine(3)
    machine.install()
    assert os.urandom(8) == Machine(3).random_bytes(8)
    assert time.monotonic is not kept[0]
    machine.remove()
    assert (time.monotonic, os.urandom, os.fsync) == kept


# ---- The network ---------------------------------------------------------------------------------


def test_bytes_arrive_later_and_in_order(small: SmallWorld) -> None:
    small.network.weather = Weather(delay_us=20_000, split=1.0)
    server = serve(small)
    node, caller = call(small)
    sent_ns = small.kernel.now_ns
    for number in range(100):
        send(node, caller, b"%d," % number)
    whole = b"".join(b"%d," % number for number in range(100))
    small.run_until(lambda: len(caller.got) == len(whole))
    assert caller.got == whole
    assert small.kernel.now_ns > sent_ns + 2 * 10 * MS_NS, "one way takes at least half of 20 ms"
    assert len([text for _, text in server.told if text.startswith("got")]) > 1, "it came in pieces"


def test_one_connection_overtakes_another(small: SmallWorld) -> None:
    small.network.weather = Weather(slow=0.5, slow_ms=400)
    server = serve(small)
    calls = [call(small, name) for name in ("alice", "bob", "carol", "dave")]
    for number in range(20):
        for node, caller in calls:
            send(node, caller, b"%s%d," % (node.name.encode(), number))
    small.run_until(lambda: all(caller.got.count(b",") == 20 for _, caller in calls))
    for node, caller in calls:
        assert caller.got == b"".join(b"%s%d," % (node.name.encode(), n) for n in range(20))
    arrived = [text for _, text in server.told if text.startswith("got")]
    assert arrived != sorted(arrived, key=lambda text: text[-2:])


def test_a_sender_waits_when_the_window_is_full(small: SmallWorld) -> None:
    small.network.weather = Weather(window_bytes=2048)
    server = serve(small)
    node, caller = call(small)
    server.paused = True
    send(node, caller, b"x" * 1_000_000)
    small.run(SECOND_NS)
    assert caller.transport.get_write_buffer_size() > 0
    server.paused = False
    small.kernel.go_on(server)
    small.kernel.wake_soon(server)
    small.run_until(lambda: len(caller.got) == 1_000_000)


def test_who_closes_is_seen_to_have_closed(small: SmallWorld) -> None:
    server = serve(small)
    node, caller = call(small)
    node.loop.call_soon_threadsafe(caller.transport.close)
    small.run(SECOND_NS)
    assert [text for _, text in server.told] == ["made", "lost"]
    assert not small.network.connections


@pytest.mark.parametrize("told", [(True, True), (True, False), (False, True), (False, False)])
def test_a_cut_loses_the_tail_and_is_told_as_it_says(
    small: SmallWorld, told: tuple[bool, bool]
) -> None:
    server = serve(small)
    node, caller = call(small)
    (connection,) = small.network.connections
    small.network.cut(connection, told, True)
    small.run(10 * SECOND_NS)
    assert (node.told[-1][1] == "lost", server.told[-1][1] == "lost") == told
    if not told[0]:
        send(node, caller, b"anybody?")
        small.run(SECOND_NS)
        assert node.told[-1][1] == "lost"
    assert not any("anybody" in text for _, text in server.told)


def test_a_cut_that_nobody_answers_stays_silent(small: SmallWorld) -> None:
    serve(small)
    node, caller = call(small)
    (connection,) = small.network.connections
    small.network.cut(connection, (False, False), False)
    send(node, caller, b"anybody?")
    small.run(100 * SECOND_NS)
    assert [text for _, text in node.told] == ["made"]


def test_a_silence_holds_bytes_up_and_loses_none(small: SmallWorld) -> None:
    serve(small)
    node, caller = call(small)
    small.network.silence("server", "alice")
    send(node, caller, b"hello")
    small.run(20 * SECOND_NS)
    assert caller.got == b""
    small.network.heal()
    small.run(5 * SECOND_NS)
    assert caller.got == b"hello"


def test_bytes_of_an_old_connection_arrive_after_those_of_a_new_one(small: SmallWorld) -> None:
    server = serve(small)
    node, caller = call(small)
    (connection,) = small.network.connections
    for end in connection.ends:
        end.out.stall(small.kernel.now_ns + 5 * SECOND_NS)
    send(node, caller, b"old")
    node.loop.call_soon_threadsafe(caller.transport.close)
    small.run(SECOND_NS)
    again = node.start(node.loop.create_connection(lambda: Caller(node), "server", PORT))
    small.run_until(again.done)
    send(node, again.result()[1], b"new")
    small.run(10 * SECOND_NS)
    assert [text for _, text in server.told if text.startswith("got")] == ["got new", "got old"]


def test_a_killed_node_is_seen_or_not(small: SmallWorld) -> None:
    server = serve(small)
    (alice, _), (bob, caller) = call(small, "alice"), call(small, "bob")
    alice.alive = False
    small.kernel.forget(alice.fd)
    small.network.process_died(alice, silently=False)
    small.run(SECOND_NS)
    assert [text for _, text in server.told] == ["made", "made", "lost"]
    server.alive = False
    small.kernel.forget(server.fd)
    small.network.process_died(server, silently=True)
    small.run(SECOND_NS)
    assert bob.told[-1][1] == "made"
    assert len(small.network.connections) == 1
    assert caller.got == b""


def test_nobody_there_is_refused_and_no_machine_is_silent(small: SmallWorld) -> None:
    node = LoopNode(small, "alice")
    refused = node.start(node.loop.create_connection(lambda: Caller(node), "server", PORT))
    small.run(SECOND_NS)
    assert isinstance(refused.exception(), ConnectionRefusedError)
    small.network.set_down("server", True)
    silent = node.start(node.loop.create_connection(lambda: Caller(node), "server", PORT))
    small.run(30 * SECOND_NS)
    assert not silent.done()
    small.network.set_down("server", False)
    serve(small)
    small.run_until(silent.done)
    silent.result()[0].close()


def test_a_connection_that_ends_before_the_client_hears_of_it_is_an_error(
    small: SmallWorld,
) -> None:
    """An error of the network, which is not a cancellation of who asks for it."""
    serve(small)
    node = LoopNode(small, "alice")
    small.network.silence("server", "alice")
    connecting = node.start(node.loop.create_connection(lambda: Caller(node), "server", PORT))
    small.run_until(lambda: bool(small.network.connections))
    for connection in list(small.network.connections):
        for end in connection.ends:
            small.network.close_end(connection, end)
    small.network.heal()
    small.run_until(connecting.done)
    assert not connecting.cancelled()
    assert isinstance(connecting.exception(), ConnectionResetError)


def test_a_socket_becomes_a_connected_one(small: SmallWorld) -> None:
    server = serve(small)
    node = LoopNode(small, "alice")
    with socket.socket() as own:
        own.setblocking(False)
        connecting = node.start(node.loop.sock_connect(own, ("server", PORT)))
        small.run_until(connecting.done)
        own.send(b"hello")
        small.run(SECOND_NS)
        assert own.recv(100) == b"hello"
    small.run(SECOND_NS)
    assert [text for _, text in server.told] == ["made", "got hello", "lost"]


def play(seed: int) -> list[tuple[int, str]]:
    small = SmallWorld(seed, Weather(slow=0.2, split=0.5))
    try:
        server = serve(small)
        calls = [call(small, name) for name in ("alice", "bob", "carol")]
        for number in range(30):
            for node, caller in calls:
                send(node, caller, b"%d" % number)
            small.run(MS_NS)
        small.run(SECOND_NS)
        return [entry for node in (server, *(node for node, _ in calls)) for entry in node.told]
    finally:
        small.close()


def test_a_seed_plays_the_same_again() -> None:
    assert play(5) == play(5)
    assert play(5) != play(6)
