"""Claims: what clients of a former primary say they have got and hold, at the registry with the
real engine behind it. Who of several claimants holds is the engine's to say
(tests/native/test_engine_merge.c); here it is names, ids, slots, whose word counts, and answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recovery_tools import (
    LEASE_MS,
    LEASED,
    START_NS,
    WAIT_S,
    A,
    B,
    C,
    back,
    come,
    commands,
    notes,
    ready,
    recovering,
    shown,
)
from registry_world import SECOND, TTL_MS, Former, World

from dlock import _core
from dlock.control import messages as m
from dlock.control.messages_recover import CLAIMED_LOCK_ID_MAX
from dlock.control.registry_effects import Claims, TakeHigherEpoch
from dlock.control.registry_recovery import RecoveryPlan
from dlock.types import DlockStatus as S

ATOMIC, RW, FAIR, SEMAPHORE = range(4)
FREE, HELD, QUEUED = _core.DLK_ENTRY_FREE, _core.DLK_ENTRY_HELD, _core.DLK_ENTRY_QUEUED
EPOCH_2 = 2 << _core.DLK_COUNTER_BITS


def claim(name: bytes, lock_id: int, slot: int, token: int = 0, **fields: Any) -> m.LockClaim:
    """A lock that is got, or held if there is a token (of epoch 2, by its number)."""
    free = m.LockClaim(name, 1, lock_id, slot, ATOMIC, 1, 0, 0, FREE, 0, 0, 0, 0, 0, 0, 0, 0)
    held = {"token": EPOCH_2 + token, "state": HELD, "count": 1} if token else {}
    return free._replace(**{**held, **fields})


def update(world: World, client: Former, *claims: m.LockClaim) -> tuple[S, ...]:
    answer = world.ask(client.id, m.UpdateLocks(claims))
    assert answer.status is S.SUCCESS
    return answer.statuses


def holders(world: World, slot: int) -> list[tuple[int, int]]:
    """Client and token (of epoch 2, by its number) of each."""
    return [(one.client_id, one.token - EPOCH_2) for one in world.engine.view(slot)
            if one.state == HELD]


def locks(world: World) -> dict[bytes, tuple[int, int]]:
    """Id and slot by name, of those that the registry has and the engine has too."""
    names = [b"%c" % letter for letter in b"abcdefgh"]
    found = [world.registry._locks.find(name) for name in names]
    return {one.descriptor: (one.id, one.slot) for one in found if one is not None}


# ---- Names, ids and slots ------------------------------------------------------------------------


def test_ids_and_slots_survive() -> None:
    world = recovering(A, B)
    come(world, A)
    assert update(world, A, claim(b"a", 70, 5, token=9), claim(b"b", 12, 0)) == (
        S.SUCCESS, S.SUCCESS)
    world.ask(A.id, m.ReinitDone())
    back(world, B)
    assert world.get(B.id, b"a") == m.LockResult(S.SUCCESS, 70, 5)
    assert world.get(B.id, b"b") == m.LockResult(S.SUCCESS, 12, 0)
    assert world.get(A.id, b"a").status is S.ERROR, "it has got it"
    assert holders(world, 5) == [(A.id, 9)]


def test_one_command_takes_the_claims_of_a_message() -> None:
    world = recovering(A)
    come(world, A)
    update(world, A, *(claim(b"%c" % name, name, name % 8, token=name) for name in b"abcdefgh"))
    (taken,) = world.of(Claims)
    assert (taken.command.size, len(taken.claims)) == (8, 8)
    assert commands(world, _core.DLK_COMMAND_LOCK_OPEN) == [], "it opens the locks too"


@pytest.mark.parametrize("refused", [False, True])
def test_new_ids_are_above_all_that_were_claimed(refused: bool) -> None:
    world = recovering(A)
    come(world, A)
    slot = 8 if refused else 0
    status = S.SERVER_NO_RESOURCE if refused else S.SUCCESS
    assert update(world, A, claim(b"a", 70, slot)) == (status,)
    world.ask(A.id, m.ReinitDone())
    assert world.get(A.id, b"new").lock_id == 71


def test_no_claim_can_use_the_ids_up() -> None:
    """Neither one that is refused, nor one that is taken over."""
    half, end = CLAIMED_LOCK_ID_MAX, m.ID_MAX
    world = recovering(A)
    come(world, A)
    assert update(world, A, claim(b"a", end, 0), claim(b"b", end, 99), claim(b"c", 5, 1)) == (
        S.EINVAL, S.EINVAL, S.SUCCESS)
    assert update(world, A, claim(b"d", half + 1, 2)) == (S.EINVAL,)
    assert update(world, A, claim(b"e", half - 1, 3)) == (S.SUCCESS,)
    world.ask(A.id, m.ReinitDone())
    assert world.get(A.id, b"f").lock_id == half
    assert notes(world, "new locks cannot be claimed after a restart") == []
    assert world.get(A.id, b"g").lock_id == half + 1
    assert world.get(A.id, b"h").lock_id == half + 2
    (note,) = notes(world, "new locks cannot be claimed after a restart")
    assert note.fields == {"ids_used": half, "ids_left": end - half}


def test_at_the_end_of_the_ids_there_are_no_new_names() -> None:
    world = World()
    world.init(1)
    world.registry._locks.heard_of(m.ID_MAX - 1)
    assert world.get(1, b"last").lock_id == m.ID_MAX
    assert world.get(1, b"none").status is S.SERVER_NO_RESOURCE
    world.init(2)
    assert world.get(2, b"last") == m.LockResult(S.SUCCESS, m.ID_MAX, 0), "the old ones are served"


def test_slots_that_nobody_claimed_are_free() -> None:
    world = recovering(A)
    come(world, A)
    update(world, A, claim(b"a", 70, 5), claim(b"b", 71, 7), claim(b"c", 72, 0))
    world.ask(A.id, m.ReinitDone())
    got = [world.get(A.id, b"%d" % number) for number in range(6)]
    assert [one.status for one in got] == [S.SUCCESS] * 5 + [S.SERVER_NO_RESOURCE]
    assert sorted(one.slot for one in got[:5]) == [1, 2, 3, 4, 6]
    assert world.release(A.id, 70) is S.SUCCESS
    assert world.get(A.id, b"last").slot == 5


def test_a_lock_beyond_the_table_is_refused_and_the_others_are_not() -> None:
    world = recovering(A)
    come(world, A)
    assert update(world, A, claim(b"a", 1, 2**32 - 1), claim(b"b", 2, 0, token=1)) == (
        S.SERVER_NO_RESOURCE, S.SUCCESS)
    assert holders(world, 0) == [(A.id, 1)]


@pytest.mark.parametrize("lie", [
    {"descriptor": b"b"}, {"kind": RW}, {"slot": 4}, {"kind": SEMAPHORE, "size": 0}])
def test_one_id_is_one_lock(lie: dict[str, Any]) -> None:
    world = recovering(A, B)
    come(world, A)
    come(world, B)
    good = claim(b"a", 70, 3, token=5)
    assert update(world, A, good) == (S.SUCCESS,)
    assert update(world, B, claim(b"a", 70, 3)._replace(**lie)) == (S.EINVAL,)
    assert update(world, A, good) == (S.SUCCESS,)


def test_semaphores_have_one_size() -> None:
    world = recovering(A, B)
    come(world, A)
    come(world, B)
    slots = claim(b"s", 70, 3, token=5, kind=SEMAPHORE, size=2)
    assert update(world, A, slots) == (S.SUCCESS,)
    assert update(world, B, slots._replace(size=3, token=EPOCH_2 + 6)) == (S.EINVAL,)
    assert update(world, B, slots._replace(token=EPOCH_2 + 6)) == (S.SUCCESS,)


def test_the_newer_lock_of_a_name_counts() -> None:
    world = recovering(A, B)
    come(world, A)
    come(world, B)
    assert update(world, A, claim(b"a", 5, 1, token=5)) == (S.SUCCESS,)
    assert update(world, B, claim(b"a", 9, 2, token=7)) == (S.SUCCESS,)
    assert (holders(world, 1), holders(world, 2)) == ([], [(B.id, 7)])
    assert [one.result for one in world.replies] == [_core.DLK_RESULT_NOT_HELD], "A is told"
    assert update(world, A, claim(b"a", 5, 1, token=5)) == (S.LOCK_NOT_GET,)
    for client in (A, B):
        world.ask(client.id, m.ReinitDone())
    assert world.get(A.id, b"a") == m.LockResult(S.SUCCESS, 9, 2)
    assert world.get(A.id, b"b").slot == 0
    assert world.get(A.id, b"c").slot == 1, "the older one's is free"


def test_the_newer_lock_of_a_slot_counts() -> None:
    world = recovering(A, B)
    come(world, A)
    come(world, B)
    assert update(world, A, claim(b"a", 5, 1, token=5)) == (S.SUCCESS,)
    assert update(world, B, claim(b"b", 9, 1, token=7)) == (S.SUCCESS,)
    assert holders(world, 1) == [(B.id, 7)]
    assert update(world, A, claim(b"a", 5, 1, token=5)) == (S.LOCK_NOT_GET,)


def test_the_newer_lock_came_first() -> None:
    world = recovering(A, B)
    come(world, A)
    come(world, B)
    assert update(world, B, claim(b"a", 9, 2, token=7)) == (S.SUCCESS,)
    assert update(world, A, claim(b"a", 5, 1, token=5), claim(b"x", 6, 2)) == (
        S.LOCK_NOT_GET, S.LOCK_NOT_GET)
    assert holders(world, 1) == []


def test_a_displaced_lock_is_no_lock_for_later_requests() -> None:
    world = recovering(A, B)
    come(world, A)
    come(world, B)
    update(world, A, claim(b"a", 5, 1))
    update(world, B, claim(b"a", 9, 2))
    for client in (A, B):
        world.ask(client.id, m.ReinitDone())
    assert update(world, A, claim(b"a", 5, 1)) == (S.LOCK_NOT_GET,)
    assert world.release(A.id, 5) is S.SUCCESS, "it may let it go all the same"
    assert world.release(A.id, 5) is S.LOCK_NOT_GET


def test_a_lock_that_is_displaced_while_it_opens() -> None:
    """A's claim is refused, so the lock is opened by a command of its own; B's newer one comes
    before that is answered."""
    world = recovering(A, B)
    come(world, A)
    come(world, B)
    world.send(A.id, m.UpdateLocks((claim(b"a", 5, 1, state=HELD),)))
    while not commands(world, _core.DLK_COMMAND_LOCK_OPEN):
        assert world.plane_step() or world.event_step()
    assert update(world, B, claim(b"a", 9, 1, token=7)) == (S.SUCCESS,)
    for client in (A, B):
        world.ask(client.id, m.ReinitDone())
    assert ready(world)
    assert world.release(A.id, 5) is S.SUCCESS
    world.later(0)
    world.run()
    assert world.get(A.id, b"a") == m.LockResult(S.SUCCESS, 9, 1)
    assert holders(world, 1) == [(B.id, 7)]


CLAIMED = st.lists(
    st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(1, 6), st.integers(0, 2)),
    min_size=1, max_size=7, unique_by=lambda one: one[1])


@settings(max_examples=300, deadline=None)
@given(CLAIMED, st.randoms(use_true_random=False), st.data())
def test_the_order_of_claims_means_nothing(
    claimed: list[tuple[bytes, int, int]], shuffler: Any, data: st.DataObject
) -> None:
    """Each id is one lock; any messages, any order, any repetition: the same locks in the end."""
    results = []
    for _ in range(2):
        order = claimed * 2
        shuffler.shuffle(order)
        world = recovering(A, B)
        come(world, A)
        while order:
            size = data.draw(st.integers(1, len(order)))
            update(world, A, *(claim(*one) for one in order[:size]))
            order = order[size:]
        final = update(world, A, *(claim(*one) for one in claimed))
        engine = {view.slot: view.id for view in surveyed(world)}
        assert engine == {slot: lock_id for lock_id, slot in locks(world).values()}
        results.append((final, locks(world)))
    assert results[0] == results[1]


def surveyed(world: World) -> list[Any]:
    """The open locks of the engine."""
    room = _core.ffi.new("struct dlk_lock_view[]", 8)
    world.engine.command(_core.Command(
        _core.DLK_COMMAND_SURVEY, value=int(_core.ffi.cast("uintptr_t", room)), size=8),
        world.now_ns)
    return [one for one in room if one.id]


# ---- Whose word counts ---------------------------------------------------------------------------


def test_a_live_claim_is_accepted_and_a_lapsed_lease_is_lost() -> None:
    world = recovering(A, B)
    come(world, A)
    live = claim(b"a", 1, 0, token=5, leased=1, remaining_ms=500)
    lapsed = claim(b"b", 2, 1, token=6, leased=1, lapsed=1)
    assert update(world, A, live, lapsed) == (S.SUCCESS, S.FAIL)
    assert (holders(world, 0), holders(world, 1)) == ([(A.id, 5)], [])
    world.ask(A.id, m.ReinitDone())
    back(world, B)
    assert world.get(A.id, b"b").status is S.ERROR, "the name is still got"


@pytest.mark.parametrize(("former", "plan", "limit_ms"), [
    (A, {}, TTL_MS),
    (LEASED, {}, LEASE_MS),
    (A, {"durable": False, "count": 1}, 3_600_000),
    (A, {"durable": False, "not_before_ns": START_NS + 11 * SECOND}, 3_600_000)])
def test_a_lease_that_the_session_cannot_have_asked_for_is_lost(
    former: Former, plan: dict[str, Any], limit_ms: int
) -> None:
    world = recovering(*([] if plan else [former]), **plan)
    come(world, former)
    lie = claim(b"a", 1, 0, token=5, leased=1, remaining_ms=limit_ms + 1)
    good = claim(b"b", 2, 1, token=6, leased=1, remaining_ms=limit_ms)
    assert update(world, former, lie, good) == (S.FAIL, S.SUCCESS)
    assert (holders(world, 0), holders(world, 1)) == ([], [(former.id, 6)])
    assert world.stats()["FAIL"] == 1
    assert world.engine.counters()[_core.DLK_COUNT_CLAIMS_LOST] == 1


def test_a_lease_of_a_predecessor_that_promised_more_is_taken_over() -> None:
    """The server was started anew with shorter sessions."""
    world = World(RecoveryPlan(START_NS, 3 * TTL_MS, (A.entry,)))
    come(world, A)
    longer = claim(b"a", 1, 0, token=5, leased=1, remaining_ms=3 * TTL_MS)
    assert update(world, A, longer) == (S.SUCCESS,)
    assert update(world, A, claim(b"b", 2, 1, token=6, remaining_ms=2**32 - 1)) == (
        S.SUCCESS,), "without a lease it says nothing"


@pytest.mark.parametrize(("plan", "status"), [
    ({"durable": True}, S.SUCCESS),
    ({"durable": False, "count": 1}, S.SUCCESS),
    ({"durable": False, "trusted": True, "not_before_ns": START_NS + SECOND}, S.SUCCESS),
    ({"durable": False, "not_before_ns": START_NS + 11 * SECOND}, S.FAIL)])
def test_a_lapsed_session_is_believed_if_the_roster_lists_it_or_on_the_applications_word(
    plan: dict[str, Any], status: S
) -> None:
    world = recovering(*([A] if plan["durable"] else []), **plan)
    come(world, A)
    assert update(world, A, claim(b"a", 1, 0, token=5, lapsed=1)) == (status,)


def test_waiters_come_back_in_their_old_order() -> None:
    world = recovering(A, B, C)
    for client in (A, B, C):
        come(world, client)
    update(world, A, claim(b"a", 1, 0, token=5))
    for client, stamp in ((C, 8), (B, 7)):
        waits = claim(b"a", 1, 0, state=QUEUED, stamp=EPOCH_2 + stamp, request_id=stamp,
                      wait_ms=2**32 - 1)
        assert update(world, client, waits) == (S.SUCCESS,)
    assert [one.client_id for one in world.engine.view(0)] == [A.id, B.id, C.id]


def test_after_the_end_a_claim_is_compared_with_what_is_known() -> None:
    world = recovering(A)
    come(world, A)
    update(world, A, claim(b"a", 1, 0, token=5))
    world.ask(A.id, m.ReinitDone())
    assert ready(world)
    assert update(world, A, claim(b"a", 1, 0, token=5), claim(b"z", 2, 1, token=6)) == (
        S.SUCCESS, S.LOCK_NOT_GET)
    assert len(world.of(Claims)) == 1


def test_the_claims_of_an_evicted_client_are_free() -> None:
    world = recovering(A, B)
    come(world, A)
    update(world, A, claim(b"a", 1, 0, token=5))
    late = world.send(A.id, m.UpdateLocks((claim(b"b", 2, 1, token=6),)))
    shown(world, evict=2, ids=[A.id])
    assert late in world.answers
    assert holders(world, 0) == holders(world, 1) == []
    back(world, B)
    world.later(0)
    world.run()
    assert world.get(B.id, b"a").lock_id == 3, "nobody has got it any more"


def test_who_is_away_when_it_ends_has_nothing() -> None:
    world = recovering(A, B)
    come(world, A)
    update(world, A, claim(b"a", 1, 0, token=5))
    back(world, B)
    world.later(WAIT_S)
    world.run()
    assert holders(world, 0) == [(A.id, 5)]
    world.later(WAIT_S)
    world.run()
    assert ready(world)
    assert holders(world, 0) == []
    key = world.send(A.id, m.UpdateLocks((claim(b"b", 2, 1, token=6),)))
    assert world.status(key) is S.CLIENT_NOT_INIT, "its connection was closed"


def test_a_lock_that_nobody_has_got_yet_stays_until_all_are_there() -> None:
    world = recovering(A, B)
    come(world, A)
    update(world, A, claim(b"a", 7, 3), claim(b"b", 8, 4))
    world.ask(A.id, m.ClientDeinit())
    assert world.stats()["locks"] == 2, "B may have got it"
    come(world, B)
    assert update(world, B, claim(b"a", 7, 3)) == (S.SUCCESS,)
    world.ask(B.id, m.ReinitDone())
    world.later(0)
    world.run()
    assert ready(world)
    assert world.stats()["locks"] == 1
    assert world.get(B.id, b"b").lock_id == 9


def test_with_a_state_directory_no_claim_can_be_of_our_epoch() -> None:
    world = recovering(A)
    come(world, A)
    ours, newer = (
        claim(b"a", 1, 0, token=5)._replace(token=(epoch << 43) + 5) for epoch in (3, 7))
    assert update(world, A, ours) == (S.EINVAL,)
    assert world.ask(A.id, m.UpdateLocks((newer,))).status is S.ERROR
    assert world.stats()["EPOCH_AHEAD"] == 1


@pytest.mark.parametrize("field", ["token", "stamp"])
@pytest.mark.parametrize("epoch", [3, 7])
def test_without_one_a_claim_shows_an_epoch_too(field: str, epoch: int) -> None:
    world = recovering(durable=False, count=1)
    come(world, A)
    newer = claim(b"a", 1, 0)._replace(**{field: (epoch << 43) + 5})
    answer = world.ask(A.id, m.UpdateLocks((newer,)))
    assert answer.status is S.NOT_READY
    assert world.of(TakeHigherEpoch) == [TakeHigherEpoch(epoch)]


def test_who_has_been_here_may_have_tokens_of_ours() -> None:
    """It was served already, and its link broke."""
    world = recovering(durable=False, count=2)
    come(world, A)
    assert come(world, Former(A.id, seen=(3, 99)), connection=30).status is S.SUCCESS
    ours = claim(b"a", 1, 0, token=5)._replace(token=(3 << 43) + 5)
    assert world.ask(30, m.UpdateLocks((ours,))).statuses == (S.EINVAL,)
    assert world.of(TakeHigherEpoch) == []


def test_claims_before_anything_else() -> None:
    world = recovering(A)
    assert world.ask(A.id, m.UpdateLocks((claim(b"a", 1, 0),))).status is S.NOT_READY
    assert world.ask(B.id, m.UpdateLocks((claim(b"a", 1, 0),))).status is S.NOT_READY
    come(world, A, early=False)
    assert update(world, A, claim(b"a", 1, 0)) == (S.SUCCESS,), "the mirror's too"


@pytest.mark.parametrize(("result", "status"), [
    (_core.DLK_RESULT_NO_RESOURCE, S.NOT_READY),
    (_core.DLK_RESULT_REMOVED, S.CLIENT_REMOVED_BY_SERVER)])
def test_a_message_of_which_nothing_was_taken(result: int, status: S) -> None:
    """For want of memory: the first claim makes the engine's tables of them. It can be made again,
    and B's claim of the same lock, which is on its way by then, is taken."""
    world = recovering(A, B)
    come(world, A)
    come(world, B)
    hers = claim(b"a", 1, 0, token=5, kind=RW, mode=1)
    his = hers._replace(token=EPOCH_2 + 6)
    key = world.send(A.id, m.UpdateLocks((hers,)))
    failed = world.commands.popleft()
    assert failed.op == _core.DLK_COMMAND_CLAIM
    world.events.append(_core.Event(
        _core.DLK_EVENT_DONE, result, 0, 0, cookie=failed.cookie, value=0))
    other = world.send(B.id, m.UpdateLocks((his,)))
    world.run()
    assert world.status(key) is status
    assert world.answers[other] == m.Statuses(S.SUCCESS, (S.SUCCESS,))
    assert locks(world) == {b"a": (1, 0)}
    assert update(world, A, hers) == (S.SUCCESS,)
    assert sorted(holders(world, 0)) == [(A.id, 5), (B.id, 6)]


def test_a_message_is_answered_in_its_order() -> None:
    world = recovering(A, B)
    come(world, A)
    come(world, B)
    update(world, B, claim(b"a", 9, 2, token=7))
    assert update(
        world, A, claim(b"b", 3, 3, token=1), claim(b"a", 5, 1, token=5),
        claim(b"c", 4, 4, token=2, lapsed=1, leased=1), claim(b"d", 6, 99), claim(b"e", 7, 5),
    ) == (S.SUCCESS, S.LOCK_NOT_GET, S.FAIL, S.SERVER_NO_RESOURCE, S.SUCCESS)


def test_two_owners_of_one_lock_are_two_claims() -> None:
    world = recovering(A)
    come(world, A)
    read = claim(b"a", 1, 0, token=5, kind=RW, mode=1)
    assert update(world, A, read, read._replace(owner=2, token=EPOCH_2 + 6)) == (
        S.SUCCESS, S.SUCCESS)
    assert len(holders(world, 0)) == 2
