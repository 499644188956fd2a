"""Numbers after a failover: they are gone and say so once, or one client says what they are."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from aio_tools import run
from aio_tools import until as aio_until
from failover_tools import PATIENCE_S, Primary, back_at, epoch_of, until
from far_process import FarProcess

import dlock
from dlock import aio
from dlock.errors import ObjectLost

TTL_S = 10.0
Background = Callable[..., Future[Any]]
Connect = Callable[..., dlock.Client]


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    started = Primary(tmp_path, ttl_s=TTL_S)
    yield started
    started.kill()


@pytest.fixture
def connect(primary: Primary) -> Iterator[Connect]:
    with contextlib.ExitStack() as stack:

        def one() -> dlock.Client:
            return stack.enter_context(dlock.connect(primary.address, timeout=60))

        yield one


def fail_over(primary: Primary, *clients: dlock.Client) -> None:
    epoch = epoch_of(clients[0])
    primary.restart()
    for client in clients:
        back_at(client, epoch + 1)


@pytest.mark.data_plane
def test_a_number_is_gone_and_says_so_once(primary: Primary, connect: Connect) -> None:
    client, other = connect(), connect()
    jobs, again, unused = (client.atomic("jobs", 5) for _ in range(3))
    others = other.atomic("jobs", 5)
    assert (jobs.next(), again.next(), others.next()) == (5, 6, 7)
    fail_over(primary, client, other)
    for number in (jobs, again, unused, others):
        with pytest.raises(ObjectLost) as raised:
            number.next()
        assert "'jobs'" in str(raised.value)
    assert [one.next() for one in (jobs, again, unused, others)] == [5, 6, 7, 8]
    assert client.atomic("jobs", 5).get() == 9  # it was made after
    fail_over(primary, client, other)
    with pytest.raises(ObjectLost):
        jobs.get()


@pytest.mark.parametrize(
    "operation", ["get()", "add(1)", "compare_exchange(0, 1)", "set(3)", "destroy()"])
def test_whatever_is_asked_of_it(primary: Primary, connect: Connect, operation: str) -> None:
    client = connect()
    number = client.atomic("a")
    number.get()
    fail_over(primary, client)
    with pytest.raises(ObjectLost):
        eval(f"number.{operation}")
    assert number.get() == 0


def test_a_number_takes_the_place_that_one_client_gives_it(
    primary: Primary, connect: Connect, background: Background
) -> None:
    clients = [connect() for _ in range(4)]
    numbers = [one.atomic("jobs", 0, on_recover=100 * (place + 1))
               for place, one in enumerate(clients)]
    assert sorted(one.next() for one in numbers) == [0, 1, 2, 3]
    fail_over(primary, *clients)
    found = sorted(one.result(60) for one in [background(number.next) for number in numbers])
    assert found[0] in (100, 200, 300, 400)
    assert found == list(range(found[0], found[0] + 4))


def test_one_client_alone_is_asked_what_it_shall_be(
    primary: Primary, connect: Connect, background: Background
) -> None:
    clients = [connect() for _ in range(4)]
    asked: list[int] = []

    def on_recover(place: int) -> Callable[[], int]:
        def value() -> int:
            asked.append(place)
            return 1000 * (place + 1)

        return value

    numbers = [one.atomic("jobs", 0, on_recover=on_recover(place))
               for place, one in enumerate(clients)]
    for turn in (1, 2):
        for number in numbers:
            number.next()
        fail_over(primary, *clients)
        found = sorted(one.result(60) for one in [background(number.next) for number in numbers])
        assert len(asked) == turn
        assert found == [1000 * (asked[-1] + 1) + more for more in range(4)]


def test_a_client_that_fails_to_say_it_leaves_it_to_the_next(
    primary: Primary, connect: Connect
) -> None:
    client, other = connect(), connect()
    answers: list[Any] = [ValueError("on purpose"), "seven", 2**63, 7]

    def value() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    number = client.atomic("a", on_recover=value)
    second = other.atomic("a", on_recover=8)
    number.get()
    fail_over(primary, client, other)
    for error in (ValueError, TypeError, OverflowError):
        with pytest.raises(error):
            number.get()
    assert second.get() == 8
    assert number.get() == 8
    assert len(answers) == 1  # nobody had to be asked any more


def test_one_that_dies_while_it_is_asked_leaves_it_to_the_next(
    primary: Primary, connect: Connect, background: Background
) -> None:
    client = connect()
    dying = FarProcess(primary.address)
    try:
        number = client.atomic("a", on_recover=lambda: 8)
        dying.let("number", "client.atomic('a', on_recover=lambda: __import__('time').sleep(1000))")
        assert (number.next(), dying.ask("number.next()")) == (0, 1)
        fail_over(primary, client)
        until(lambda: dying.ask("client._session.home[0]") == 2)
        dying.tell("=number.next()")
        with primary.admin() as admin:
            until(lambda: admin.show("dlock:on_recover:a"))
        waits = background(number.next)
        dying.close()
        until(lambda: waits.done(), 3 * TTL_S)
        assert waits.result() == 8
    finally:
        dying.close()


def test_what_it_shall_be_is_a_number_or_gives_one(connect: Connect) -> None:
    client = connect()
    with pytest.raises(TypeError):
        client.atomic("a", on_recover="7")  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        client.atomic("a", on_recover=2**63)
    number = pickle.loads(pickle.dumps(client.atomic("a", 3, on_recover=7)))
    assert number.get() == 3
    assert number._on_recover == 7
    number._client.close()
    assert dlock._objects.guard_key(b"a" * 512)[0] != dlock._objects.guard_key(b"b" * 512)[0]


def test_the_same_for_asyncio(primary: Primary) -> None:
    async def program() -> None:
        clients = [await aio.connect(primary.address, timeout=60) for _ in range(3)]
        plain = clients[0].atomic("plain", 5)
        asked: list[int] = []

        async def value() -> int:
            asked.append(1)
            await asyncio.sleep(0)
            return 1000

        numbers = [one.atomic("asked", on_recover=value) for one in clients]
        fixed = [one.atomic("fixed", on_recover=50) for one in clients]
        assert await plain.next() == 5
        for number in (*numbers, *fixed):
            await number.next()
        primary.restart()
        sessions = [client._connection.session for client in clients]
        await aio_until(lambda: all(one.home[0] == 2 for one in sessions), PATIENCE_S)
        with pytest.raises(ObjectLost):
            await plain.get()
        assert await plain.next() == 5
        assert sorted(await asyncio.gather(*(one.next() for one in numbers))) == [1000, 1001, 1002]
        assert asked == [1]
        assert sorted(await asyncio.gather(*(one.next() for one in fixed))) == [50, 51, 52]
        for client in clients:
            await client.close()

    run(program(), 120)
