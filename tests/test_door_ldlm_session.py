"""Sessions of the LDLM door on a real server: their end, what they lose, what is given up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from aio_tools import run, turns, until
from ldlm_service_tools import free, granted, refused, serving_ldlm, waiting
from lock_tools import Service, serving

from dlock.doors.ldlm import problems
from dlock.doors.ldlm.service import Rules, ShutDown


@pytest.fixture(scope="module")
def server() -> Iterator[Service]:
    with serving() as started:
        yield started


def test_the_end_of_a_session_releases_all_and_ends_its_waits(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            one, two = service.open("one"), service.open("two")
            granted(await one.try_lock("a", 100, None), "a")
            granted(await one.try_lock("b", None, 2), "b")
            granted(await two.try_lock("c", None, None), "c")
            given_up = one.lock("c", None, None, None)
            wait = two.lock("a", None, None, None)
            await waiting(server, "a", 1)
            await waiting(server, "c", 1)
            one.close()
            one.close()
            granted(await wait, "a")
            assert given_up.cancelled()
            await waiting(server, "c", 0)
            assert sorted(name for name, _, _ in service.list()) == ["a", "c"]
            assert service.sessions == {two}
            refused(await one.try_lock("x", None, None), "x", problems.NO_SESSION)

    run(program())


def test_locks_may_outlive_their_session(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server, Rules(outlive=True)) as service:
            one, two = service.open("one"), service.open("two")
            timed = granted(await one.try_lock("timed", 1, None), "timed")
            lasting = granted(await one.try_lock("lasting", None, None), "lasting")
            granted(await two.try_lock("other", None, None), "other")
            wait = one.lock("other", None, None, None)
            await waiting(server, "other", 1)
            one.close()
            assert wait.cancelled()
            await waiting(server, "other", 0)
            assert {timed, lasting} <= {key for _, key, _ in service.list()}
            assert not one.owner.closed
            granted(await two.lock("timed", None, None, None), "timed")  # its timer still counts
            assert (await two.unlock("lasting", lasting)).ok
            await free(two, "lasting")
            assert one.owner.closed

    run(program())


@pytest.mark.parametrize("turns_before", range(6))
def test_a_cancelled_lock_leaves_nothing_behind(server: Service, turns_before: int) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            one, two = service.open("one"), service.open("two")
            await free(one, "a")  # the name is known: the answer comes in a few turns
            request = one.lock("a", None, None, None)
            await turns(turns_before)
            if not request.cancel():
                assert (await one.unlock("a", request.result().key)).ok
            await free(two, "a")
            assert service.list() == []
            assert not one.requests

    run(program())


def test_a_grant_that_crosses_the_end_of_its_session_is_given_back(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            one, two = service.open("one"), service.open("two")
            for _ in range(20):
                key = granted(await two.try_lock("x", None, None), "x")
                leaver = service.open("leaver")
                wait = leaver.lock("x", None, None, None)
                await waiting(server, "x", 1)
                unlocked = two.unlock("x", key)  # the grant is on its way
                await turns(1)
                leaver.close()
                assert wait.cancelled() or wait.done()
                assert (await unlocked).ok
                await free(one, "x")
            assert service.list() == []

    run(program())


def test_a_lost_hold_is_told_to_its_session(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            session = service.open("one")
            told: list[str] = []
            session.on_lost = lambda: told.append("lost")
            key = granted(await session.try_lock("l", 100, None), "l")
            server.admin.break_lock("ldlm:l")
            await until(lambda: bool(told))
            assert service.list() == []
            assert service.counters["lost_holds"] == 1
            assert (await session.unlock("l", key)).error == problems.WRONG_KEY
            await free(session, "l")

    run(program())


def test_who_has_closed_is_told_of_nothing(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server, Rules(outlive=True)) as service:
            session = service.open("one")
            session.on_lost = lambda: pytest.fail("its connection is gone")
            granted(await session.try_lock("l", None, None), "l")
            session.close()
            server.admin.break_lock("ldlm:l")
            await until(lambda: not service.list())
            assert session.owner.closed

    run(program())


def test_when_the_door_stops_waits_end_and_calls_are_refused(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            session = service.open("one")
            key = granted(await session.try_lock("s", None, None), "s")
            wait = session.lock("s", None, None, None)
            await waiting(server, "s", 1)
            await service.stop()
            with pytest.raises(ShutDown):
                await wait
            refused(await session.try_lock("t", None, None), "t", problems.SHUT_DOWN)
            assert (await session.unlock("s", key)).error == problems.SHUT_DOWN
            session.close()

    run(program())


def test_operators_see_who_holds(server: Service) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            session = service.open("10.0.0.7:4711")
            granted(await session.try_lock("seen", None, None), "seen")
            assert session.owner.label == "10.0.0.7:4711"
            details = server.view("ldlm:seen")
            assert details is not None
            assert len(details.holders) == 1

    run(program())
