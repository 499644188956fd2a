"""AtomicInt64 over a real server."""

from __future__ import annotations

import itertools
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from lock_tools import Service, fresh_name, serving

import dlock
from dlock import _attempt
from dlock._core import lib
from dlock.client import Client

pytestmark = pytest.mark.data_plane


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving() as one:
        yield one


@pytest.fixture
def client(service: Service) -> Client:
    return service.client()


def test_the_first_to_name_it_gives_its_value(service: Service, client: Client) -> None:
    name = fresh_name()
    assert client.atomic(name, 5).get() == 5
    assert service.client().atomic(name, 9).get() == 5


def test_it_is_signed_and_wraps_around(client: Client) -> None:
    number = client.atomic(fresh_name(), -3)
    assert number.get() == -3
    assert number.add(-4) == -7
    assert number.fetch_add(10) == -7
    assert number.get() == 3
    assert number.set(2**63 - 1) == 3
    assert number.add(1) == -(2**63)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1])
def test_a_value_that_does_not_fit_is_refused(client: Client, value: int) -> None:
    number = client.atomic(fresh_name())
    with pytest.raises(OverflowError):
        number.add(value)
    with pytest.raises(OverflowError):
        client.atomic(fresh_name(), value)


def test_compare_exchange_tells_what_it_found(client: Client) -> None:
    number = client.atomic(fresh_name(), 1)
    assert number.compare_exchange(1, -2) == (True, 1)
    assert number.compare_exchange(1, 7) == (False, -2)
    assert number.update(lambda value: value * 3) == -6


def test_next_gives_everybody_another_number(service: Service) -> None:
    name = fresh_name()
    seen: list[int] = []

    def work() -> None:
        number = service.client().atomic(name)
        seen.extend(itertools.islice(number, 20))
        seen.append(number.next())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(84))


def test_only_who_named_it_may_destroy_it(service: Service, client: Client) -> None:
    name = fresh_name()
    number = client.atomic(name, 4)
    number.get()
    with pytest.raises(dlock.DlockError):
        service.client().atomic(name).destroy()


def test_a_lost_answer_to_a_change_is_an_unknown_outcome(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = client.atomic(fresh_name(), 1)
    number.get()

    def lose(session: Any, call: Any) -> int:
        """Sends it, and loses the link before the answer is read."""
        lib.dlk_client_start(session, call)
        lib.dlk_client_detach(session)
        status: int = lib.dlk_client_poll(session, call)
        return status

    monkeypatch.setattr(_attempt, "_call", lose)
    with pytest.raises(dlock.OutcomeUnknown, match="once or not at all"):
        number.add(1)
    monkeypatch.undo()
    assert number.get() in (1, 2)


def test_what_was_not_sent_is_asked_again(client: Client) -> None:
    number = client.atomic(fresh_name(), 1)
    number.get()
    lib.dlk_client_detach(client._session.client)
    assert number.add(1) == 2


def test_it_is_pickled_by_name(client: Client) -> None:
    number = client.atomic(fresh_name(), 8)
    assert number.next() == 8
    assert pickle.loads(pickle.dumps(number)).get() == 9
