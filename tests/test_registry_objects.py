"""64-bit objects in the registry, with the real engine behind it."""

from __future__ import annotations

import pytest
from registry_world import SECOND, World

from dlock import _core
from dlock.control import messages as m
from dlock.types import DlockStatus as S


@pytest.fixture
def world() -> World:
    return World()


def create(world: World, connection: int, name: bytes = b"o", lease_s: int = 60) -> m.ObjectId:
    return world.ask(connection, m.ObjectCreate(name, 7, lease_s))


def get_object(world: World, connection: int, name: bytes = b"o", lease_s: int = 0) -> m.ObjectId:
    return world.ask(connection, m.ObjectGet(name, lease_s))


def cell_works(world: World, session: int, one: m.ObjectId) -> bool:
    replies, _ = world.engine.step([_core.Request(
        op=_core.DLK_OP_READ, session=session, lock_id=one.object_id, slot=one.slot)],
        world.now_ns)
    return replies[0].result == _core.DLK_RESULT_ACTION


def test_object_life(world: World) -> None:
    slot = world.init(1).session_slot
    world.init(2)
    assert get_object(world, 1).status is S.OBJECT_NOT_CREATE
    assert create(world, 1, lease_s=0).status is S.EINVAL
    made = create(world, 1)
    assert made.status is S.SUCCESS
    assert cell_works(world, slot, made)
    assert create(world, 1).status is S.OBJECT_ALREADY_CREATED
    assert create(world, 2).status is S.OBJECT_ALREADY_EXISTED
    assert world.ask(1, m.ObjectRelease(made.object_id)).status is S.OBJECT_NOT_GET
    assert get_object(world, 2) == made
    assert get_object(world, 2) == made
    assert world.ask(2, m.ObjectDestroy(made.object_id)).status is S.OBJECT_INVALID_OWNER
    assert world.ask(2, m.ObjectDestroy(999)).status is S.OBJECT_NOT_CREATE
    assert world.ask(2, m.ObjectRelease(made.object_id)).status is S.SUCCESS
    assert world.ask(1, m.ObjectDestroy(made.object_id)).status is S.SUCCESS
    assert not cell_works(world, slot, made)
    assert world.ask(1, m.ObjectDestroy(made.object_id)).status is S.OBJECT_NOT_CREATE
    assert create(world, 2).object_id == made.object_id + 1


def test_a_destroyed_object_with_references_is_marked(world: World) -> None:
    slot = world.init(1).session_slot
    world.init(2)
    made = create(world, 1)
    get_object(world, 2)
    assert world.ask(1, m.ObjectDestroy(made.object_id)).status is S.SUCCESS
    assert cell_works(world, slot, made), "those who have it go on using it"
    assert world.ask(1, m.ObjectDestroy(made.object_id)).status is S.OBJECT_ALREADY_DESTROYED
    assert get_object(world, 1).status is S.OBJECT_ALREADY_DESTROYED
    assert get_object(world, 2) == made, "who has it may get it again"
    assert create(world, 1).status is S.OBJECT_ALREADY_DESTROYED
    assert create(world, 2).status is S.OBJECT_ALREADY_DESTROYED
    assert world.ask(2, m.ObjectRelease(made.object_id)).status is S.SUCCESS
    assert not cell_works(world, slot, made)
    assert create(world, 2).status is S.SUCCESS


def test_a_marked_object_ends_with_its_lease(world: World) -> None:
    slot = world.init(1).session_slot
    made = create(world, 1, lease_s=2)
    get_object(world, 1, lease_s=4)
    world.later(3)
    world.ask(1, m.Heartbeat())
    world.ask(1, m.ObjectDestroy(made.object_id))
    world.later(0.99)
    assert cell_works(world, slot, made), "the latest end counts"
    assert world.registry.next_deadline_ns() == world.now_ns + SECOND // 100
    world.later(0.01)
    world.run()
    assert not cell_works(world, slot, made)
    assert world.ask(1, m.ObjectRelease(made.object_id)).status is S.OBJECT_NOT_GET
    assert world.registry.next_deadline_ns() is None


def test_a_lease_that_is_over_matters_only_once_marked(world: World) -> None:
    slot = world.init(1).session_slot
    made = create(world, 1, lease_s=1)
    get_object(world, 1)
    world.later(5)
    world.run()
    assert cell_works(world, slot, made)
    assert world.ask(1, m.ObjectDestroy(made.object_id)).status is S.SUCCESS
    assert not cell_works(world, slot, made)


def test_a_get_again_renews_nothing(world: World) -> None:
    world.init(1)
    made = create(world, 1, lease_s=2)
    get_object(world, 1)
    get_object(world, 1, lease_s=100)
    world.later(3)
    world.ask(1, m.ObjectDestroy(made.object_id))
    assert world.stats()["objects"] == 0


def test_max_objects(world: World) -> None:
    world.init(1)
    made = [create(world, 1, b"%d" % number) for number in range(5)]
    assert [one.status for one in made] == [*[S.SUCCESS] * 4, S.OBJECT_TOO_MANY]
    world.ask(1, m.ObjectDestroy(made[0].object_id))
    assert create(world, 1, b"5").status is S.SUCCESS


def test_the_end_of_a_session_releases_references(world: World) -> None:
    world.init(1)
    world.init(2)
    made = create(world, 1)
    get_object(world, 2)
    world.ask(1, m.ObjectDestroy(made.object_id))
    world.ask(2, m.ClientDeinit())
    assert world.stats()["objects"] == 0


def test_an_object_outlives_its_owner_while_used_or_leased(world: World) -> None:
    world.init(1)
    world.init(2)
    made = create(world, 1, lease_s=4)
    other = create(world, 1, b"p", lease_s=1)
    world.ask(1, m.ClientDeinit())
    assert get_object(world, 2) == made
    assert world.ask(2, m.ObjectDestroy(made.object_id)).status is S.OBJECT_INVALID_OWNER
    assert create(world, 2).status is S.OBJECT_ALREADY_EXISTED
    world.later(2)
    world.run()
    assert get_object(world, 2, b"p").status is S.OBJECT_NOT_CREATE, "nobody used it"
    assert other.status is S.SUCCESS
    world.later(3)
    world.ask(2, m.Heartbeat())
    assert world.stats()["objects"] == 1, "in use"
    world.ask(2, m.ObjectRelease(made.object_id))
    assert world.stats()["objects"] == 0


def test_an_orphan_does_not_collect_timers(world: World) -> None:
    world.init(1)
    world.init(2)
    made = create(world, 1, lease_s=1000)
    world.ask(1, m.ClientDeinit())
    for _ in range(50):
        get_object(world, 2)
        world.ask(2, m.ObjectRelease(made.object_id))
    assert len(world.registry._objects._ends) == 1
