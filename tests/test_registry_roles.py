"""Roles: at most one session has each, and who enters anew with one ends the former session."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from registry_world import SECOND, TTL_MS, Former, World, reinit

from dlock import _core
from dlock.control import messages as m
from dlock.control.registry import Phase
from dlock.control.registry_effects import PersistSession, PersistStruck
from dlock.control.registry_recovery import RecoveryPlan
from dlock.control.registry_roles import GAVE_WAY_MAX, GaveWay
from dlock.control.roster import RosterEntry, verifier_of
from dlock.types import DlockStatus as S

ROLE = "door:glockd:site"


def enter(world: World, connection: int, *, take: bool = True, role: str = ROLE) -> m.Welcome:
    return world.ask(connection, m.EnterRole(1, 1, role, int(take), {"host": "here"}))


def plan(world_now_ns: int, *entries: RosterEntry, **fields: Any) -> RecoveryPlan:
    return RecoveryPlan(world_now_ns, TTL_MS, entries, **fields)


def with_role(former: Former, role: str = ROLE) -> RosterEntry:
    return RosterEntry(**{**vars(former.entry), "role": role})


def recovering(*entries: RosterEntry, durable: bool = True, **fields: Any) -> World:
    now_ns = 1_000 * SECOND
    return World(recovery=plan(now_ns, *entries, **fields), durable=durable, now_ns=now_ns)


A, B = Former(5), Former(6)


def test_who_enters_with_a_role_has_a_session_and_is_written_down_with_it() -> None:
    world = World()
    welcome = enter(world, 1)
    assert welcome.status is S.SUCCESS
    (entry,) = [one.entry for one in world.of(PersistSession)]
    assert (entry.client_id, entry.role) == (welcome.client_id, ROLE)


def test_the_next_one_ends_the_session_before_it_is_entered() -> None:
    world = World()
    first = enter(world, 1)
    held = world.hold(first.session_slot, world.get(1, b"plain"))
    assert world.ask(1, m.DeclareLease(60_000)).status is S.SUCCESS
    leased = world.hold(first.session_slot, world.get(1, b"leased"), lease_ms=60_000)
    world.log.clear()
    second = enter(world, 2)
    assert second.status is S.SUCCESS
    assert second.client_id != first.client_id
    order = [
        one.op if isinstance(one, _core.Command) else type(one).__name__ for one in world.log]
    wanted = ["PersistStruck", _core.DLK_COMMAND_SESSION_CLOSE, "PersistSession",
              _core.DLK_COMMAND_SESSION_OPEN]
    assert [one for one in order if one in wanted] == wanted
    assert world.closed == [1]
    assert world.stats()["clients"] == 1
    assert world.stats()["SESSIONS_SUPERSEDED"] == 1
    for name, hold in (b"plain", held), (b"leased", leased):
        again = world.hold(second.session_slot, world.get(2, name))
        assert again.token > hold.token


def test_one_that_gave_way_is_told_so_and_does_not_come_back() -> None:
    world = World()
    first = enter(world, 1)
    second = enter(world, 2)
    assert world.reinit(3, first).status is S.ALREADY_LOCKED
    assert world.reinit(4, first, b"x" * 16).status is S.CLIENT_REMOVED_BY_SERVER
    assert enter(world, 5, take=False).status is S.ALREADY_LOCKED
    assert world.reinit(6, second).status is S.SUCCESS


def test_one_whose_session_has_expired_enters_again_unless_the_role_is_taken() -> None:
    world = World()
    first = enter(world, 1)
    world.later(TTL_MS / 1000 + 1)
    world.run()
    assert world.reinit(2, first).status is S.CLIENT_REMOVED_BY_SERVER
    again = enter(world, 2, take=False)
    assert again.status is S.SUCCESS
    assert enter(world, 3, take=False).status is S.ALREADY_LOCKED
    assert enter(world, 3).status is S.SUCCESS
    assert world.reinit(4, again).status is S.ALREADY_LOCKED


def test_leased_holds_of_a_session_that_has_expired_go_too() -> None:
    world = World()
    first = enter(world, 1)
    lock = world.get(1, b"leased")
    assert world.ask(1, m.DeclareLease(600_000)).status is S.SUCCESS
    hold = world.hold(first.session_slot, lock, lease_ms=600_000)
    world.later(TTL_MS / 1000 + 1)
    world.run()
    assert world.stats()["sessions_leaving"] == 1
    second = enter(world, 2)
    assert world.stats()["sessions_leaving"] == 0
    assert world.of(PersistStruck)[-1] == PersistStruck(first.client_id)
    assert world.hold(second.session_slot, world.get(2, b"leased")).token > hold.token
    assert world.reinit(3, first).status is S.ALREADY_LOCKED


def test_other_roles_and_sessions_without_one_are_left_alone() -> None:
    world = World()
    one, other = world.init(1), enter(world, 2, role="another")
    enter(world, 3)
    enter(world, 4)
    assert world.reinit(5, one).status is S.SUCCESS
    assert world.reinit(6, other).status is S.SUCCESS


def test_one_that_is_still_being_opened_gives_way_too() -> None:
    world = World()
    first = world.send(1, m.EnterRole(1, 1, ROLE, 1, {}))
    second = world.send(2, m.EnterRole(1, 1, ROLE, 1, {}))
    world.run()
    assert world.status(second) is S.SUCCESS
    assert first not in world.answers or world.status(first) is S.CLIENT_REMOVED_BY_SERVER
    assert world.stats()["clients"] == 1


@pytest.mark.parametrize(("message", "status"), [
    (m.EnterRole(1, 1, "", 1, {}), S.EINVAL),
    (m.EnterRole(2, 3, ROLE, 1, {}), S.PROTO_VERSION_NEGOTIATION_FAIL),
])
def test_what_cannot_enter_ends_nobody(message: m.EnterRole, status: S) -> None:
    world = World()
    first = enter(world, 1)
    assert world.ask(2, message).status is status
    assert world.reinit(3, first).status is S.SUCCESS


def test_a_connection_that_has_a_session_does_not_get_another() -> None:
    world = World()
    welcome = world.init(1)
    enter(world, 2)
    assert enter(world, 1).status is S.ERROR
    assert world.stats()["clients"] == 2
    assert world.reinit(3, welcome).status is S.SUCCESS


# ---- While the server recovers -------------------------------------------------------------------


def test_one_that_stays_away_is_not_waited_for_when_its_role_is_taken() -> None:
    world = recovering(with_role(A))
    assert enter(world, 1, take=False).status is S.NOT_READY
    assert world.registry.phase is Phase.RECOVERING
    assert enter(world, 1).status is S.NOT_READY
    assert world.of(PersistStruck) == [PersistStruck(A.id)]
    world.run()
    assert world.registry.phase is Phase.READY
    assert enter(world, 1).status is S.SUCCESS
    assert world.ask(2, A.reinit()).status is S.ALREADY_LOCKED
    assert world.ask(3, A.reinit(secret=b"y" * 16)).status is S.CLIENT_REMOVED_BY_SERVER


def test_the_others_are_waited_for_all_the_same() -> None:
    world = recovering(with_role(A), B.entry)
    assert enter(world, 1).status is S.NOT_READY
    assert world.registry.phase is Phase.RECOVERING
    assert world.ask(2, A.reinit()).status is S.ALREADY_LOCKED
    assert world.ask(3, B.reinit()).status is S.SUCCESS
    assert world.ask(3, m.ReinitDone()).status is S.SUCCESS
    assert world.registry.phase is Phase.READY


@pytest.mark.parametrize("done", [False, True])
def test_one_that_is_back_ends_with_what_it_has_claimed(done: bool) -> None:
    world = recovering(with_role(A), B.entry)
    back = world.ask(1, A.reinit())
    claim = m.LockClaim(b"a", 1, 9, 0, 0, 1, 1 << 43, 0, _core.DLK_ENTRY_HELD, 0, 1, 0, 0, 0, 0, 0,
                        0)
    assert world.ask(1, m.UpdateLocks((claim,))).statuses == (S.SUCCESS,)
    if done:
        world.ask(1, m.ReinitDone())
    assert enter(world, 2).status is S.NOT_READY
    assert 1 in world.closed
    assert world.ask(3, A.reinit()).status is S.ALREADY_LOCKED
    assert world.reinit(4, back).status is S.ALREADY_LOCKED
    world.ask(5, B.reinit())
    world.ask(5, m.ReinitDone())
    assert world.registry.phase is Phase.READY
    welcome = enter(world, 6)
    assert world.hold(welcome.session_slot, world.get(6, b"a")).token > 1 << 43


def test_one_of_which_only_leases_are_left_is_not_waited_for() -> None:
    ended = Former(7, lease_ms=3_600_000, ended=True)
    world = recovering(with_role(ended))
    assert enter(world, 1).status is S.NOT_READY
    world.run()
    assert world.registry.phase is Phase.READY


def test_a_role_outlives_a_recovery() -> None:
    world = recovering(with_role(A))
    world.ask(1, A.reinit())
    world.ask(1, m.ReinitDone())
    assert world.registry.phase is Phase.READY
    assert enter(world, 2, take=False).status is S.ALREADY_LOCKED
    assert enter(world, 3).status is S.SUCCESS
    assert world.ask(4, A.reinit()).status is S.ALREADY_LOCKED


def test_where_there_is_no_roster_a_client_says_its_role_itself() -> None:
    world = recovering(durable=False, count=1)
    welcome = world.ask(1, m.ClientReinit(1, 1, 5, b"s" * 16, 2, 7, 1, {"role": ROLE}))
    assert welcome.status is S.SUCCESS
    assert enter(world, 2).status is S.NOT_READY
    world.run()
    assert enter(world, 2).status is S.SUCCESS
    assert world.reinit(3, welcome).status is S.ALREADY_LOCKED


def test_a_role_of_the_roster_is_not_what_a_client_says() -> None:
    world = recovering(A.entry)
    world.ask(1, m.ClientReinit(1, 1, A.id, A.secret, 2, 7, 1, {"role": ROLE}))
    world.ask(1, m.ReinitDone())
    assert enter(world, 2, take=False).status is S.SUCCESS


def test_a_roster_that_is_read_again_keeps_roles() -> None:
    now_ns = 1_000 * SECOND
    world = recovering(with_role(A), reread=True, not_before_ns=now_ns + SECOND)
    assert enter(world, 1).status is S.NOT_READY
    world.later(1.5)
    world.take(world.registry.roster_read([with_role(A), with_role(B)], world.now_ns))
    world.run()
    assert world.registry.phase is Phase.RECOVERING
    assert enter(world, 1).status is S.NOT_READY
    world.run()
    assert world.registry.phase is Phase.READY
    assert enter(world, 1).status is S.SUCCESS


def test_so_many_are_remembered_and_no_more() -> None:
    gave_way = GaveWay(Counter())
    for client_id in range(1, GAVE_WAY_MAX + 2):
        gave_way.add(client_id, verifier_of(b"s" * 16))
    told = [gave_way.status(m.ClientReinit(1, 1, one, b"s" * 16, 0, 0, 1, {}))
            for one in (1, 2, GAVE_WAY_MAX + 1)]
    assert told == [S.CLIENT_REMOVED_BY_SERVER, S.ALREADY_LOCKED, S.ALREADY_LOCKED]


def test_a_session_that_was_taken_up_again_keeps_its_role() -> None:
    world = World()
    first = enter(world, 1)
    assert world.ask(2, reinit(first)).status is S.SUCCESS
    assert enter(world, 3).status is S.SUCCESS
    assert world.reinit(4, first).status is S.ALREADY_LOCKED
