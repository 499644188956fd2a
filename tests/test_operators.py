"""What operators ask of the registry: bounded answers, turns, and a break's safety; no sockets."""

from __future__ import annotations

from typing import Any

import pytest
from registry_world import TTL_MS, World

from dlock import _core
from dlock.control import messages as m
from dlock.control.codec import MESSAGE_BYTES_MAX, encode
from dlock.control.registry_effects import Look
from dlock.control.registry_recovery import RecoveryPlan
from dlock.control.registry_view import (
    CLIENT_LINE_BYTES,
    ENTRY_LINE_BYTES,
    QUESTIONS_MAX,
    info_bytes,
)
from dlock.types import DlockStatus as S

SEMAPHORE = 3


@pytest.fixture
def world() -> World:
    return World()


def shown(world: World, name: bytes = b"a", connection: int = 99) -> m.LockShown:
    return world.ask(connection, m.ShowLock(name))


def test_a_lock_with_its_holder(world: World) -> None:
    welcome = world.init(1)
    lock = world.get(1, b"a")
    hold = world.hold(welcome.session_slot, lock, lease_ms=0)
    world.now_ns += 3_000_000_000
    answer = shown(world)
    assert (answer.status, answer.lock_id, answer.total) == (S.SUCCESS, lock.lock_id, 1)
    assert answer.clients == (m.WhoLine(welcome.client_id, {"host": "here"}),)
    assert answer.entries == (m.EntryLine(
        _core.DLK_ENTRY_HELD, 0, hold.token, welcome.client_id, 0, 3000, -1, 7000, False),)


def test_the_info_of_an_ended_session_is_kept_while_its_leased_hold_runs(world: World) -> None:
    welcome = world.init(1)
    world.ask(1, m.DeclareLease(60_000))
    world.hold(welcome.session_slot, world.get(1, b"a"), lease_ms=30_000)
    world.later(11)
    world.run()
    answer = shown(world)
    assert answer.clients == (m.WhoLine(welcome.client_id, {"host": "here"}),)
    (entry,) = answer.entries
    assert (entry.lease_left_ms, entry.session_left_ms) == (19_000, 0)
    listed = world.ask(99, m.ListClients(0))
    (line,) = listed.clients
    assert (line.client_id, line.ended, line.connected) == (welcome.client_id, True, False)
    world.later(20)
    world.run()
    assert shown(world).status is S.LOCK_NOT_GET
    assert world.ask(99, m.ListClients(0)) == m.ClientList(S.SUCCESS)


def test_a_break_of_all_meets_those_who_were_seen(world: World) -> None:
    """The hold that was seen ends, and another begins, before the break is carried out: neither is
    broken, and none is said to be."""
    welcome = world.init(1)
    lock = world.get(1, b"a")
    first = world.hold(welcome.session_slot, lock)
    key = world.send(99, m.BreakLock(b"a", 0, True))
    assert world.plane_step()  # the look
    assert world.event_step()
    world.unlock(welcome.session_slot, lock, first)
    second = world.hold(welcome.session_slot, lock)
    world.run()
    assert world.answers[key] == m.BrokenLock(S.SUCCESS)
    assert [one.token for one in shown(world).entries] == [second.token]


def test_a_break_of_one_token_and_of_all(world: World) -> None:
    welcome = world.init(1)
    lock = world.get(1, b"s", SEMAPHORE, 3)
    holds = [world.hold(welcome.session_slot, lock) for _ in range(3)]
    one = world.ask(99, m.BreakLock(b"s", holds[1].token, False))
    assert one == m.BrokenLock(S.SUCCESS, (holds[1].token,), 1)
    assert [line.breaking for line in shown(world, b"s").entries] == [False, True, False]
    every = world.ask(99, m.BreakLock(b"s", 0, True))
    assert sorted(every.tokens) == [hold.token for hold in holds]
    assert shown(world, b"s").entries == ()
    assert world.stats()["HOLDS_BROKEN"] == 4
    assert world.ask(99, m.BreakLock(b"s", 0, True)) == m.BrokenLock(S.SUCCESS)
    assert world.ask(99, m.BreakLock(b"none", 0, True)).status is S.LOCK_NOT_GET


def test_one_look_at_a_time_and_a_bounded_queue(world: World) -> None:
    world.init(1)
    world.get(1, b"a")
    before = len(world.of(Look))
    keys = [world.send(99, m.ShowLock(b"a")) for _ in range(QUESTIONS_MAX + 2)]
    assert len(world.of(Look)) == before + 1
    assert world.stats()["questions"] == QUESTIONS_MAX + 1
    assert world.status(keys[-1]) is S.SERVER_NO_RESOURCE
    world.run()
    assert {world.status(key) for key in keys[:-1]} == {S.SUCCESS}
    assert world.stats()["questions"] == 0


def test_many_questions_that_are_answered_at_once(world: World) -> None:
    """Behind one that waits for the plane; answering them does not go deeper and deeper."""
    world.init(1)
    world.get(1, b"a")
    world.send(99, m.ShowLock(b"a"))
    keys = [world.send(99, m.ListClients(0)) for _ in range(QUESTIONS_MAX)]
    world.run()
    assert {world.status(key) for key in keys} == {S.SUCCESS}


def test_a_lock_that_is_closed_under_a_question(world: World) -> None:
    world.init(1)
    lock = world.get(1, b"a")
    release = world.send(1, m.ReleaseLocks((lock.lock_id,)))
    key = world.send(99, m.ShowLock(b"a"))
    breaking = world.send(99, m.BreakLock(b"a", 5, False))
    listing = world.send(99, m.ListLocks(b"", 0, 512, False))
    world.run()
    assert world.answers[release] == m.Statuses(S.SUCCESS, (S.SUCCESS,))
    assert world.status(key) is S.LOCK_NOT_GET
    assert world.status(breaking) is S.LOCK_NOT_GET
    assert world.answers[listing] == m.LockList(S.SUCCESS)


def test_a_list_goes_on_where_it_ended(world: World) -> None:
    welcome = world.init(1)
    names = [b"x/%d" % number for number in range(7)]
    locks = [world.get(1, name) for name in names]
    world.hold(welcome.session_slot, locks[4])

    def listed(prefix: bytes, limit: int, busy: bool) -> list[bytes]:
        got: list[bytes] = []
        start = 0
        while start != m.NONE:
            answer = world.ask(99, m.ListLocks(prefix, start, limit, busy))
            assert len(answer.locks) <= limit
            got += [line.descriptor for line in answer.locks]
            start = answer.next
        return got

    for limit in (1, 2, 3, 7, 512):
        assert sorted(listed(b"", limit, False)) == names
        assert listed(b"", limit, True) == [b"x/4"]
        assert listed(b"x/6", limit, False) == [b"x/6"]
        assert listed(b"y", limit, False) == []


def test_no_answer_is_longer_than_a_message() -> None:
    """The longest names and the most that clients may say of themselves."""
    info: dict[str, Any] = {f"{number:032}": "ü" * 128 for number in range(16)}
    lines = tuple(m.WhoLine(number, info) for number in range(1, 14))
    u32, u64 = 2**32 - 1, 2**64 - 1
    entry = m.EntryLine(3, 1, u64, 2**31 - 1, u32, u64, u32, u64, True)
    told = len(encode(1, m.LockShown(S.SUCCESS, 3, u32, 2**31 - 1, (entry,) * 13, lines, 13)))
    assert told <= 13 * (ENTRY_LINE_BYTES + CLIENT_LINE_BYTES + info_bytes(info)) + 64

    world = World()
    for number in range(4):
        welcome = world.ask(number, m.ClientInit(1, 1, info))
        assert welcome.status is S.SUCCESS
    world.get(0, b"s", SEMAPHORE, 400)
    for number in range(4):
        lock = world.get(number, b"s", SEMAPHORE, 400) if number else m.LockResult(S.SUCCESS, 1, 0)
        for _ in range(60):
            world.hold(number, lock)
    answer = shown(world, b"s")
    assert answer.total == 240
    assert len(answer.entries) == 240
    assert len(encode(1, answer)) <= MESSAGE_BYTES_MAX


def test_nothing_is_known_while_the_server_settles() -> None:
    world = World(recovery=RecoveryPlan(0, TTL_MS, not_before_ns=2_000_000_000_000))
    questions: tuple[m.Request[Any], ...] = (
        m.ShowLock(b"a"), m.BreakLock(b"a", 0, True), m.ListLocks(b"", 0, 1, False),
        m.ListClients(0))
    for question in questions:
        assert world.ask(1, question).status is S.NOT_READY
