"""Many threads, and interruptions at any moment (specification, section 5; docs/threads.md)."""

from __future__ import annotations

import random
import signal

import pytest
from mirror_tools import ATOMIC, FAIR, RW, S, Service, ex, sh, until

from dlock import dclient
from dlock.types import AtomicDesc

ROUNDS = 60


@pytest.mark.data_plane
def test_exclusion_and_counts_among_threads_with_clients_of_their_own(
    start_service, background
) -> None:
    service = start_service(client={"wait_mode": "adaptive", "lock_wait": 60})
    clients = [service.client() for _ in range(8)]
    locks = [service.lock(kind, *clients) for kind in (ATOMIC, RW, FAIR)]
    counts = dict.fromkeys(locks, 0)
    inside = dict.fromkeys(locks, 0)

    def work(client: int) -> None:
        for _ in range(ROUNDS):
            for lock_id in locks:
                assert dclient.lock(client, ex(lock_id))[0] is S.SUCCESS
                inside[lock_id] += 1
                before = counts[lock_id]
                assert inside[lock_id] == 1
                counts[lock_id] = before + 1
                inside[lock_id] -= 1
                assert dclient.unlock(client, lock_id)[0] is S.SUCCESS

    for working in [background(work, client) for client in clients]:
        working.result(timeout=60)
    assert set(counts.values()) == {ROUNDS * len(clients)}


def test_readers_and_writers_among_threads(service: Service, background) -> None:
    clients = [service.client() for _ in range(6)]
    lock_id = service.lock(RW, *clients)
    readers: set[int] = set()
    writers: set[int] = set()

    def work(client: int) -> None:
        dice = random.Random(client)
        for _ in range(ROUNDS):
            reads = dice.random() < 0.7
            request, here = (sh, readers) if reads else (ex, writers)
            assert dclient.lock(client, request(lock_id))[0] is S.SUCCESS
            here.add(client)
            assert writers <= {client}
            assert reads or not readers
            here.discard(client)
            assert dclient.unlock(client, lock_id)[0] is S.SUCCESS

    for working in [background(work, client) for client in clients]:
        working.result(timeout=60)


@pytest.mark.data_plane
def test_threads_that_share_a_client_use_locks_of_their_own(service: Service, background) -> None:
    client = service.client()
    _, obj_id = dclient.umo_atomic64_create(client, AtomicDesc(b"count", 60), 0)
    dclient.umo_atomic64_get(client, AtomicDesc(b"count", 60))

    def work(number: int) -> None:
        locks = [service.lock(ATOMIC, client) for _ in range(4)]
        for _ in range(ROUNDS):
            assert dclient.trylock(client, ex(locks[0]))[0] is S.SUCCESS
            results = dclient.batch_trylock(client, [ex(lock_id) for lock_id in locks])[1]
            assert [result.op_ret for result in results] == [S.ALREADY_LOCKED] + [S.SUCCESS] * 3
            assert dclient.umo_atomic64_faa(client, obj_id, number)[0] is S.SUCCESS
            assert dclient.unlock(client, locks[0])[0] is S.ALREADY_LOCKED
            results = dclient.batch_unlock(client, locks)[1]
            assert {result.op_ret for result in results} == {S.SUCCESS}
        for lock_id in locks:
            assert dclient.release_lock(client, lock_id) is S.SUCCESS

    for working in [background(work, number) for number in range(1, 9)]:
        working.result(timeout=60)
    assert dclient.umo_atomic64_get_snapshot(client, obj_id) == (S.SUCCESS, 36 * ROUNDS)


class InterruptedHere(BaseException):
    """What the signal handler of the next test raises."""


def test_interruptions_at_any_moment_leave_nothing_behind(start_service) -> None:
    service = start_service(client={"wait_mode": "block", "lock_wait": 60})
    one, two = service.client(), service.client()
    locks = [service.lock(kind, one, two) for kind in (ATOMIC, RW, FAIR)]
    taken = service.lock(ATOMIC, one, two)
    dclient.trylock(two, ex(taken))
    dice = random.Random(7)

    def interrupt(*_: object) -> None:
        raise InterruptedHere

    def work() -> None:
        signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.0001, 0.005))
        while True:
            lock_id = dice.choice(locks)
            dclient.lock(one, ex(lock_id))
            dclient.trylock(one, ex(lock_id))
            dclient.batch_trylock(one, [ex(lock_id) for lock_id in locks])
            dclient.batch_unlock(one, locks)
            dclient.unlock(one, lock_id)
            if dice.random() < 0.1:
                dclient.lock(one, ex(taken))  # waits until it is interrupted

    former = signal.signal(signal.SIGALRM, interrupt)
    for _ in range(300):
        with pytest.raises(InterruptedHere):
            work()
    signal.signal(signal.SIGALRM, former)

    dclient.unlock(two, taken)
    until(lambda: dclient.trylock(two, ex(taken))[0] is S.SUCCESS)  # one waits no longer
    for lock_id in locks:
        # What an interruption between two calls left held is known to the client, and only that.
        while dclient.unlock(one, lock_id)[0] is not S.ALREADY_UNLOCKED:
            pass
        until(lambda lock_id=lock_id: dclient.trylock(two, ex(lock_id))[0] is S.SUCCESS)


def test_an_interrupted_batch_is_undone(far_service) -> None:
    service = far_service(reply_timeout=30)
    one, two = service.client(), service.client()
    locks = [service.lock(kind, one, two) for kind in (ATOMIC, RW, FAIR)]

    def interrupt(*_: object) -> None:
        raise InterruptedHere

    def work() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        dclient.batch_trylock(one, [ex(lock_id) for lock_id in locks])

    former = signal.signal(signal.SIGALRM, interrupt)
    service.stop_in_its_tracks()
    with pytest.raises(InterruptedHere):
        work()
    signal.signal(signal.SIGALRM, former)
    service.go_on()
    for lock_id in locks:
        assert dclient.trylock(one, ex(lock_id, 0))[1].token == 0
        until(lambda lock_id=lock_id: dclient.trylock(two, ex(lock_id))[0] is S.SUCCESS)
