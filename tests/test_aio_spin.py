"""How long an event loop looks again before it sleeps: the law, by a clock and a machine of the
test's making, and a client that waits so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from aio_tools import run

import dlock.aio
from dlock.aio import _spin
from dlock.aio._spin import BUDGET_NS_MAX, BUDGET_NS_MIN, CROWDED_NS, Crowd, Spin
from dlock.server import Server, ServerConfig


class World:
    """A loop whose turns the test takes, a clock that it sets, and a machine with two cores."""

    def __init__(self) -> None:
        self.now_ns = 10**9
        self.runnable = 1.0
        self.turns: list[Callable[[], None]] = []

    def call_soon(self, turn: Callable[[], None]) -> None:
        self.turns.append(turn)

    def turn(self, after_ns: int) -> bool:
        """One turn of the loop; was there one to take?"""
        self.now_ns += after_ns
        turns, self.turns = self.turns, []
        for one in turns:
            one()
        return bool(turns)

    def looks_ns(self) -> int:
        """For how long it looks if nothing comes."""
        began_ns = self.now_ns
        while self.turn(1000):
            pass
        return self.now_ns - began_ns


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(_spin, "perf_counter_ns", lambda: made.now_ns)
    monkeypatch.setattr(_spin, "_runnable", lambda: made.runnable)
    monkeypatch.setattr(_spin.os, "sched_getaffinity", lambda _pid: {0, 1})
    return made


def new(world: World) -> Spin:
    return Spin(world)  # type: ignore[arg-type]


def test_it_looks_for_a_while_and_then_sleeps(world: World) -> None:
    spin = new(world)
    assert not world.turns
    spin.stir()
    assert BUDGET_NS_MAX <= world.looks_ns() <= BUDGET_NS_MAX + 10_000


def test_what_is_stirred_twice_is_looked_for_once(world: World) -> None:
    spin = new(world)
    spin.stir()
    spin.stir()
    assert len(world.turns) == 1


def test_looks_in_vain_are_shorter_and_shorter_until_there_are_none(world: World) -> None:
    spin = new(world)
    looked = []
    for _ in range(8):
        world.now_ns += 10 * BUDGET_NS_MAX
        spin.stir()
        looked.append(world.looks_ns())
    assert looked == sorted(looked, reverse=True)
    assert looked[0] > BUDGET_NS_MAX
    assert looked[-1] <= 2000  # a turn, and none after it


def test_what_comes_soon_after_it_slept_makes_it_look_again(world: World) -> None:
    spin = new(world)
    for _ in range(8):
        world.now_ns += 10 * BUDGET_NS_MAX
        spin.stir()
        world.looks_ns()
    assert spin._budget_ns < BUDGET_NS_MIN
    spin.stir()
    world.turn(1000)
    world.now_ns += 20_000
    spin.stir()
    assert world.looks_ns() >= 40_000


def test_what_comes_while_it_looks_keeps_it_awake(world: World) -> None:
    spin = new(world)
    spin.stir()
    for _ in range(100):
        assert world.turn(BUDGET_NS_MAX // 2)
        spin.stir()


def test_it_sleeps_at_once_where_no_core_is_to_spare(world: World) -> None:
    world.runnable = 3
    spin = new(world)
    spin.stir()
    assert world.turn(1000)
    assert not world.turns
    world.runnable = 1
    spin.stir()
    world.turn(1000)
    assert not world.turns  # it looks at the machine only now and then
    world.now_ns += CROWDED_NS
    spin.stir()
    world.turn(1000)
    assert world.turns


@pytest.mark.parametrize("text", [None, b"", b"0.1 0.2 0.3", b"0.1 0.2 0.3 x/7 1"])
def test_a_machine_that_says_nothing_has_no_core_to_spare(
    text: bytes | None, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "loadavg"
    if text is not None:
        path.write_bytes(text)
    monkeypatch.setattr(_spin, "LOAD", str(path))
    assert Crowd().too_many(1)
    path.write_bytes(b"0.1 0.2 0.3 1/7 1")
    assert not Crowd().too_many(1)


def test_a_client_that_waits_so() -> None:
    server = Server(ServerConfig(port=0))

    async def program() -> None:
        async with dlock.aio.connect(server.address, wait="adaptive") as client:
            for _ in range(50):
                async with client.lock("a"):
                    pass
            owner = client.owner("one")
            for _ in range(50):
                hold = await owner.take(dlock.aio.keys.exclusive("b"))
                assert hold is not None
                assert hold.release()
        with pytest.raises(ValueError, match="adaptive"):
            dlock.aio.connect(server.address, wait="poll")

    run(program())
    server.stop()
