"""Who is waited for after a restart, for how long, and what becomes of who comes: the registry
with the real engine behind it. One test for each sentence of the design that says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recovery_tools import (
    ENDED,
    LEASE_MS,
    LEASED,
    LEASED_WAIT_S,
    START_NS,
    WAIT_S,
    A,
    B,
    C,
    assert_ready_after,
    back,
    come,
    commands,
    gauge,
    ready,
    recovering,
    shown,
)
from registry_world import SECOND, TTL_MS, Former, World

from dlock import _core
from dlock.control import messages as m
from dlock.control.messages_recover import ABSENT_LINES_MAX
from dlock.control.registry_effects import (
    ForgetFormer,
    PersistSession,
    PersistStruck,
)
from dlock.control.registry_recovery import RecoveryPlan
from dlock.control.roster import believed_ms, with_margin_ms
from dlock.types import DlockStatus as S

# ---- Who is waited for ---------------------------------------------------------------------------


def test_without_a_plan_it_is_ready_at_once() -> None:
    world = World()
    assert ready(world)
    assert world.ask(1, m.AwaitReady(60_000)).status is S.SUCCESS
    assert shown(world) == m.RecoveryShown(S.SUCCESS, 1)
    assert world.stats()["recovering"] == 0


def test_it_is_ready_when_all_are_back() -> None:
    world = recovering(A, B)
    back(world, A)
    assert not ready(world)
    back(world, B)
    assert ready(world)
    assert [one.value for one in commands(world, _core.DLK_COMMAND_READY)] == [1]
    assert commands(world, _core.DLK_COMMAND_READY)[0].ttl_ms == TTL_MS
    assert commands(world, _core.DLK_COMMAND_GRACE)[0].value == TTL_MS
    assert world.of(ForgetFormer) == [ForgetFormer()]
    assert world.of(PersistStruck) == []


def test_both_planes_serve_when_the_last_reinit_done_is_answered() -> None:
    world = recovering(A)
    come(world, A)
    done = world.send(A.id, m.ReinitDone())
    while not ready(world):
        assert done not in world.answers
        assert world.plane_step() or world.event_step()
    assert world.status(done) is S.SUCCESS
    assert world.get(A.id, b"new").status is S.SUCCESS


def test_who_stays_away_is_waited_for_as_long_as_it_could_believe() -> None:
    """session_ttl / 4 more than the longest of session and lease, and 0.1 s and 0.2 %."""
    assert round(WAIT_S * 1000) == 12_500 + 100 + 25
    world = recovering(A)
    assert_ready_after(world, WAIT_S)
    assert world.of(PersistStruck) == [PersistStruck(A.id)]


def test_a_declared_lease_is_waited_for() -> None:
    assert round(LEASED_WAIT_S * 1000) == 65_536 + 2_500 + 100 + 137
    world = recovering(LEASED, A)
    back(world, A)
    assert_ready_after(world, LEASED_WAIT_S)


def test_the_former_primarys_session_ttl_counts() -> None:
    world = World(RecoveryPlan(START_NS, 3 * TTL_MS, (A.entry,)))
    assert_ready_after(world, believed_ms(3 * TTL_MS, 0) / 1000)


def test_a_session_that_ended_is_waited_for_and_never_taken_back() -> None:
    world = recovering(ENDED, A)
    back(world, A)
    assert come(world, ENDED).status is S.CLIENT_REMOVED_BY_SERVER
    assert not ready(world)
    world.later(LEASED_WAIT_S)
    world.run()
    assert ready(world)
    assert world.of(PersistStruck) == [PersistStruck(ENDED.id)]


def test_who_came_and_never_said_that_it_was_done_is_away() -> None:
    """It may have been renewed when it came: first that is ended, then it is waited for until it
    can believe no longer."""
    world = recovering(A)
    come(world, A)
    world.later(WAIT_S)
    world.run()
    assert world.closed == [A.id]
    cut = commands(world, _core.DLK_COMMAND_SESSION_SUPERSEDE)
    assert [(one.id, one.attach) for one in cut] == [(A.id, 2)], "the data connection is closed"
    assert come(world, A, connection=30).status is S.CLIENT_REMOVED_BY_SERVER
    world.later(with_margin_ms(TTL_MS) / 1000 - 0.001)
    world.run()
    assert not ready(world)
    assert world.of(PersistStruck) == []
    world.later(0.001)
    (closing,) = commands(world, _core.DLK_COMMAND_SESSION_CLOSE)
    assert world.log.index(PersistStruck(A.id)) < world.log.index(closing)
    world.run()
    assert ready(world)
    assert world.stats()["clients"] == 0


def test_one_that_came_and_has_a_lease_is_waited_for_that_long_again() -> None:
    world = recovering(LEASED)
    come(world, LEASED)
    world.later(LEASED_WAIT_S)
    world.run()
    assert_ready_after(world, with_margin_ms(LEASE_MS) / 1000)


def test_a_lease_that_it_has_declared_here_counts() -> None:
    """It could extend what it holds alone by so much before it was cut off."""
    world = recovering(A, B)
    come(world, A)
    assert world.ask(A.id, m.DeclareLease(LEASE_MS)).status is S.SUCCESS
    back(world, B)
    world.later(WAIT_S)
    world.run()
    assert_ready_after(world, with_margin_ms(LEASE_MS) / 1000)


def test_one_that_came_believes_in_the_sessions_of_this_start() -> None:
    """The former primary's were shorter."""
    world = World(RecoveryPlan(START_NS, 1000, (A.entry,)))
    come(world, A)
    world.later(believed_ms(1000, 0) / 1000)
    world.run()
    assert_ready_after(world, with_margin_ms(TTL_MS) / 1000)


def test_an_operator_ends_that_too() -> None:
    world = recovering(A)
    come(world, A)
    world.later(WAIT_S)
    world.run()
    assert shown(world).absent[0].came == 1
    assert shown(world, evict=1).ready == 1


def test_who_came_twice_is_back_once_it_was() -> None:
    world = recovering(A, B)
    back(world, A)
    again = come(world, A, connection=21)
    assert (again.status, again.attach) == (S.SUCCESS, 2)
    assert gauge(world, "back") == 1
    back(world, B)
    assert ready(world)
    assert world.ask(21, m.ReinitDone()).status is S.SUCCESS


def test_a_recovery_deadline_is_shorter() -> None:
    world = recovering(LEASED, deadline_ms=20_000)
    world.later(19.999)
    world.run()
    assert not ready(world)
    world.later(0.001)
    world.run()
    assert ready(world)


def test_a_recovery_deadline_is_not_under_session_ttl_and_the_margin() -> None:
    world = recovering(LEASED, deadline_ms=1)
    assert_ready_after(world, with_margin_ms(TTL_MS) / 1000)


def test_nothing_is_ready_before_not_before() -> None:
    world = recovering(A, not_before_ns=START_NS + 3 * SECOND)
    back(world, A)
    assert not ready(world)
    world.later(2.5)
    assert world.registry.next_deadline_ns() == START_NS + 3 * SECOND
    world.later(0.5)
    world.run()
    assert ready(world)


# ---- Operators -----------------------------------------------------------------------------------


def test_an_operator_ends_the_waiting_at_once() -> None:
    world = recovering(A, LEASED, ENDED)
    back(world, A)
    answer = shown(world, evict=1)
    assert (answer.status, answer.ready, answer.evicted, answer.back) == (S.SUCCESS, 1, 2, 1)
    assert ready(world)
    assert {one.client_id for one in world.of(PersistStruck)} == {LEASED.id, ENDED.id}
    assert come(world, LEASED).status is S.CLIENT_REMOVED_BY_SERVER
    assert world.stats()["CLIENTS_EVICTED"] == 2


def test_an_operator_evicts_some() -> None:
    world = recovering(A, B, C)
    answer = shown(world, evict=2, ids=[A.id])
    assert (answer.status, answer.ready, answer.evicted, answer.absent_total) == (
        S.SUCCESS, 0, 1, 2)
    assert come(world, A).status is S.CLIENT_REMOVED_BY_SERVER, "also while others are waited for"
    back(world, B)
    answer = shown(world, evict=2, ids=[B.id, C.id])
    assert answer.status is S.FAIL, "one that is back cannot be evicted"
    assert (answer.ready, answer.back, answer.evicted) == (1, 1, 2)


def test_an_evicted_client_that_had_come_loses_its_session() -> None:
    world = recovering(A, B)
    come(world, A)
    assert shown(world, evict=2, ids=[A.id]).status is S.SUCCESS
    assert world.closed == [A.id]
    assert world.stats()["clients"] == 0
    back(world, B)
    assert ready(world)


def test_evicting_at_a_server_that_is_ready_does_nothing() -> None:
    world = World()
    world.init(1)
    assert shown(world, evict=1) == m.RecoveryShown(S.SUCCESS, 1)
    assert shown(world, evict=2, ids=[5]).status is S.FAIL
    assert world.ask(1, m.Heartbeat()).status is S.SUCCESS


def test_who_is_absent_is_shown() -> None:
    world = recovering(A, LEASED, B)
    come(world, A)
    back(world, B)
    world.later(1)
    answer = shown(world)
    assert (answer.ready, answer.expected, answer.back, answer.absent_total) == (0, 3, 1, 2)
    assert answer.absent == (
        m.AbsentLine(LEASED.id, LEASE_MS, round(LEASED_WAIT_S * 1000) - 1000, 0, "host 14"),
        m.AbsentLine(A.id, 0, round(WAIT_S * 1000) - 1000, 1, "host 11"))
    assert answer.left_ms == answer.absent[0].left_ms


def test_only_the_first_of_very_many_are_named() -> None:
    world = recovering(*(Former(number) for number in range(1, 201)))
    answer = shown(world)
    assert (answer.absent_total, len(answer.absent)) == (200, ABSENT_LINES_MAX)


# ---- Who may come --------------------------------------------------------------------------------


def test_a_session_is_taken_up_with_its_id_and_secret() -> None:
    world = recovering(LEASED, A)
    welcome = come(world, LEASED)
    assert (welcome.client_id, welcome.secret) == (LEASED.id, LEASED.secret)
    assert (welcome.attach, welcome.epoch, welcome.declared_lease_ms) == (1, 3, LEASE_MS)
    opened = commands(world, _core.DLK_COMMAND_SESSION_OPEN)[0]
    assert (opened.id, opened.secret, opened.lease_ms) == (LEASED.id, LEASED.secret, LEASE_MS)
    assert world.of(PersistSession) == [], "it stands there already"
    world.ask(LEASED.id, m.ReinitDone())
    shown(world, evict=1)
    assert world.ask(5, m.ListClients(0)).clients[0].info == {"host": "host", "pid": LEASED.id}


def test_its_kind_of_session_is_what_it_asked_for() -> None:
    world = recovering(A, B)
    come(world, A, early=True)
    come(world, B, early=False)
    assert [one.kind for one in commands(world, _core.DLK_COMMAND_SESSION_OPEN)] == [
        _core.DLK_SESSION_EARLY, _core.DLK_SESSION_PLAIN]


def test_a_wrong_secret_is_nobody_of_the_roster() -> None:
    world = recovering(A)
    assert come(world, A, secret=b"x" * 16).status is S.CLIENT_REMOVED_BY_SERVER
    assert world.stats()["CLIENT_ID_VERIFY_FAIL"] == 1
    assert gauge(world, "absent") == 1
    back(world, A)
    assert come(world, A, secret=b"x" * 16, connection=5).status is S.CLIENT_REMOVED_BY_SERVER
    assert ready(world)


def test_a_wrong_secret_after_the_right_one() -> None:
    world = recovering(A, B)
    come(world, A)
    assert come(world, A, secret=b"x" * 16, connection=5).status is S.CLIENT_REMOVED_BY_SERVER
    assert world.closed == []
    assert world.ask(A.id, m.ReinitDone()).status is S.SUCCESS


def test_who_is_not_on_the_roster_is_told_so() -> None:
    world = recovering(A)
    assert come(world, B).status is S.CLIENT_REMOVED_BY_SERVER
    assert (gauge(world, "expected"), gauge(world, "absent")) == (1, 1)


def test_after_the_end_an_unknown_client_is_removed() -> None:
    world = recovering(A, B)
    back(world, A)
    world.later(WAIT_S)
    world.run()
    assert come(world, B).status is S.CLIENT_REMOVED_BY_SERVER


def test_all_else_is_not_ready() -> None:
    world = recovering(A, B)
    requests: Sequence[m.Request[Any]] = (
        m.ClientInit(1, 1, {}), m.GetLocks((m.LockSpec(b"a", 0),)), m.ReleaseLocks((1,)),
        m.ObjectCreate(b"o", 1, 60), m.ObjectGet(b"o", 0), m.ListLocks(b"", 0, 1, False),
        m.ShowLock(b"a"), m.BreakLock(b"a", 0, True), m.ListClients(0), m.GetCycle(1),
        m.Heartbeat(), m.ReinitDone())
    for request in requests:
        answer: Any = world.ask(50, request)
        assert answer.status is S.NOT_READY, request
    come(world, A, early=False)
    for request in (*requests[1:-1], m.DeclareLease(20_000), m.ClientDeinit()):
        answer = world.ask(A.id, request)
        assert answer.status is S.NOT_READY, request
    assert world.ask(50, m.Stats()).stats["recovering"] == 1
    assert shown(world).status is S.SUCCESS


def test_an_early_session_lives_asks_for_leases_and_leaves() -> None:
    world = recovering(A, B)
    come(world, A)
    assert world.ask(A.id, m.Heartbeat()).status is S.SUCCESS
    assert world.ask(A.id, m.DeclareLease(20_000)).status is S.SUCCESS
    assert world.ask(A.id, m.GetLocks((m.LockSpec(b"a", 0),))).status is S.NOT_READY
    assert world.ask(A.id, m.ClientDeinit()).status is S.SUCCESS
    assert world.of(PersistStruck) == [PersistStruck(A.id)]
    assert (gauge(world, "absent"), gauge(world, "back")) == (1, 1)
    assert world.init(A.id).status is S.NOT_READY
    back(world, B)
    assert ready(world)


def test_who_has_left_cannot_come_again() -> None:
    """It was struck, so a third primary would not know it."""
    world = recovering(A, B)
    come(world, A)
    world.ask(A.id, m.ClientDeinit())
    assert come(world, A, connection=30).status is S.CLIENT_REMOVED_BY_SERVER


def test_the_last_one_that_leaves_ends_it() -> None:
    world = recovering(A)
    come(world, A)
    assert world.ask(A.id, m.ClientDeinit()).status is S.SUCCESS
    assert ready(world)


def test_a_connection_that_breaks_changes_nothing() -> None:
    world = recovering(A)
    key = world.send(A.id, A.reinit())
    world.take(world.registry.disconnected(A.id))
    world.run()
    assert key in world.answers, "which nobody gets"
    assert world.stats()["clients"] == 1
    assert come(world, A, connection=30).status is S.SUCCESS
    assert world.ask(30, m.ReinitDone()).status is S.SUCCESS
    assert ready(world)


def test_two_connections_at_once_leave_the_later_one() -> None:
    world = recovering(A)
    first, second = world.send(1, A.reinit()), world.send(2, A.reinit())
    world.run()
    assert (world.status(first), world.status(second)) == (S.ERROR, S.SUCCESS)
    assert world.closed == [1]
    assert world.ask(2, m.ReinitDone()).status is S.SUCCESS


def test_more_come_than_there_may_be_clients() -> None:
    """max_clients of the new start is 4, and six are on the roster: all are taken."""
    clients = [Former(number) for number in range(1, 7)]
    world = recovering(*clients)
    for one in clients:
        back(world, one)
    assert ready(world)
    assert world.init(90).status is S.SERVER_NO_RESOURCE


def test_no_slot_is_no_verdict() -> None:
    clients = [Former(number) for number in range(1, 11)]
    world = recovering(*clients)
    for one in clients[:8]:
        come(world, one)
    assert come(world, clients[8]).status is S.SERVER_NO_RESOURCE
    world.ask(1, m.ClientDeinit())
    assert come(world, clients[8]).status is S.SUCCESS
