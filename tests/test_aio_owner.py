"""dlock.aio.Owner: many parties behind one client, asked by callbacks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import pytest
from aio_tools import connected, run, turns, until
from lock_tools import Service, fresh_name, serving

from dlock import aio, errors
from dlock.aio import Hold, Owner, keys
from dlock.aio.keys import Key
from dlock.errors import DlockError

FOREVER = aio.FOREVER


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving() as started:
        yield started


class Told:
    """A callback that remembers."""

    def __init__(self) -> None:
        self.outcomes: list[Hold | DlockError | None] = []

    def __call__(self, outcome: Hold | DlockError | None) -> None:
        self.outcomes.append(outcome)

    @property
    def hold(self) -> Hold:
        (outcome,) = self.outcomes
        assert isinstance(outcome, Hold)
        return outcome

    async def ended(self) -> Hold | DlockError | None:
        await until(lambda: bool(self.outcomes))
        (outcome,) = self.outcomes
        return outcome


async def take(owner: Owner, key: Key) -> Hold:
    hold = await owner.take(key)
    assert hold is not None
    return hold


async def known(owner: Owner, key: Key) -> None:
    """From now on the name is had, so that the next ask is answered without a task."""
    (await take(owner, key)).release()


def tasks() -> int:
    return len(asyncio.all_tasks())


# ---- What each of it does ------------------------------------------------------------------------


def test_owners_of_one_client_exclude_each_other(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client:
            one, two = client.owner("one"), client.owner("two")
            key = keys.exclusive(fresh_name())
            hold = await take(one, key)
            assert hold.held
            assert hold.owner is one
            assert hold.key == key
            assert hold.token > 0
            assert one.holds == {hold}
            assert not two.holds
            assert await two.take(key, 0) is None
            assert hold.release() is True
            assert not hold.held
            assert not one.holds
            assert await hold.settled() is True
            assert (await take(two, key)).token > hold.token

    run(program())


def test_an_ask_calls_back_once_and_never_before_it_has_returned(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client:
            owner, key = client.owner(), keys.exclusive(fresh_name())
            for _ in range(3):  # the first gets the name, the others are answered at once
                told = Told()
                owner.ask(key, told)
                assert not told.outcomes
                assert isinstance(await told.ended(), Hold)
                await turns(5)
                assert told.hold.release()

    run(program())


def test_an_ask_that_is_answered_at_once_makes_no_task_and_no_future(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client:
            owner, key = client.owner(), keys.exclusive(fresh_name())
            await known(owner, key)
            loop = asyncio.get_running_loop()
            made: list[str] = []
            loop.set_task_factory(
                lambda _loop, coro, **_: made.append("task") or asyncio.Task(coro))  # type: ignore
            loop.create_future = lambda: made.append("future") or asyncio.Future()  # type: ignore
            told, busy = Told(), Told()
            collector = client._connection.collector
            collector._new_future = loop.create_future
            ended = asyncio.Event()
            owner.ask(key, lambda hold: (told(hold), ended.set()))
            owner.ask(key, busy)
            while not busy.outcomes:
                await asyncio.sleep(0)
            assert told.hold.release()
            assert busy.outcomes == [None]
            assert not made

    run(program())


def test_a_wait_gets_the_lock_when_it_is_released(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client:
            one, two, key = client.owner(), client.owner(), keys.exclusive(fresh_name())
            hold, told = await take(one, key), Told()
            two.ask(key, told, FOREVER)
            await until(lambda: service.waiters(key.descriptor) == 1)
            assert not told.outcomes
            hold.release()
            assert await told.ended() is told.hold
            assert told.hold.held

    run(program())


def test_a_wait_that_is_over_is_none(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client:
            one, two, key = client.owner(), client.owner(), keys.exclusive(fresh_name())
            await take(one, key)
            told = Told()
            two.ask(key, told, 30)
            assert await told.ended() is None
            assert await two.take(key, 30) is None

    run(program())


def test_an_owner_does_not_enter_its_own_lock_again(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client:
            owner, key = client.owner(), keys.exclusive(fresh_name())
            await take(owner, key)
            assert await owner.take(key, 0) is None

    run(program())


def test_shared_holds_and_slots_are_held_together(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client:
            one, two, three = (client.owner() for _ in range(3))
            for key in keys.shared(fresh_name()), keys.slots(fresh_name(), 2):
                first, second = await take(one, key), await take(two, key)
                assert first.held
                assert second.held
                third = await three.take(key, 0)
                assert (third is None) == (key.size == 2)

    run(program())


def test_a_shared_key_keeps_a_writer_out(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client:
            name = fresh_name()
            hold = await take(client.owner(), keys.shared(name))
            writer = client.rwlock(name).write()
            assert not await writer.acquire(blocking=False)
            hold.release()
            assert await writer.acquire()
            await writer.release()

    run(program())


def test_another_kind_or_size_is_told_as_an_error(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client:
            owner, name = client.owner(), fresh_name()
            await take(owner, keys.slots(name, 2))
            for other in keys.slots(name, 3), keys.exclusive(name), keys.shared(name):
                told = Told()
                owner.ask(other, told, FOREVER)
                assert isinstance(await told.ended(), errors.KindMismatch)
                with pytest.raises(errors.KindMismatch):
                    await owner.take(other)

    run(program())


def test_a_full_server_is_told_as_an_error() -> None:
    async def program(service: Service) -> None:
        async with connected(service) as client:
            owner = client.owner()
            for number in range(4):
                await take(owner, keys.exclusive(f"name {number}"))
            told = Told()
            owner.ask(keys.exclusive("one more"), told, FOREVER)
            assert isinstance(await told.ended(), errors.ServerFull)

    with serving(max_locks=4) as service:
        run(program(service))


# ---- Cancelled -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pause", [0, 1, 2, 3, 5, 10])
@pytest.mark.parametrize("name_is_known", [True, False])
def test_a_cancelled_ask_leaves_nothing_behind(
    service: Service, pause: int, name_is_known: bool
) -> None:
    async def program() -> None:
        async with connected(service) as client:
            one, two, key = client.owner(), client.owner(), keys.exclusive(fresh_name())
            if name_is_known:
                await known(one, key)
            for wait_ms in 0, 1000, FOREVER:
                told = Told()
                asking = one.ask(key, told, wait_ms)
                await turns(pause)
                asking.cancel()
                came = list(told.outcomes)
                asking.cancel()
                await turns(5)
                assert told.outcomes == came
                if came:
                    told.hold.release()
                assert not one.holds
                (await take(two, key)).release()

    run(program())


def test_a_cancelled_wait_leaves_the_queue(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client:
            one, two, key = client.owner(), client.owner(), keys.exclusive(fresh_name())
            hold, told = await take(one, key), Told()
            asking = two.ask(key, told, FOREVER)
            await until(lambda: service.waiters(key.descriptor) == 1)
            asking.cancel()
            await until(lambda: service.waiters(key.descriptor) == 0)
            hold.release()
            await until(lambda: service.holders(key.descriptor) == 0)
            assert not told.outcomes

    run(program())


def test_a_cancellation_that_crosses_the_grant_gives_it_back(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client:
            one, two, key = client.owner(), client.owner(), keys.exclusive(fresh_name())
            for _ in range(50):
                hold, told = await take(one, key), Told()
                asking = two.ask(key, told, FOREVER)
                client._connection.collector._send()
                hold.release()
                client._connection.collector._send()
                await until(lambda: service.holders(key.descriptor) in (0, 1))
                asking.cancel()
                assert not told.outcomes
                (await take(one, key)).release()
            await until(lambda: service.holders(key.descriptor) == 0)

    run(program())


def test_a_callback_may_cancel_another_that_has_ended_with_it(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client:
            owner = client.owner()
            first, second = keys.exclusive(fresh_name()), keys.exclusive(fresh_name())
            await known(owner, first)
            await known(owner, second)
            for _ in range(20):
                told, other = Told(), Told()
                askings = []

                def strike(hold: Hold | DlockError | None, told: Told = told,
                           askings: list[aio.Asking] = askings) -> None:
                    told(hold)
                    askings[1].cancel()

                askings.append(owner.ask(first, strike))
                askings.append(owner.ask(second, other))
                await told.ended()
                assert not other.outcomes
                told.hold.release()
                (await take(owner, second)).release()

    run(program())


def test_a_cancelled_take_leaves_nothing_behind(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client:
            one, two, key = client.owner(), client.owner(), keys.exclusive(fresh_name())
            await known(one, key)
            for pause in range(8):
                task = asyncio.ensure_future(one.take(key))
                await turns(pause)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    hold = await task
                    assert hold is not None
                    hold.release()
                assert not one.holds
                assert not one._asks
                (await take(two, key)).release()

    run(program())


def test_a_take_cancelled_in_the_turn_of_its_grant_gives_it_back(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client:
            one, two, key = client.owner(), client.owner(), keys.exclusive(fresh_name())
            await known(one, key)
            task = asyncio.ensure_future(one.take(key))
            await turns(1)
            (asking,) = one._asks
            done = asking._done
            assert done is not None
            asking._done = lambda outcome: (task.cancel(), done(outcome))
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not one.holds
            await take(two, key)

    run(program())


# ---- The end of an owner, of the client ----------------------------------------------------------


def test_a_closed_owner_has_released_and_cancelled_everything(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client:
            one, two = client.owner(), client.owner()
            held, waited, unknown = (keys.exclusive(fresh_name()) for _ in range(3))
            await take(one, held)
            await take(two, waited)
            told, untold = Told(), Told()
            one.ask(waited, told, FOREVER)
            one.ask(unknown, untold, FOREVER)
            waiter = asyncio.ensure_future(one.take(waited))
            await until(lambda: service.waiters(waited.descriptor) == 2)
            one.close()
            with pytest.raises(errors.ClientClosed):
                await waiter
            assert one.closed
            assert not one.holds
            await until(lambda: service.waiters(waited.descriptor) == 0)
            for key in held, unknown:
                (await take(two, key)).release()
            assert not told.outcomes
            late = Told()
            one.ask(held, late)
            assert isinstance(await late.ended(), errors.ClientClosed)
            one.close()

    run(program())


def test_a_closed_client_ends_every_ask_with_client_closed(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client:
            one, two = client.owner(), client.owner()
            waited, unknown = keys.exclusive(fresh_name()), keys.exclusive(fresh_name())
            hold = await take(one, waited)
            hold.on_lost = Told()
            told = [Told() for _ in range(3)]
            two.ask(waited, told[0], FOREVER)
            two.ask(unknown, told[1], FOREVER)
            await client.close()
            two.ask(waited, told[2], FOREVER)
            for one_told in told:
                assert isinstance(await one_told.ended(), errors.ClientClosed)
            assert not hold.held
            assert not hold.on_lost.outcomes
            assert hold.release() is False
            assert await hold.settled() is False
            with pytest.raises(errors.ClientClosed):
                client.owner()

    run(program())


def test_an_owner_is_used_in_the_loop_of_its_client_only(service: Service) -> None:
    async def program() -> Callable[[], object]:
        async with connected(service) as client:
            owner, key = client.owner(), keys.exclusive(fresh_name())

            def outside() -> None:
                with pytest.raises(errors.WrongLoop):
                    owner.ask(key, Told())

            await asyncio.to_thread(outside)
            return lambda: None

    run(program())


def test_a_callback_that_raises_hurts_nobody_else(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client:
            owner = client.owner()
            keys_ = [keys.exclusive(fresh_name()) for _ in range(4)]
            for key in keys_:
                await known(owner, key)
            reported: list[object] = []
            asyncio.get_running_loop().set_exception_handler(
                lambda _loop, context: reported.append(context["exception"]))
            told = Told()

            def broken(_outcome: object) -> None:
                raise ZeroDivisionError

            for key in keys_[:3]:
                owner.ask(key, broken)
            owner.ask(keys_[3], told)
            assert isinstance(await told.ended(), Hold)
            assert len(owner.holds) == 4
            assert len(reported) == 3

    run(program())


# ---- Names that are used no more -----------------------------------------------------------------


def test_a_name_that_was_let_go_may_have_another_size(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client, connected(service) as other:
            owner, name = client.owner(), fresh_name()
            key = keys.slots(name, 2)
            hold = await take(owner, key)
            assert client.let_go(key) is False
            hold.release()
            await until(lambda: client.let_go(key))
            assert client.let_go(key) is False
            await until(lambda: service.view(name) is None)
            hold = await take(other.owner(), keys.slots(name, 5))
            view = await client.show(name)
            assert hold.held
            assert view is not None
            assert view.size == 5
            assert len(view.holders) == 1

    run(program())


def test_idle_names_are_let_go_after_their_time(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client:
            owner = client.owner()
            idle = [keys.exclusive(fresh_name()) for _ in range(40)]
            busy = keys.exclusive(fresh_name())
            await asyncio.gather(*(known(owner, key) for key in idle))
            await take(owner, busy)
            assert client.let_go_idle(3600) == 0
            assert client.let_go_idle(3600) == 0
            count = 0

            def all_gone() -> bool:
                nonlocal count
                count += client.let_go_idle(0)
                return count == len(idle)

            await until(all_gone)
            await until(lambda: all(service.view(key.descriptor) is None for key in idle))
            assert service.view(busy.descriptor) is not None

    run(program())
