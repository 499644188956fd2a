"""Recoveries without a roster, beside a primary that may serve still, and above the epoch of a
client; who waits for readiness, and what the log and the gauges tell: the registry with the real
engine behind it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from recovery_tools import (
    LEASE_MS,
    LEASED,
    LEASED_WAIT_S,
    START_NS,
    A,
    B,
    C,
    assert_ready_after,
    back,
    come,
    gauge,
    notes,
    ready,
    recovering,
    shown,
)
from registry_world import SECOND, TTL_MS, Former, World

from dlock import _core
from dlock.control import messages as m
from dlock.control.registry_effects import (
    PersistSession,
    PersistStruck,
    ReadFormerRoster,
    TakeHigherEpoch,
)
from dlock.control.roster import RosterEntry, believed_ms, with_margin_ms
from dlock.types import DlockStatus as S

# ---- Without a roster ----------------------------------------------------------------------------


def test_a_number_of_clients_is_waited_for() -> None:
    world = recovering(durable=False, count=2)
    assert gauge(world, "expected") == 2
    back(world, A)
    assert (gauge(world, "back"), gauge(world, "absent")) == (1, 1)
    back(world, B)
    assert ready(world)


def test_nameless_clients_are_waited_for_as_for_the_longest_lease() -> None:
    world = recovering(durable=False, count=2)
    back(world, A)
    longest_s = believed_ms(TTL_MS, 3_600_000) / 1000
    assert_ready_after(world, longest_s)
    assert gauge(world, "absent") == 0


def test_a_deadline_and_an_operator_end_the_waiting_for_the_nameless() -> None:
    world = recovering(durable=False, count=2, deadline_ms=15_000)
    world.later(15)
    world.run()
    assert ready(world)
    world = recovering(durable=False, count=2)
    answer = shown(world, evict=1)
    assert (answer.ready, answer.evicted, answer.absent_total) == (1, 2, 0)


def test_one_more_than_the_number_is_waited_for_once_it_came() -> None:
    world = recovering(durable=False, count=1)
    come(world, A)
    come(world, B)
    world.ask(B.id, m.ReinitDone())
    assert not ready(world), "A has not said what it holds"
    world.ask(A.id, m.ReinitDone())
    assert ready(world)


def test_who_was_evicted_without_a_roster_stays_so() -> None:
    world = recovering(durable=False, count=2)
    come(world, A)
    shown(world, evict=2, ids=[A.id])
    assert come(world, A, connection=33).status is S.CLIENT_REMOVED_BY_SERVER


def test_with_nothing_known_anybody_may_come_until_the_time_is_over() -> None:
    wait_s = with_margin_ms(TTL_MS) / 1000
    world = recovering(durable=False, not_before_ns=START_NS + round(wait_s * SECOND))
    back(world, A)
    assert_ready_after(world, wait_s)
    assert world.ask(A.id, m.Heartbeat()).status is S.SUCCESS


def test_with_nothing_known_who_is_in_the_middle_is_waited_for() -> None:
    wait_s = with_margin_ms(TTL_MS) / 1000
    world = recovering(durable=False, not_before_ns=START_NS + round(wait_s * SECOND))
    come(world, A)
    world.later(wait_s)
    world.run()
    assert not ready(world)
    world.ask(A.id, m.ReinitDone())
    assert ready(world)


def test_whoever_is_trusted_is_written_down() -> None:
    """The mirror with a new state directory and the application's word."""
    world = recovering(count=1, trusted=True)
    come(world, A)
    (written,) = world.of(PersistSession)
    assert (written.entry.client_id, written.entry.verifier) == (A.id, A.entry.verifier)
    assert written.entry.lease_ms == 3_600_000, "it may claim the longest"


# ---- Who takes over without the lock -------------------------------------------------------------


def test_the_roster_is_read_again_when_the_former_primary_must_have_stopped() -> None:
    not_before_ns = START_NS + 3 * SECOND
    world = recovering(A, B, reread=True, not_before_ns=not_before_ns)
    assert come(world, A).status is S.NOT_READY
    assert come(world, C).status is S.NOT_READY, "it could be new"
    world.later(2.999)
    assert world.of(ReadFormerRoster) == []
    world.later(0.001)
    world.later(1)
    assert world.of(ReadFormerRoster) == [ReadFormerRoster()]
    assert not ready(world)
    changed = RosterEntry(A.id, LEASE_MS, False, A.entry.verifier, A.entry.who)
    world.take(world.registry.roster_read((changed, C.entry), world.now_ns))
    world.run()
    assert world.of(PersistSession) == [PersistSession(changed), PersistSession(C.entry)]
    assert world.of(PersistStruck) == [PersistStruck(B.id)]
    assert come(world, B).status is S.CLIENT_REMOVED_BY_SERVER
    back(world, C)
    assert not ready(world)
    world.later(LEASED_WAIT_S - 4.001)
    world.run()
    assert not ready(world), "it has declared a lease meanwhile"
    world.later(0.001)
    world.run()
    assert ready(world)


def test_who_is_evicted_before_the_roster_is_read_again_stays_evicted() -> None:
    world = recovering(A, B, reread=True, not_before_ns=START_NS + 3 * SECOND)
    shown(world, evict=2, ids=[A.id])
    world.later(3)
    world.take(world.registry.roster_read((A.entry, B.entry), world.now_ns))
    assert come(world, A).status is S.CLIENT_REMOVED_BY_SERVER
    back(world, B)
    assert ready(world)


def test_nobody_on_either_roster() -> None:
    world = recovering(reread=True, not_before_ns=START_NS + 3 * SECOND)
    world.later(3)
    assert not ready(world)
    world.take(world.registry.roster_read((), world.now_ns))
    world.run()
    assert ready(world)


# ---- Epochs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [(4, 1), (3, 98)])
def test_with_a_state_directory_a_client_of_a_newer_primary_is_refused(
    seen: tuple[int, int]
) -> None:
    for world in (recovering(A), World()):
        assert world.ask(1, Former(A.id, seen=seen).reinit()).status is S.ERROR
        assert world.stats()["EPOCH_AHEAD"] == 1
        assert notes(world, "a client of another primary")[0].level == logging.ERROR
        assert world.of(TakeHigherEpoch) == []
        assert world.stats()["clients"] == 0


@pytest.mark.parametrize("seen", [(4, 1), (3, 98)])
def test_without_one_the_primary_starts_over_above_it(seen: tuple[int, int]) -> None:
    for world in (recovering(durable=False, count=1), World(durable=False)):
        world.send(1, m.ClientInit(1, 1, {}))
        world.run()
        assert world.ask(2, Former(A.id, seen=seen).reinit()).status is S.NOT_READY
        assert world.of(TakeHigherEpoch) == [TakeHigherEpoch(seen[0])]
        assert world.stats()["EPOCH_AHEAD"] == 1
        for request in (m.ClientInit(1, 1, {}), m.GetLocks((m.LockSpec(b"a", 0),)),
                        B.reinit(), m.AwaitReady(0)):
            answer: Any = world.ask(3, request)
            assert answer.status is S.NOT_READY
        world.later(4000)
        world.run()
        assert not ready(world)
        world.ask(4, Former(B.id, seen=(9, 1)).reinit())
        assert len(world.of(TakeHigherEpoch)) == 1, "it ends once"


def test_the_last_epoch_is_not_taken_from_a_client() -> None:
    world = World(durable=False)
    assert world.ask(1, Former(A.id, seen=(m.EPOCH_MAX, 1)).reinit()).status is S.ERROR
    assert world.of(TakeHigherEpoch) == []


def test_an_epoch_that_was_taken_meanwhile_is_ours() -> None:
    world = World()
    world.take(world.registry.event(
        _core.Event(_core.DLK_EVENT_EPOCH_LOW, 0, 0, 0, 0, 3), world.now_ns))
    world.run()
    stranger = Former(A.id, seen=(4, 99))
    assert world.ask(1, stranger.reinit()).status is S.CLIENT_REMOVED_BY_SERVER


def test_who_has_seen_no_primary_or_an_older_one_is_no_matter() -> None:
    world = recovering(A, Former(12, seen=(0, 0)))
    assert come(world, A).status is S.SUCCESS
    assert come(world, Former(12, seen=(0, 0))).status is S.SUCCESS


# ---- Waiting for readiness -----------------------------------------------------------------------


def test_readiness_is_waited_for() -> None:
    world = recovering(A)
    waits = [world.send(number, m.AwaitReady(60_000)) for number in (50, 51)]
    world.run()
    assert not set(waits) & set(world.answers)
    back(world, A)
    assert [world.status(key) for key in waits] == [S.SUCCESS] * 2


def test_readiness_is_waited_for_no_longer_than_asked() -> None:
    world = recovering(A)
    short, long = world.send(50, m.AwaitReady(1000)), world.send(51, m.AwaitReady(5000))
    assert world.ask(52, m.AwaitReady(0)).status is S.NOT_READY
    deadline_ns = world.registry.next_deadline_ns()
    assert deadline_ns is not None
    assert deadline_ns <= START_NS + SECOND
    world.later(0.999)
    assert short not in world.answers
    world.later(0.001)
    assert world.status(short) is S.NOT_READY
    assert long not in world.answers


def test_a_connection_waits_once() -> None:
    world = recovering(A)
    first, second = world.send(50, m.AwaitReady(60_000)), world.send(50, m.AwaitReady(60_000))
    assert world.status(first) is S.NOT_READY
    assert second not in world.answers
    world.later(59)
    world.send(50, m.AwaitReady(10_000))
    assert world.status(second) is S.NOT_READY
    world.later(1)
    assert len(world.answers) == 2, "the end of the earlier one is not the later one's"


def test_who_is_gone_does_not_wait() -> None:
    world = recovering(A)
    key = world.send(50, m.AwaitReady(1000))
    world.take(world.registry.disconnected(50))
    world.later(2)
    back(world, A)
    assert key not in world.answers


def test_the_end_of_a_wait_that_is_over_is_not_kept() -> None:
    """Else a client that asks again and again fills the memory."""
    world = recovering(A)
    for _ in range(100):
        world.send(50, m.AwaitReady(60_000))
        world.send(51, m.AwaitReady(50_000))
    ends = world.registry._restoring._awaiting._ends
    assert [connection for _, connection in ends] == [51, 50]
    world.take(world.registry.disconnected(51))
    assert [connection for _, connection in ends] == [50]
    world.later(60)
    assert ends == []


def test_a_session_may_wait_too() -> None:
    world = recovering(A, B)
    back(world, A)
    key = world.send(A.id, m.AwaitReady(60_000))
    back(world, B)
    assert world.status(key) is S.SUCCESS


# ---- What is told --------------------------------------------------------------------------------


def test_gauges_say_how_far_it_is() -> None:
    world = recovering(A, B, LEASED)
    back(world, A)
    come(world, B)
    world.later(1)
    stats = world.stats()
    assert (stats["recovering"], stats["ready"]) == (1, 0)
    assert [gauge(world, one) for one in ("expected", "back", "absent")] == [3, 1, 2]
    assert gauge(world, "left_ms") == round(LEASED_WAIT_S * 1000) - 1000
    shown(world, evict=1)
    stats = world.stats()
    assert (stats["recovering"], stats["ready"]) == (0, 1)
    assert [gauge(world, one) for one in ("expected", "back", "absent", "left_ms")] == [3, 1, 0, 0]


def test_the_log_tells_it() -> None:
    world = recovering(A, B, LEASED)
    (begins,) = notes(world, "recovery begins")
    assert begins.fields["expected"] == 3
    back(world, A)
    world.later(0.5)
    assert notes(world, "recovery goes on") == [], "at most once a second"
    world.later(0.5)
    (first,) = notes(world, "recovery goes on")
    assert (first.fields["back"], first.fields["absent"]) == (1, 2)
    world.later(9.9)
    assert len(notes(world, "recovery goes on")) == 1, "nothing has changed"
    assert world.registry.next_deadline_ns() == world.now_ns + SECOND // 10
    world.later(0.1)
    assert len(notes(world, "recovery goes on")) == 2, "but every ten seconds"
    world.later(2)
    (evicted,) = notes(world, "client evicted")
    assert evicted.fields["client_id"] == B.id
    assert (evicted.fields["who"], evicted.level) == ("host 12", logging.WARNING)
    shown(world, evict=1)
    (ends,) = notes(world, "recovery ends")
    assert [ends.fields[one] for one in ("expected", "back", "evicted", "seconds")] == [
        3, 1, 2, 13.0]
