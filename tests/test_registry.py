"""The registry as a function, with the real engine behind it."""

from __future__ import annotations

import pytest
from registry_world import TTL_MS, World, reinit

from dlock import _core
from dlock.control import messages as m
from dlock.control import registry_locks
from dlock.control.registry import negotiate
from dlock.control.registry_effects import (
    PersistEnded,
    PersistEpoch,
    PersistLease,
    PersistSession,
    PersistStruck,
)
from dlock.control.registry_sessions import lease_granted_ms
from dlock.control.roster import is_secret_of
from dlock.types import DlockStatus as S

ATOMIC, RW, FAIR, SEMAPHORE = range(4)


@pytest.fixture
def world() -> World:
    return World()


# ---- Sessions ------------------------------------------------------------------------------------


def test_a_welcome_says_everything(world: World) -> None:
    welcome = world.init(1)
    assert welcome.status is S.SUCCESS
    assert 1 <= welcome.client_id <= 0x7FFFFFFF
    assert (welcome.version, welcome.data_port, welcome.epoch) == (1, 4711, 3)
    assert (welcome.incarnation, welcome.session_ttl_ms, welcome.attach) == (99, TTL_MS, 1)
    assert welcome.secret != bytes(16)
    assert world.init(2).client_id != welcome.client_id


def test_it_is_answered_only_after_the_plane_knows(world: World) -> None:
    key = world.send(1, m.ClientInit(1, 1, {}))
    assert key not in world.answers
    world.plane_step()
    assert key not in world.answers
    world.event_step()
    assert world.status(key) is S.SUCCESS


@pytest.mark.parametrize(("low", "high", "version"), [
    (1, 1, 1), (0, 9, 1), (1, 65535, 1), (2, 3, None), (0, 0, None), (1, 0, None)])
def test_versions(world: World, low: int, high: int, version: int | None) -> None:
    assert negotiate(low, high) == version
    welcome = world.ask(1, m.ClientInit(low, high, {}))
    assert welcome.status is (S.SUCCESS if version else S.PROTO_VERSION_NEGOTIATION_FAIL)


def test_max_clients(world: World) -> None:
    for connection in range(4):
        assert world.init(connection).status is S.SUCCESS
    assert world.init(4).status is S.SERVER_NO_RESOURCE
    assert world.ask(0, m.ClientDeinit()).status is S.SUCCESS
    assert world.init(4).status is S.SUCCESS
    assert world.stats()["SERVER_NO_RESOURCE"] == 1


def test_a_connection_has_one_session(world: World) -> None:
    assert world.init(1).status is S.SUCCESS
    assert world.init(1).status is S.ERROR


def test_nothing_without_a_session(world: World) -> None:
    assert world.ask(1, m.Heartbeat()).status is S.CLIENT_NOT_INIT
    assert world.ask(1, m.GetLocks((m.LockSpec(b"a", 0),))).status is S.CLIENT_NOT_INIT
    assert world.ask(1, m.Stats()).stats["CLIENT_NOT_INIT"] == 2


def test_a_client_whose_connection_broke_before_the_welcome_is_ended(world: World) -> None:
    world.send(1, m.ClientInit(1, 1, {}))
    world.take(world.registry.disconnected(1))
    world.run()
    assert world.stats()["clients"] == world.stats()["sessions_leaving"] == 0


def test_a_broken_connection_keeps_its_session(world: World) -> None:
    welcome = world.init(1)
    world.get(1, b"a")
    world.take(world.registry.disconnected(1))
    again = world.ask(2, reinit(welcome))
    assert again.status is S.SUCCESS
    assert (again.client_id, again.secret) == (welcome.client_id, welcome.secret)
    assert again.attach > welcome.attach
    assert world.get(2, b"a").status is S.ERROR  # still got


def test_a_later_connection_supersedes(world: World) -> None:
    welcome = world.init(1)
    assert world.ask(2, reinit(welcome)).status is S.SUCCESS
    assert world.closed == [1]
    assert world.ask(2, m.ReinitDone()).status is S.SUCCESS
    assert world.ask(2, m.ReinitDone()).status is S.ERROR
    # The engine takes the new attach number only.
    assert world.ask(2, reinit(welcome)).attach == 3
    assert world.closed == [1]


def test_two_reinits_at_once_leave_the_later_one(world: World) -> None:
    welcome = world.init(1)
    first = world.send(2, reinit(welcome))
    second = world.send(3, reinit(welcome))
    world.run()
    assert world.status(first) is S.ERROR
    assert world.status(second) is S.SUCCESS
    assert world.closed == [1, 2]


def test_wrong_secret_and_unknown_client(world: World) -> None:
    welcome = world.init(1)
    assert world.ask(2, reinit(welcome, b"x" * 16)).status is S.CLIENT_REMOVED_BY_SERVER
    assert world.stats()["CLIENT_ID_VERIFY_FAIL"] == 1
    stranger = m.ClientReinit(1, 1, welcome.client_id ^ 1, welcome.secret, 0, 0, 0, {})
    assert world.ask(2, stranger).status is S.CLIENT_REMOVED_BY_SERVER
    assert world.ask(1, m.Heartbeat()).status is S.SUCCESS
    other = world.init(3)
    assert world.ask(3, reinit(welcome)).status is S.ERROR
    assert world.ask(3, reinit(other)).status is S.SUCCESS


def test_a_session_expires(world: World) -> None:
    welcome = world.init(1)
    lock = world.get(1, b"a")
    world.later(TTL_MS / 1000)
    heartbeat = world.send(1, m.Heartbeat())  # crosses the end of the session
    world.run()
    assert world.status(heartbeat) is S.CLIENT_REMOVED_BY_SERVER
    assert world.closed == [1]
    assert world.ask(2, reinit(welcome)).status is S.CLIENT_REMOVED_BY_SERVER
    assert world.stats()["locks"] == world.stats()["sessions_leaving"] == 0
    world.init(2)
    assert world.get(2, b"a").lock_id > lock.lock_id


def test_requests_on_the_control_plane_renew(world: World) -> None:
    world.init(1)
    for _ in range(5):
        world.later(TTL_MS / 1000 * 0.7)
        assert world.ask(1, m.ReinitDone()).status is S.ERROR
        world.run()
    world.later(TTL_MS / 1000 * 0.7)
    assert world.ask(1, m.Heartbeat()).status is S.SUCCESS
    assert world.closed == []


def test_a_slot_is_reused_only_when_freed(world: World) -> None:
    """A leased hold keeps the slot of its ended session; a clean end frees at once."""
    one, two = world.init(1), world.init(2)
    lock = world.get(1, b"a")
    world.ask(1, m.DeclareLease(30_000))
    world.hold(one.session_slot, lock, lease_ms=30_000)
    world.later(5)
    world.ask(2, m.Heartbeat())
    world.later(5)
    world.run()
    assert world.closed == [1]
    assert world.stats()["sessions_leaving"] == 1
    assert world.init(3).session_slot not in (one.session_slot, two.session_slot)
    again = world.get(3, b"a")
    assert again.lock_id == lock.lock_id, "the hold still lives, so the lock does"
    world.later(20.1)
    world.run()
    assert world.stats()["sessions_leaving"] == 0
    assert world.init(4).status is S.SUCCESS


def test_a_client_with_very_many_locks_leaves_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_locks, "RELEASES_PER_TICK", 3)
    world = World()
    world.init(1)
    names = [b"%d" % number for number in range(8)]
    ids = [world.get(1, name).lock_id for name in names]
    assert world.ask(1, m.ClientDeinit()).status is S.SUCCESS
    assert world.stats()["locks"] == 5
    assert world.registry.next_deadline_ns() == 0
    world.init(2)
    assert world.get(2, names[7]).lock_id == ids[7]  # not released yet: joined
    assert world.get(2, names[0]).lock_id > ids[7]  # released: a new one
    for _ in range(2):
        world.later(0)
        world.run()
    assert world.registry.next_deadline_ns() is None
    assert world.stats()["locks"] == 2
    assert world.release(2, ids[7]) is S.SUCCESS
    assert world.stats()["locks"] == 1


def test_deinit_frees_leased_holds_too(world: World) -> None:
    welcome = world.init(1)
    lock = world.get(1, b"a")
    world.ask(1, m.DeclareLease(30_000))
    world.hold(welcome.session_slot, lock, lease_ms=30_000)
    assert world.ask(1, m.ClientDeinit()).status is S.SUCCESS
    assert (world.stats()["locks"], world.stats()["sessions_leaving"]) == (0, 0)
    assert world.ask(1, m.Heartbeat()).status is S.CLIENT_NOT_INIT
    assert world.init(1).status is S.SUCCESS


# ---- What is written down ------------------------------------------------------------------------


def test_a_promise_is_written_before_it_is_made(world: World) -> None:
    welcome = world.init(1)
    kinds = [type(effect).__name__ for effect in world.log]
    assert kinds.index("PersistSession") < kinds.index("Command")
    (entry,) = [one.entry for one in world.of(PersistSession)]
    assert (entry.client_id, entry.lease_ms, entry.ended) == (welcome.client_id, 0, False)
    assert is_secret_of(entry, welcome.secret)
    assert not is_secret_of(entry, bytes(16))
    assert entry.who == "here"
    assert world.ask(1, m.DeclareLease(TTL_MS + 1)).status is S.SUCCESS
    lease = world.of(PersistLease)
    assert lease == [PersistLease(welcome.client_id, 16384)]
    sent = next(one for one in world.of(_core.Command)
                if one.op == _core.DLK_COMMAND_SESSION_LEASE)
    assert sent.lease_ms == 16384
    assert world.log.index(lease[0]) < world.log.index(sent)
    world.ask(1, m.DeclareLease(16_384))
    world.ask(1, m.DeclareLease(1))
    assert len(world.of(PersistLease)) == 1
    assert world.init(2).declared_lease_ms == TTL_MS, "a declaration is for one session"


def test_a_session_is_struck_before_it_is_closed(world: World) -> None:
    welcome = world.init(1)
    world.ask(1, m.ClientDeinit())
    (struck,) = world.of(PersistStruck)
    assert struck == PersistStruck(welcome.client_id)
    (closed,) = [one for one in world.of(_core.Command)
                 if one.op == _core.DLK_COMMAND_SESSION_CLOSE]
    assert world.log.index(struck) < world.log.index(closed)
    assert world.of(PersistEnded) == []


def test_an_expired_session_is_written_down_as_ended_until_nothing_of_it_is_left(
    world: World
) -> None:
    welcome = world.init(1)
    lock = world.get(1, b"a")
    world.ask(1, m.DeclareLease(30_000))
    world.hold(welcome.session_slot, lock, lease_ms=30_000)
    world.later(TTL_MS / 1000)
    world.run()
    (ends,) = [one for one in world.of(_core.Command) if one.op == _core.DLK_COMMAND_SESSION_END]
    assert world.log.index(PersistEnded(welcome.client_id)) < world.log.index(ends)
    assert world.of(PersistStruck) == []
    world.later(20)
    world.run()
    assert world.of(PersistStruck) == [PersistStruck(welcome.client_id)]
    assert world.of(PersistEnded) == [PersistEnded(welcome.client_id)]


def test_lease_limits(world: World) -> None:
    world.init(1)
    assert world.ask(1, m.DeclareLease(3_600_001)).status is S.EINVAL
    assert world.ask(1, m.DeclareLease(3_600_000)).status is S.SUCCESS
    assert world.of(PersistLease)[-1].lease_ms == 3_600_000
    assert [lease_granted_ms(one, 1000) for one in (1, 2, 3, 500, 513, 1000)] == [
        1, 2, 4, 512, 1000, 1000]


def test_a_lease_as_long_as_a_session_is_free(world: World) -> None:
    assert world.init(1).declared_lease_ms == TTL_MS
    assert world.ask(1, m.DeclareLease(TTL_MS)).status is S.SUCCESS
    assert world.of(PersistLease) == []


def test_without_a_state_directory_max_lease_is_free() -> None:
    world = World(durable=False)
    assert world.init(1).declared_lease_ms == 3_600_000
    world.ask(1, m.DeclareLease(3_600_000))
    assert world.of(PersistLease) == []


def test_the_next_epoch_is_written_before_it_is_taken(world: World) -> None:
    event = _core.Event(_core.DLK_EVENT_EPOCH_LOW, 0, 0, 0, 0, 3)
    world.take(world.registry.event(event, world.now_ns))
    assert world.of(PersistEpoch)[0].epoch == 4
    assert world.of(_core.Command)[0].value == 4
    assert world.log.index(world.of(PersistEpoch)[0]) < world.log.index(world.of(_core.Command)[0])
    world.run()
    last = _core.Event(_core.DLK_EVENT_EPOCH_LOW, 0, 0, 0, 0, m.EPOCH_MAX)
    world.take(world.registry.event(last, world.now_ns))
    assert len(world.of(PersistEpoch)) == 1


# ---- Locks ---------------------------------------------------------------------------------------


def test_one_name_is_one_lock(world: World) -> None:
    world.init(1)
    world.init(2)
    lock = world.get(1, b"a", FAIR)
    assert lock.status is S.SUCCESS
    assert world.get(2, b"a", FAIR) == lock
    assert world.get(2, b"a", FAIR) == m.LockResult(S.ERROR, lock.lock_id, lock.slot)
    assert world.get(2, b"a", RW) == m.LockResult(S.ERROR)
    other = world.get(1, b"b", FAIR)
    assert other.lock_id == lock.lock_id + 1
    assert other.slot != lock.slot


def test_semaphores_have_one_size(world: World) -> None:
    world.init(1)
    world.init(2)
    lock = world.get(1, b"s", SEMAPHORE, 3)
    assert world.get(2, b"s", SEMAPHORE, 2) == m.LockResult(S.ERROR)
    assert world.get(2, b"s", SEMAPHORE, 0) == m.LockResult(S.EINVAL)
    assert world.get(2, b"s", SEMAPHORE, 3) == lock
    assert world.get(1, b"a", ATOMIC, 0).status is S.SUCCESS, "other kinds have no size"
    assert world.get(2, b"a", ATOMIC, 5).status is S.SUCCESS


def test_a_batch_is_answered_item_by_item(world: World) -> None:
    world.init(1)
    names = [b"%d" % number for number in range(8)]
    answer = world.ask(1, m.GetLocks((
        *(m.LockSpec(name, 0) for name in names), m.LockSpec(b"0", 0), m.LockSpec(b"9", 0))))
    assert answer.status is S.SUCCESS
    assert [one.status for one in answer.results] == [
        *[S.SUCCESS] * 8, S.ERROR, S.SERVER_NO_RESOURCE]
    assert [one.lock_id for one in answer.results] == [*range(1, 9), 1, -1]
    assert sorted(one.slot for one in answer.results[:8]) == list(range(8))
    statuses = world.ask(1, m.ReleaseLocks((1, 1, 99, 2)))
    assert statuses.statuses == (S.SUCCESS, S.LOCK_NOT_GET, S.LOCK_NOT_GET, S.SUCCESS)
    assert world.get(1, b"9").status is S.SUCCESS, "its slot was free when it was answered"
    assert world.get(1, b"9").lock_id == 9


def test_another_clients_get_waits_for_the_same_open(world: World) -> None:
    world.init(1)
    world.init(2)
    first = world.send(1, m.GetLocks((m.LockSpec(b"a", 0),)))
    second = world.send(2, m.GetLocks((m.LockSpec(b"a", 0),)))
    assert not {first, second} & set(world.answers)
    assert len([one for one in world.of(_core.Command)
                if one.op == _core.DLK_COMMAND_LOCK_OPEN]) == 1
    world.run()
    assert world.answers[first] == world.answers[second]


def test_a_lock_that_the_plane_refuses_is_no_lock(world: World) -> None:
    world.init(1)
    world.init(2)
    first = world.send(1, m.GetLocks((m.LockSpec(b"a", 0),)))
    second = world.send(2, m.GetLocks((m.LockSpec(b"a", 0),)))
    bad = world.commands.pop()
    world.commands.append(bad._replace(slot=1000))
    world.run()
    for key in (first, second):
        assert world.answers[key] == m.LockIds(S.SUCCESS, (m.LockResult(S.SERVER_NO_RESOURCE),))
    assert world.get(1, b"a").status is S.SUCCESS


def test_closing_lingers_while_a_hold_lasts(world: World) -> None:
    """A leased hold of an ended session keeps the lock: name, kind and id."""
    welcome = world.init(1)
    lock = world.get(1, b"a", FAIR)
    hold = world.hold(welcome.session_slot, lock)
    world.release(1, lock.lock_id)
    assert world.stats()["locks"] == 1
    assert world.get(1, b"a", RW) == m.LockResult(S.ERROR)
    assert world.get(1, b"a", FAIR) == lock
    world.release(1, lock.lock_id)
    world.unlock(welcome.session_slot, lock, hold)
    world.run()
    assert world.stats()["locks"] == 0
    assert world.get(1, b"a", RW).lock_id == lock.lock_id + 1


def test_open_again_crosses_the_answer_that_it_closed(world: World) -> None:
    """LOCK_CLOSE is carried out at once (value 1), and LOCK_OPEN is already behind it."""
    world.init(1)
    lock = world.get(1, b"a")
    released = world.send(1, m.ReleaseLocks((lock.lock_id,)))
    got = world.send(1, m.GetLocks((m.LockSpec(b"a", 0),)))
    while world.plane_step():
        pass
    while world.event_step():
        pass
    assert world.answers[released].statuses == (S.SUCCESS,)  # type: ignore[attr-defined]
    assert world.answers[got].results == (lock,)  # type: ignore[attr-defined]
    assert world.stats()["locks"] == 1
    other = world.get(1, b"b")
    assert other.slot != lock.slot, "the slot is in use"


def test_open_again_crosses_lock_closed(world: World) -> None:
    """The last hold ends, LOCK_CLOSED is under way, and LOCK_OPEN of the same lock is sent."""
    welcome = world.init(1)
    lock = world.get(1, b"a")
    hold = world.hold(welcome.session_slot, lock)
    world.release(1, lock.lock_id)
    world.unlock(welcome.session_slot, lock, hold)
    assert [one.op for one in world.events] == [_core.DLK_EVENT_LOCK_CLOSED]
    got = world.send(1, m.GetLocks((m.LockSpec(b"a", 0),)))
    world.run()
    assert world.answers[got].results == (lock,)  # type: ignore[attr-defined]
    assert world.stats()["locks"] == 1
    world.hold(welcome.session_slot, lock)  # the engine has it open


def test_closed_again_after_a_crossing(world: World) -> None:
    """The stale LOCK_CLOSED of the first closing must not end the second one early."""
    welcome = world.init(1)
    lock = world.get(1, b"a")
    hold = world.hold(welcome.session_slot, lock)
    world.release(1, lock.lock_id)
    world.unlock(welcome.session_slot, lock, hold)
    world.send(1, m.GetLocks((m.LockSpec(b"a", 0),)))
    world.plane_step()
    hold = world.hold(welcome.session_slot, lock)
    released = world.send(1, m.ReleaseLocks((lock.lock_id,)))
    world.run()
    assert released in world.answers
    assert world.stats()["locks"] == 1, "a new hold keeps it"
    world.unlock(welcome.session_slot, lock, hold)
    world.run()
    assert world.stats()["locks"] == 0


def test_claims_are_checked_against_what_is_got(world: World) -> None:
    world.init(1)
    lock = world.get(1, b"a", FAIR)
    rest = (0, 5, 0, 1, 0, 1, 100, 0, 1, 0, 0, 0)
    good = m.LockClaim(b"a", 1, lock.lock_id, 0, FAIR, *rest)
    claims = (good, m.LockClaim(b"b", 1, lock.lock_id, 0, FAIR, *rest),
              m.LockClaim(b"a", 1, lock.lock_id + 1, 0, FAIR, *rest),
              m.LockClaim(b"a", 1, lock.lock_id, 0, RW, *rest))
    assert world.ask(1, m.UpdateLocks(claims)).statuses == (
        S.SUCCESS, S.LOCK_NOT_GET, S.LOCK_NOT_GET, S.LOCK_NOT_GET)
