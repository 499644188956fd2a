"""Names and handles against a real server: what is taken, given back, let go, and what leaks."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest
from session_tools import ATOMIC, FAIR, RW, SEMAPHORE, ByHand, ended, key, until

from dlock import _handle
from dlock.control.messages import GetLocks, ReleaseLocks
from dlock.errors import KindMismatch, LeaseTooLong, ServerFull
from dlock.server import Server, ServerConfig
from dlock.types import DlockStatus as S


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(ServerConfig(port=0, max_locks=5000, wait_mode="block"))
    yield one
    one.stop()


@pytest.fixture
def one(server: Server) -> Iterator[ByHand]:
    by_hand = ByHand(server)
    yield by_hand
    by_hand.close()


@pytest.mark.parametrize("kind", [ATOMIC, RW, FAIR, SEMAPHORE])
def test_a_handle_locks_and_unlocks(one: ByHand, kind: int) -> None:
    handle = one.take(key("a", kind, 2 if kind == SEMAPHORE else 1), actor=7)
    assert handle.owner >> 32 == 7
    for _ in range(3):
        assert one.lock(handle) == S.SUCCESS
        assert handle.acquire.token > 0
        assert one.unlock(handle) == S.SUCCESS


def test_the_first_use_of_a_name_is_one_round_trip_and_the_next_none(one: ByHand) -> None:
    names = one.session.names
    first = one.take(key("a"))
    assert len(one.exchanges) == 1
    second = one.take(key("a"))  # while the first is in use
    names.give_back(first)
    assert one.take(key("a")) is first
    assert first.owner != second.owner
    assert len(one.exchanges) == 1


def test_an_idle_handle_goes_to_another_actor(one: ByHand) -> None:
    handle = one.take(key("a"), actor=1)
    assert one.lock(handle) == S.SUCCESS
    one.unlock(handle)
    one.session.names.give_back(handle)
    again = one.take(key("a"), actor=2)
    assert again is handle
    assert again.owner >> 32 == 2
    assert one.lock(again) == S.SUCCESS
    assert one.lock(one.take(key("a"), actor=2)) == S.FAIL  # an owner of its own
    assert one.unlock(again) == S.SUCCESS


def test_many_names_once_each_do_not_grow_anything(server: Server, one: ByHand) -> None:
    most = _handle.IDLE_NAMES_MAX + 2 * _handle.RELEASE_BATCH
    for number in range(4000):
        handle = one.take(key(f"name {number}"))
        if number % 500 == 0:
            assert one.lock(handle) == S.SUCCESS
            assert one.unlock(handle) == S.SUCCESS
        one.session.names.give_back(handle)
        assert len(one.session.names) <= most
    del handle
    assert len(one.exchanges) == 4000  # never more than one round trip a name
    assert server.stats()["locks"] <= most
    assert len(one.session.names.handles) <= most
    # Letting names go travels with getting others, 31 at a time.
    released = [step[0] for step in one.exchanges if isinstance(step[0], ReleaseLocks)]
    assert {len(message.lock_ids) for message in released} == {_handle.RELEASE_BATCH}
    assert all(isinstance(step[-1], GetLocks) for step in one.exchanges)


def test_hundreds_of_names_are_got_in_one_exchange_and_kept_until_they_are_used(
    server: Server, one: ByHand
) -> None:
    """In a busy event loop whoever wants a name comes for it turns later."""
    crowds = [[key(f"{crowd} {number}") for number in range(1000)] for crowd in range(4)]
    names = one.session.names
    for crowd in crowds:
        assert one.drive(one.session.resolve(crowd)) == [None] * 1000
        handles = [names.take(wanted, 0) for wanted in crowd]
        assert None not in handles
        for handle in handles:
            assert handle is not None
            names.give_back(handle)
    assert len(one.exchanges) == len(crowds)
    gone = sum(len(message.lock_ids) for step in one.exchanges for message in step
               if isinstance(message, ReleaseLocks))
    assert server.stats()["locks"] == len(names) == 4000 - gone
    assert len(names) <= _handle.IDLE_NAMES_MAX + 1000 + 2 * _handle.RELEASE_BATCH


def test_what_an_exchange_has_brought_is_not_let_go_by_the_next(one: ByHand) -> None:
    held = [one.take(key(f"held {number}")) for number in range(_handle.IDLE_NAMES_MAX + 100)]
    brought = [key(f"brought {number}") for number in range(900)]
    others = [key(f"other {number}") for number in range(900)]
    assert one.drive(one.session.resolve(brought)) == [None] * 900
    assert one.drive(one.session.resolve(others)) == [None] * 900
    assert all(wanted in one.session.names for wanted in brought)
    assert all(handle.name.key in one.session.names for handle in held)


def test_what_is_in_use_or_was_used_lately_stays(one: ByHand) -> None:
    names = one.session.names
    held = [one.take(key(f"held {number}")) for number in range(100)]
    for handle in held:
        assert one.lock(handle) == S.SUCCESS
    for number in range(2000):
        names.give_back(one.take(key("often")))
        names.give_back(one.take(key(f"name {number}")))
    assert len(one.exchanges) == 100 + 1 + 2000
    assert key("often") in names
    for handle in held:
        assert one.unlock(handle) == S.SUCCESS


def test_a_name_that_was_let_go_can_be_had_again(one: ByHand) -> None:
    total = _handle.IDLE_NAMES_MAX + 3 * _handle.RELEASE_BATCH
    for number in [*range(total), *range(total)]:
        handle = one.take(key(f"name {number}"))
        assert one.lock(handle) == S.SUCCESS
        assert one.unlock(handle) == S.SUCCESS
        one.session.names.give_back(handle)


def test_a_name_whose_letting_go_was_not_confirmed_can_be_had_again(one: ByHand) -> None:
    names = one.session.names
    total = _handle.IDLE_NAMES_MAX + _handle.RELEASE_BATCH
    for number in range(total):
        names.give_back(one.take(key(f"name {number}")))
    steps = one.session.resolve([key("one more")])
    next(steps)  # the requests were made, and lost
    steps.close()
    assert len(names.parting) == _handle.RELEASE_BATCH
    parted = next(iter(names.parting))
    handle = one.take(parted)
    assert one.lock(handle) == S.SUCCESS
    assert one.unlock(handle) == S.SUCCESS
    assert not names.parting


def test_a_crowd_leaves_few_idle_handles_behind(one: ByHand) -> None:
    names = one.session.names
    handles = [one.take(key("a")) for _ in range(1000)]
    while handles:
        names.give_back(handles.pop())
    assert len(names.handles) == _handle.IDLE_HANDLES_MAX


@pytest.mark.parametrize("how", ["retired", "dropped"])
def test_what_a_lost_handle_held_is_given_back(one: ByHand, how: str) -> None:
    handle = one.take(key("a"))
    assert one.lock(handle) == S.SUCCESS
    if how == "retired":
        one.session.names.retire(handle)
    del handle
    gc.collect()
    again = one.take(key("a"))
    until(lambda: one.lock(again) == S.SUCCESS)
    assert len(one.session.names.handles) == 1


def test_many_threads_on_one_name(one: ByHand) -> None:
    names, wanted = one.session.names, key("a")
    one.take(wanted)
    inside, clashes, grants = [0], [], []

    def work(actor: int) -> None:
        for _ in range(200):
            handle = names.take(wanted, actor)
            assert handle is not None
            assert handle.owner >> 32 == actor
            status = ended(handle, handle.acquire)
            inside[0] += 1
            clashes.append(inside[0])
            grants.append(status)
            inside[0] -= 1
            assert ended(handle, handle.release) == S.SUCCESS
            names.give_back(handle)

    threads = [threading.Thread(target=work, args=(actor,)) for actor in range(1, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(clashes) == {1}
    assert grants == [S.SUCCESS] * 2400


def test_threads_that_take_while_names_are_let_go(one: ByHand, monkeypatch) -> None:
    """Every handle that a thread gets works, whatever eviction does meanwhile."""
    monkeypatch.setattr(_handle, "IDLE_NAMES_MAX", 4)
    naming, failures = threading.Lock(), []

    def work(actor: int) -> None:
        for turn in range(400):
            wanted = key(f"name {(turn * actor) % 60}")
            handle = one.session.names.take(wanted, actor)
            while handle is None:
                with naming:
                    if wanted not in one.session.names:
                        assert one.drive(one.session.resolve([wanted])) == [None]
                handle = one.session.names.take(wanted, actor)
            status = one.lock(handle)
            if status == S.SUCCESS:
                status = one.unlock(handle)
            if status not in (S.SUCCESS, S.FAIL):
                failures.append(status)
            one.session.names.give_back(handle)

    threads = [threading.Thread(target=work, args=(actor,)) for actor in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(one.session.names) <= 4 + 2 * _handle.RELEASE_BATCH


def test_another_kind_or_size_is_refused(one: ByHand) -> None:
    one.take(key("a", ATOMIC))
    one.take(key("s", SEMAPHORE, 3))
    with pytest.raises(KindMismatch, match="'a'"):
        one.take(key("a", RW))
    with pytest.raises(KindMismatch):
        one.take(key("s", SEMAPHORE, 4))


def test_a_full_server_says_which_limit_to_raise() -> None:
    server = Server(ServerConfig(port=0, max_locks=2, wait_mode="block"))
    one = ByHand(server)
    outcomes = one.drive(one.session.resolve([key("a"), key("b"), key("c")]))
    assert outcomes[:2] == [None, None]
    assert isinstance(outcomes[2], ServerFull)
    assert "--max-locks" in str(outcomes[2])
    one.close()
    server.stop()


def test_leases_are_declared_once_and_bounded(tmp_path) -> None:
    server = Server(ServerConfig(port=0, max_lease_ms=60_000, state_dir=tmp_path,
                                 session_ttl_ms=4000, wait_mode="block"))
    one = ByHand(server)
    assert one.session.free_lease_ms == 4000  # a new primary waits for that long in any case
    for lease_ms in (5000, 8192, 1):
        one.drive(one.session.declare(lease_ms))
    assert len(one.exchanges) == 1
    assert one.session.free_lease_ms == 8192
    with pytest.raises(LeaseTooLong, match="60 s"):
        one.drive(one.session.declare(60_001))
    handle = one.take(key("a"))
    handle.acquire.lease_ms = 8192
    assert one.lock(handle) == S.SUCCESS
    one.close()
    server.stop()


def test_after_the_end_nothing_is_found(one: ByHand) -> None:
    handle, idle = one.take(key("a")), one.take(key("b"))
    one.session.names.give_back(idle)
    one.session.end()
    assert one.session.names.take(key("a"), 0) is None
    assert one.lock(handle) == S.BAD_RESPONSE
    del handle, idle
    gc.collect()
    assert len(one.session.names.handles) == 0
