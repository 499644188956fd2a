"""The service of the LDLM door on a real server: what each sentence of its specification says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from aio_tools import run, turns, until
from ldlm_service_tools import free, granted, refused, serving_ldlm, waiting
from lock_tools import Service, serving

from dlock.doors.ldlm import problems
from dlock.doors.ldlm.problems import Answer
from dlock.doors.ldlm.service import Rules

INT32_MAX = 2**31 - 1


@pytest.fixture(scope="module")
def server() -> Iterator[Service]:
    with serving() as started:
        yield started


# ---- Checks, in their order ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "problem", "with_key"),
    [
        (("", -1, -1, 0), problems.BAD_LOCK_TIMEOUT, False),
        (("", -1, 0, 0), problems.BAD_WAIT_TIMEOUT, False),
        (("", None, None, 0), problems.EMPTY_NAME, True),
        (("a", None, None, 0), problems.BAD_SIZE, True),
        (("a", None, None, -3), problems.BAD_SIZE, True),
        (("taken", 1, None, 2), problems.SIZE_MISMATCH, True),
    ],
)
def test_lock_checks_in_the_order_of_ldlm(
    server: Service, arguments: tuple[str, int | None, int | None, int | None],
    problem: problems.Problem, with_key: bool,
) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            session = service.open("client")
            granted(await session.try_lock("taken", None, None), "taken")
            name, wait_s, lock_s, size = arguments
            if problem is problems.BAD_LOCK_TIMEOUT:
                lock_s = -1
            answer = await session.lock(name, wait_s, lock_s, size)
            if with_key:
                refused(answer, name, problem)
            else:
                assert answer == Answer(False, name, "", problem)

    run(program())


def test_try_lock_refuses_a_negative_lock_timeout_before_all_else(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            answer = await service.open("client").try_lock("", -1, 0)
            assert answer == Answer(False, "", "", problems.BAD_LOCK_TIMEOUT)

    run(program())


def test_zero_is_no_timeout(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            session = service.open("client")
            key = granted(await session.lock("zero", 0, 0, None), "zero")
            answer = await session.renew("zero", key, 10)
            assert answer == Answer(False, "zero", key, problems.NO_TIMER)

    run(program())


def test_the_longest_timeouts_are_taken(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            session = service.open("client")
            key = granted(await session.lock("long", INT32_MAX, INT32_MAX, INT32_MAX), "long")
            assert (await session.renew("long", key, INT32_MAX)).ok
            assert (await session.unlock("long", key)).ok

    run(program())


# ---- TryLock and Lock ----------------------------------------------------------------------------


def test_a_refused_try_lock_has_no_error(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            granted(await service.open("one").try_lock("a", None, None), "a")
            refused(await service.open("two").try_lock("a", None, None), "a", None)

    run(program())


def test_try_lock_is_not_reentrant(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            session = service.open("one")
            granted(await session.try_lock("a", None, None), "a")
            refused(await session.try_lock("a", None, None), "a", None)

    run(program())


def test_lock_waits_in_the_order_of_arrival(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            key = granted(await service.open("first").try_lock("line", None, None), "line")
            waits = []
            for number in range(5):
                waits.append(service.open(f"waiter {number}").lock("line", None, None, None))
                await waiting(server, "line", number + 1)
            other = service.open("another")
            for wait in waits:
                assert not wait.done()
                refused(await other.try_lock("line", None, None), "line", None)
                assert (await other.unlock("line", key)).ok
                key = granted(await wait, "line")

    run(program())


def test_a_wait_ends_with_its_timeout(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            key = granted(await service.open("one").try_lock("a", None, None), "a")
            refused(await service.open("two").lock("a", 1, None, None), "a", problems.WAIT_OVER)
            assert (await service.open("three").unlock("a", key)).ok
            await free(service.open("four"), "a")

    run(program())


def test_where_a_lock_and_a_wait_end_together_the_lock_ends_first(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            one, two = service.open("one"), service.open("two")
            for _ in range(10):  # a machine that stands still for a moment gets another chance
                key = granted(await one.try_lock("a", 100, None), "a")
                wait = two.lock("a", 1, None, None)
                await waiting(server, "a", 1)
                assert (await one.renew("a", key, 1)).ok  # ends a little after the wait
                answer = await wait
                if answer.ok:
                    return
                await until(lambda: not service.list())
            pytest.fail("the wait always ended before the lock")

    run(program())


def test_three_hundred_waits_of_one_session_hinder_nobody(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            session = service.open("one")
            key = granted(await session.try_lock("crowd", None, None), "crowd")
            waits = [session.lock("crowd", None, None, None) for _ in range(300)]
            await waiting(server, "crowd", 300)
            granted(await session.try_lock("other", None, None), "other")
            for wait in waits:
                assert (await session.unlock("crowd", key)).ok
                key = granted(await wait, "crowd")

    run(program())


# ---- Size ----------------------------------------------------------------------------------------


def test_a_lock_of_size_n_has_n_keys(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            session = service.open("one")
            all_keys = {granted(await session.try_lock("n", None, 3), "n") for _ in range(3)}
            assert len(all_keys) == 3
            refused(await session.try_lock("n", None, 3), "n", None)
            assert (await session.unlock("n", all_keys.pop())).ok
            granted(await session.try_lock("n", None, 3), "n")

    run(program())


def test_the_size_stays_when_all_is_unlocked(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            session = service.open("one")
            key = granted(await session.try_lock("s", None, 2), "s")
            assert (await session.unlock("s", key)).ok
            refused(await session.try_lock("s", None, 3), "s", problems.SIZE_MISMATCH)
            refused(await session.lock("s", 1, None, None), "s", problems.SIZE_MISMATCH)
            granted(await session.try_lock("s", None, 2), "s")

    run(program())


def test_collection_forgets_idle_names_with_their_sizes(server: Service) -> None:
    async def program() -> None:
        rules = Rules(gc_interval_s=0.05, gc_min_idle_s=0.05)
        async with serving_ldlm(server, rules) as service:
            session = service.open("one")
            key = granted(await session.try_lock("g", None, 2), "g")
            held = granted(await session.try_lock("kept", None, 2), "kept")
            assert (await session.unlock("g", key)).ok
            await until(lambda: service.counters["names_collected"] > 0)
            assert await session.unlock("g", key) == Answer(
                False, "g", error=problems.NO_SUCH_LOCK)
            while not (answer := await session.try_lock("g", None, 3)).ok:
                refused(answer, "g", problems.SIZE_MISMATCH)  # until the server has forgotten it
                await asyncio.sleep(0.01)
            assert (await session.unlock("kept", held)).ok

    run(program())


def test_a_name_that_is_waited_for_is_not_idle(server: Service) -> None:
    async def program() -> None:
        rules = Rules(gc_interval_s=0.02, gc_min_idle_s=0.0)
        async with serving_ldlm(server, rules) as service:
            session = service.open("one")
            key = granted(await session.try_lock("w", None, None), "w")
            wait = service.open("two").lock("w", None, None, None)
            await waiting(server, "w", 1)
            await asyncio.sleep(0.1)
            assert (await session.unlock("w", key)).ok
            granted(await wait, "w")

    run(program())


def test_another_kind_under_a_shared_name_is_a_size_mismatch(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server, namespace="shared") as service:
            other = service.client.semaphore(b"shared:pool", 4)
            await other.acquire()
            session = service.open("one")
            refused(await session.try_lock("pool", None, None), "pool", problems.SIZE_MISMATCH)
            refused(await session.lock("pool", 1, None, 5), "pool", problems.SIZE_MISMATCH)
            granted(await session.try_lock("pool", None, 4), "pool")
            exclusive = service.client.lock(b"shared:door")
            await exclusive.acquire()
            refused(await session.try_lock("door", None, 1), "door", None)
            refused(await session.try_lock("door", None, 1), "door", None)

    run(program())


# ---- Unlock --------------------------------------------------------------------------------------


def test_unlock_looks_for_the_name_and_then_for_the_key(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            session = service.open("one")
            for name in ("nobody knows it", ""):
                assert await session.unlock(name, "key") == Answer(
                    False, name, error=problems.NO_SUCH_LOCK)
            key = granted(await session.try_lock("u", None, None), "u")
            assert await session.unlock("u", "wrong") == Answer(
                False, "u", error=problems.WRONG_KEY)
            assert await session.unlock("u", key) == Answer(True, "u")
            assert await session.unlock("u", key) == Answer(False, "u", error=problems.WRONG_KEY)

    run(program())


def test_any_session_with_the_key_unlocks_and_leaves_no_ghost(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            one, two = service.open("one"), service.open("two")
            key = granted(await one.try_lock("a", None, None), "a")
            assert (await two.unlock("a", key)).ok
            assert service.list() == []
            taken = granted(await two.try_lock("a", None, None), "a")
            one.close()  # what it no longer holds does not go with it
            await turns()
            assert service.list() == [("a", taken, 1)]

    run(program())


def test_an_operator_unlocks_by_name_or_by_key(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            session = service.open("one")
            first = granted(await session.try_lock("f", None, 2), "f")
            second = granted(await session.try_lock("f", None, 2), "f")
            assert service.list() == [("f", first, 2), ("f", second, 2)]
            assert (await service.force_unlock("f")).ok
            assert service.list() == [("f", first, 2)]
            assert (await service.force_unlock("f", "wrong")).error == problems.WRONG_KEY
            assert (await service.force_unlock("f", first)).ok
            for name in ("f", "no such name"):
                assert (await service.force_unlock(name)).error == problems.NO_SUCH_LOCK

    run(program())


# ---- Timers --------------------------------------------------------------------------------------


def test_the_timer_is_eager(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            session = service.open("one")
            key = granted(await session.try_lock("t", 1, None), "t")
            await until(lambda: not service.list())
            assert (await session.unlock("t", key)).error == problems.WRONG_KEY
            assert (await session.renew("t", key, 5)).error == problems.NO_TIMER
            assert service.counters["lock_timeouts"] == 1

    run(program())


def test_a_timer_that_is_over_is_over_before_it_is_served(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            session, other = service.open("one"), service.open("two")
            keys = {name: granted(await session.try_lock(name, 1, None), name) for name in "abcd"}
            for held in service.table.held():  # as if the loop were late
                held.timer.cancel()
                held.deadline_s = service.loop.time()
            assert service.list() == []
            assert (await session.unlock("a", keys["a"])).error == problems.WRONG_KEY
            assert (await session.renew("b", keys["b"], 5)).error == problems.NO_TIMER
            granted(await other.try_lock("c", None, None), "c")
            assert (await service.force_unlock("d")).error == problems.NO_SUCH_LOCK

    run(program())


def test_when_the_timer_is_over_the_next_in_line_has_the_lock(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            granted(await service.open("one").try_lock("t", 1, None), "t")
            granted(await service.open("two").lock("t", None, None, None), "t")

    run(program())


def test_renewal_sets_the_timer_anew_from_any_session(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            one, two = service.open("one"), service.open("two")
            key = granted(await one.try_lock("r", 1, None), "r")
            (held,) = service.table.held()
            before_s = service.loop.time()
            assert await two.renew("r", key, 3600) == Answer(True, "r", key)
            assert held.deadline_s is not None
            assert before_s + 3600 <= held.deadline_s <= service.loop.time() + 3600
            await asyncio.sleep(1.2)
            assert service.list() == [("r", key, 1)]
            assert (await two.renew("r", key, 1)).ok  # it may be shorter
            await until(lambda: server.holders("ldlm:r") == 0)

    run(program())


@pytest.mark.parametrize("timeout_s", [0, -1])
def test_renewal_wants_a_timeout(server: Service, timeout_s: int) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            session = service.open("one")
            key = granted(await session.try_lock("r", 10, None), "r")
            assert await session.renew("r", key, timeout_s) == Answer(
                False, "r", "", problems.BAD_LOCK_TIMEOUT)
            assert await session.renew("no such name", key, 5) == Answer(
                False, "no such name", key, problems.NO_TIMER)
            assert await session.renew("r", "wrong", 5) == Answer(
                False, "r", "wrong", problems.NO_TIMER)

    run(program())
