"""What the tests of a recovery share: a registry that waits for clients of a former primary, and
their side of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from registry_world import SECOND, TTL_MS, Former, World

from dlock import _core
from dlock.control import messages as m
from dlock.control.registry import Phase
from dlock.control.registry_effects import Note
from dlock.control.registry_recovery import RecoveryPlan
from dlock.control.roster import believed_ms
from dlock.types import DlockStatus as S

START_NS = 1_000 * SECOND
LEASE_MS = 65_536
WAIT_S = believed_ms(TTL_MS, 0) / 1000
LEASED_WAIT_S = believed_ms(TTL_MS, LEASE_MS) / 1000
A, B, C = Former(11), Former(12), Former(13)
LEASED = Former(14, lease_ms=LEASE_MS)
ENDED = Former(15, lease_ms=LEASE_MS, ended=True)


def recovering(*clients: Former, durable: bool = True, **plan: Any) -> World:
    """A world whose registry waits for these."""
    roster = tuple(one.entry for one in clients)
    world = World(RecoveryPlan(START_NS, TTL_MS, roster, **plan), durable)
    world.later(0)
    return world


def come(world: World, client: Former, connection: int | None = None, **how: Any) -> m.Welcome:
    return world.ask(client.id if connection is None else connection, client.reinit(**how))


def back(world: World, client: Former, **how: Any) -> m.Welcome:
    """The client comes, and says that it is done."""
    welcome = come(world, client, **how)
    assert welcome.status is S.SUCCESS
    assert world.ask(client.id, m.ReinitDone()).status is S.SUCCESS
    return welcome


def ready(world: World) -> bool:
    return world.registry.phase is Phase.READY


def assert_ready_after(world: World, seconds: float) -> None:
    """It gets ready then, and not a millisecond sooner."""
    world.later(seconds - 0.001)
    world.run()
    assert not ready(world)
    world.later(0.001)
    world.run()
    assert ready(world)


def gauge(world: World, name: str) -> int:
    return world.stats()[f"recovery_{name}"]


def notes(world: World, event: str) -> list[Note]:
    return [one for one in world.of(Note) if one.event == event]


def commands(world: World, op: int) -> list[Any]:
    return [one for one in world.of(_core.Command) if one.op == op]


def shown(world: World, evict: int = 0, ids: Iterable[int] = ()) -> m.RecoveryShown:
    return world.ask(900, m.Recover(evict, tuple(ids)))
