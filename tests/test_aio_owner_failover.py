"""Owners whose primary dies, stands still or stays away: what they hold and wait for comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aio_tools import run, until
from failover_tools import PATIENCE_S, Primary

from dlock import aio, errors
from dlock.aio import FOREVER, Hold, Owner, keys
from dlock.aio import owner as owner_module
from dlock.aio.keys import Key
from dlock.control.link import LinkError
from dlock.control.messages import ClientDeinit
from dlock.errors import DlockError

LONG_TTL_S = 30.0
SHORT_TTL_S = 2.0


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    started = Primary(tmp_path, ttl_s=LONG_TTL_S)
    yield started
    started.kill()


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Primary]:
    """Its sessions are short."""
    started = Primary(tmp_path, ttl_s=SHORT_TTL_S)
    yield started
    started.kill()


@contextlib.asynccontextmanager
async def connected(primary: Primary) -> AsyncIterator[aio.Client]:
    client = await aio.connect(primary.address, timeout=60)
    try:
        yield client
    finally:
        await client.close()


async def take(owner: Owner, key: Key) -> Hold:
    hold = await owner.take(key)
    assert hold is not None
    return hold


async def known(owner: Owner, *wanted: Key) -> None:
    for key in wanted:
        (await take(owner, key)).release()


async def fail_over(primary: Primary, client: aio.Client) -> None:
    connection = client._connection
    epoch = connection.session.home[0]
    primary.restart()
    await until(lambda: connection.session.home[0] > epoch and connection.settled, PATIENCE_S)


async def waiters(primary: Primary, key: Key, count: int) -> None:
    with primary.admin() as admin:
        def enough() -> bool:
            view = admin.show(key.descriptor)
            return view is not None and len(view.waiters) == count

        await until(enough, PATIENCE_S)


def stop(primary: Primary) -> None:
    """Returns when all of its threads stand still."""
    primary.stop()
    _, status = os.waitpid(primary.process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)


def suspend(patched: pytest.MonkeyPatch) -> None:
    """Every hold of an owner looks as if its authority could have ended."""
    look = owner_module.look
    patched.setattr(owner_module, "left_ms", lambda _handle: 0)
    patched.setattr(owner_module, "look", lambda handle: look(handle)._replace(left_ms=0))


class Told(list["Hold | DlockError | None"]):
    __call__ = list.append

    async def ended(self) -> Hold | DlockError | None:
        await until(lambda: bool(self), PATIENCE_S)
        assert len(self) == 1
        return self[0]


def test_holds_come_back_and_waits_keep_their_order(primary: Primary) -> None:
    async def program() -> None:
        async with connected(primary) as client:
            one, two, three = (client.owner() for _ in range(3))
            key, many, slot = keys.exclusive("a"), keys.shared("r"), keys.slots("s", 2)
            holds = [await take(one, wanted) for wanted in (key, many, slot)]
            tokens = [hold.token for hold in holds]
            second, third = Told(), Told()
            two.ask(key, second, FOREVER)
            await waiters(primary, key, 1)
            three.ask(key, third, FOREVER)
            await waiters(primary, key, 2)
            await fail_over(primary, client)
            await waiters(primary, key, 2)
            assert [hold.token for hold in holds] == tokens
            for hold in holds:
                assert await hold.settled() is True
                assert hold.held
            assert not second
            assert not third
            assert all(hold.release() for hold in holds)
            got = await second.ended()
            assert isinstance(got, Hold)
            assert got.token > tokens[0]
            assert not third
            got.release()
            assert isinstance(await third.ended(), Hold)

    run(program(), 90)


def test_what_is_asked_while_the_primary_is_away_is_answered_by_the_next(
    primary: Primary,
) -> None:
    async def program() -> None:
        async with connected(primary) as client:
            one, two = client.owner(), client.owner()
            free, taken, fresh = (keys.exclusive(name) for name in "abc")
            await known(one, free, taken)
            hold = await take(one, taken)
            primary.kill()
            told = [Told() for _ in range(4)]
            two.ask(free, told[0])
            two.ask(taken, told[1])
            two.ask(fresh, told[2])
            two.ask(taken, told[3], FOREVER)
            cancelled = Told()
            asking = two.ask(free, cancelled, FOREVER)
            await asyncio.sleep(0.3)
            asking.cancel()
            primary.start()
            assert isinstance(await told[0].ended(), Hold)
            assert await told[1].ended() is None
            assert isinstance(await told[2].ended(), Hold)
            assert not told[3]
            assert hold.release()
            assert isinstance(await told[3].ended(), Hold)
            assert not cancelled

    run(program(), 90)


def test_what_is_released_while_the_primary_is_away_is_free_at_the_next(
    primary: Primary,
) -> None:
    async def program() -> None:
        async with connected(primary) as client:
            one, two, key = client.owner(), client.owner(), keys.exclusive("a")
            hold = await take(one, key)
            primary.kill()
            assert hold.release() is True
            told = Told()
            two.ask(key, told, FOREVER)
            primary.start()
            again = await told.ended()
            assert isinstance(again, Hold)
            assert again.token > hold.token

    run(program(), 90)


@pytest.mark.parametrize("away", ["killed", "stopped"])
def test_waits_and_patience_end_in_time_all_the_same(primary: Primary, away: str) -> None:
    async def program() -> None:
        async with connected(primary) as client:
            one, key, other, third = client.owner(), *(keys.exclusive(name) for name in "abc")
            hasty = client.owner(patience=0.2)
            await known(one, key, other, third)
            hold = await take(one, key)
            told = [Told() for _ in range(4)]
            one.ask(key, told[0], 1500)
            if away == "killed":
                primary.kill()
            else:
                stop(primary)
            one.ask(key, told[1], 300)
            hasty.ask(other, told[2])
            one.ask(third, told[3])
            assert await told[0].ended() is None
            assert await told[1].ended() is None
            assert isinstance(await told[2].ended(), errors.ConnectionLost)
            assert not told[3]
            if away == "killed":
                primary.start()
            else:
                primary.go_on()
            assert isinstance(await told[3].ended(), Hold)
            assert hold.release()
            (await take(one, key)).release()

    run(program(), 90)


def test_a_suspended_hold_is_settled_when_its_primary_goes_on(hasty: Primary) -> None:
    async def program() -> None:
        async with connected(hasty) as client:
            one, two, key, other = (
                client.owner(), client.owner(), keys.exclusive("a"), keys.exclusive("b"))
            kept, given = await take(one, key), await take(one, other)
            stop(hasty)
            await until(lambda: not kept.held and not given.held, PATIENCE_S)
            settling = asyncio.ensure_future(kept.settled())
            assert given.release() is False
            assert given.release() is False
            assert one.holds == {kept}
            settled = asyncio.ensure_future(given.settled())
            told = Told()
            two.ask(other, told, FOREVER)
            await asyncio.sleep(0.3)
            assert not settling.done()
            assert not settled.done()
            hasty.go_on()
            confirmed, was_good = await settling, await settled
            again = await told.ended()
            assert isinstance(again, Hold)
            assert again.token > given.token
            # The server gives every session a second more after a stall. Whether that is enough on
            # a busy machine is not for this test to say; that it is settled is.
            assert was_good in (True, False)
            assert confirmed or not kept.held

    run(program(), 90)


def test_a_hold_that_is_lost_while_it_is_suspended_is_told(
    primary: Primary, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def program() -> None:
        async with connected(primary) as client:
            owner = client.owner()
            kept, given = [await take(owner, keys.exclusive(name)) for name in "ab"]
            told: list[Hold] = []
            kept.on_lost = given.on_lost = told.append
            suspend(monkeypatch)
            settling = asyncio.ensure_future(kept.settled())
            assert given.release() is False
            settled = asyncio.ensure_future(given.settled())
            await asyncio.sleep(0.6)
            assert not settling.done()
            assert not settled.done()
            with contextlib.suppress(LinkError):  # the data link ends first
                await client._connection._driver.exchange([ClientDeinit()], 20)
            assert await settling is False
            assert await settled is False
            assert told == [kept]
            assert not owner.holds
            assert not kept.held
            assert kept.release() is False

    run(program(), 90)


def test_a_hold_that_was_released_while_it_was_suspended_is_given_back_when_it_is_confirmed(
    primary: Primary, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def program() -> None:
        async with connected(primary) as client:
            owner, key = client.owner(), keys.exclusive("a")
            hold = await take(owner, key)
            with monkeypatch.context() as patched:
                suspend(patched)
                assert hold.release() is False
                assert not hold.held
                assert await owner.take(key, 0) is None
            assert await hold.settled() is True
            assert await owner.take(key, 20_000) is not None

    run(program(), 90)


def test_holds_of_a_session_that_has_ended_are_lost_and_asks_go_on(primary: Primary) -> None:
    async def program() -> None:
        async with connected(primary) as client, connected(primary) as other:
            one, key, busy = client.owner(), keys.exclusive("a"), keys.exclusive("b")
            hold, held = await take(one, key), await take(other.owner(), busy)
            lost: list[Hold] = []
            hold.on_lost = lost.append
            told, tried = Told(), Told()
            one.ask(busy, told, FOREVER)
            await waiters(primary, busy, 1)
            with contextlib.suppress(LinkError):
                await client._connection._driver.exchange([ClientDeinit()], 20)
            one.ask(key, tried)
            await until(lambda: lost == [hold])
            assert isinstance(await tried.ended(), Hold)
            assert one.holds == set(tried)
            assert not told
            held.release()
            assert isinstance(await told.ended(), Hold)

    run(program(), 90)


def test_a_hold_that_an_operator_breaks_is_lost(primary: Primary) -> None:
    async def program() -> None:
        async with connected(primary) as client:
            one, two, key = client.owner(), client.owner(), keys.exclusive("a")
            hold, told = await take(one, key), Told()
            lost: list[Hold] = []
            hold.on_lost = lost.append
            two.ask(key, told, FOREVER)
            with primary.admin() as admin:
                await asyncio.to_thread(admin.break_lock, "a")
            assert isinstance(await told.ended(), Hold)
            await until(lambda: lost == [hold])
            assert not one.holds
            assert hold.release() is False
            assert await hold.settled() is False

    run(program(), 90)
