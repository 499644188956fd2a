"""Random histories of many DoubleDutch clients, judged by a model of what DoubleDutch promises.

The model knows only what clients can know: when each request was sent and when its answer came. A
holding *certainly* lasts from the answer of its getlock until, at the earliest, its releaselock was
sent or its lifetime, counted from when getlock was sent, is over. It *possibly* lasts from when
getlock was sent until, at the latest, the answer of releaselock came or its lifetime, counted from
the answer of getlock, is over.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

pytest.importorskip("httptools", reason="pip install 'dlock[doors]'")

from door_tools import Door
from doubledutch_tools import Wire, one_door

CLIENTS = 8
STEPS = 80
NAMES = ("a", "b", "c")
# The door reads a clock of its own, in the same machine: what two clocks may differ by.
SLACK_S = 0.005
FOREVER_S = 1e9
# A wait that is refused is withdrawn; a grant that was on its way is given back within this.
WITHDRAWN_S = 0.1


class Span(NamedTuple):
    sent_s: float
    answered_s: float


class Got(NamedTuple):
    """A getlock. `token`: None: refused."""

    span: Span
    name: str
    timeout_s: float
    lifetime_s: float
    token: str | None


class Released(NamedTuple):
    span: Span
    name: str
    token: str
    released: bool


class Listed(NamedTuple):
    span: Span
    tokens: dict[str, str]


Event = Got | Released | Listed


class Holding(NamedTuple):
    name: str
    token: str
    certain: Span  # empty if it ends before it begins
    possible: Span


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with one_door(tmp_path_factory.mktemp("history"), "p", "10") as (_, made):
        yield made


class Client:
    """Does something at random, STEPS times, and writes down what came of it."""

    def __init__(self, door: Door, seed: int, tokens: list[tuple[str, str]]) -> None:
        self._random = random.Random(seed)
        self._wire = Wire(door)
        self._tokens = tokens  # of all clients: some release what others hold
        self.history: list[Event] = []

    def run(self) -> list[Event]:
        with self._wire:
            for _ in range(STEPS):
                chosen = self._random.random()
                if chosen < 0.5:
                    self._get()
                elif chosen < 0.9:
                    self._release()
                else:
                    start = time.monotonic()
                    listed = {one["sessiontoken"]: one["lockname"] for one in self._wire.status()}
                    self.history.append(Listed(Span(start, time.monotonic()), listed))
        return self.history

    def _get(self) -> None:
        name = self._random.choice(NAMES)
        timeout = self._random.choice((0, 0, -1, 0.02, 0.2))
        lifetime = self._random.choice((0, -1, 0.01, 0.05, 0.3, 3600))
        start = time.monotonic()
        token = self._wire.get(name, timeout, lifetime)
        self.history.append(
            Got(Span(start, time.monotonic()), name, timeout, lifetime, token))
        if token is not None:
            self._tokens.append((name, token))

    def _release(self) -> None:
        if not self._tokens:
            return
        recent = self._random.random() < 0.8
        name, token = self._random.choice(self._tokens[-4:] if recent else self._tokens)
        if self._random.random() < 0.1:
            name = self._random.choice(NAMES)
        start = time.monotonic()
        released = self._wire.release(name, token)
        self.history.append(Released(Span(start, time.monotonic()), name, token, released))


def holdings(events: list[Event]) -> dict[str, Holding]:
    """What each token stood for."""
    ends = {one.token: one.span for one in events if isinstance(one, Released) and one.released}
    made: dict[str, Holding] = {}
    for one in events:
        if isinstance(one, Got) and one.token is not None:
            end = ends.get(one.token, Span(FOREVER_S * 2, FOREVER_S * 2))
            sent, answered = one.span
            life = max(one.lifetime_s, 0)
            made[one.token] = Holding(
                one.name, one.token,
                Span(answered, min(end.sent_s, sent + life) - SLACK_S),
                Span(sent, min(end.answered_s, answered + life) + SLACK_S))
    return made


def problems(events: list[Event]) -> Iterator[str]:
    """What no DoubleDutch could have answered."""
    held = holdings(events)
    yield from double_holders(held)
    for one in events:
        if isinstance(one, Got) and one.token is None:
            if not any(lock.name == one.name and meet(lock.possible, one.span)
                       for lock in held.values()) and not beside_withdrawal(one, events):
                yield f"refused, though nobody held it: {one}"
            if one.span.answered_s - one.span.sent_s < one.timeout_s:
                yield f"refused before its time: {one}"
        elif isinstance(one, Released):
            yield from wrong_release(one, held, events)
        elif isinstance(one, Listed):
            yield from wrong_list(one, held)


def beside_withdrawal(one: Got, events: list[Event]) -> bool:
    """Did a wait for the same lock end in vain meanwhile?"""
    return any(
        isinstance(other, Got) and other is not one and other.name == one.name
        and other.token is None and other.timeout_s > 0
        and meet(one.span, Span(other.span.sent_s + other.timeout_s,
                                other.span.answered_s + WITHDRAWN_S))
        for other in events)


def meet(one: Span, other: Span) -> bool:
    return one.sent_s <= other.answered_s and other.sent_s <= one.answered_s


def double_holders(held: dict[str, Holding]) -> Iterator[str]:
    certain = sorted((lock.certain, lock) for lock in held.values()
                     if lock.certain.sent_s < lock.certain.answered_s)
    for name in NAMES:
        before: Holding | None = None
        for _, lock in certain:
            if lock.name != name:
                continue
            if before is not None and lock.certain.sent_s < before.certain.answered_s:
                yield f"held twice: {before} and {lock}"
            if before is None or lock.certain.answered_s > before.certain.answered_s:
                before = lock


def wrong_release(one: Released, held: dict[str, Holding], events: list[Event]) -> Iterator[str]:
    lock = held[one.token]
    if one.released:
        others = [other for other in events if isinstance(other, Released)
                  and other.token == one.token and other.released]
        if len(others) > 1:
            yield f"released twice: {others}"
        if lock.name != one.name or not meet(lock.possible, one.span):
            yield f"released what it cannot: {one}, {lock}"
    elif lock.name == one.name and inside(one.span, lock.certain):
        yield f"not released, though it was held: {one}, {lock}"


def wrong_list(one: Listed, held: dict[str, Holding]) -> Iterator[str]:
    for lock in held.values():
        if lock.token in one.tokens:
            if one.tokens[lock.token] != lock.name or not meet(lock.possible, one.span):
                yield f"listed, though it was not held: {one.span}, {lock}"
        elif inside(one.span, lock.certain):
            yield f"not listed: {one.span}, {lock}"


def inside(one: Span, other: Span) -> bool:
    return other.sent_s <= one.sent_s and one.answered_s <= other.answered_s


@pytest.mark.parametrize("seed", range(3))
def test_a_random_history_is_one_that_doubledutch_could_have(door: Door, seed: int) -> None:
    tokens: list[tuple[str, str]] = []
    clients = [Client(door, seed * 1000 + number, tokens) for number in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        events = [event for history in pool.map(Client.run, clients) for event in history]
    with Wire(door) as wire:
        for lock in wire.status():
            assert wire.release(lock["lockname"], lock["sessiontoken"])
    got = [one for one in events if isinstance(one, Got)]
    assert {one.token is None for one in got} == {True, False}
    assert {one.released for one in events if isinstance(one, Released)} == {True, False}
    assert list(problems(events)) == []


def test_the_model_finds_what_is_wrong() -> None:
    first = Got(Span(0, 1), "a", 0, 100, "t")
    released = Released(Span(5, 6), "a", "t", True)
    good: list[Event] = [first, released, Got(Span(2, 3), "a", 0, 1, None),
                         Got(Span(5.5, 7), "a", 0, 100, "u"), Listed(Span(2, 3), {"t": "a"}),
                         Released(Span(8, 9), "b", "t", False)]
    assert list(problems(good)) == []
    bad: list[Event]
    for bad, words in (
        ([first, Got(Span(2, 3), "a", 0, 100, "u")], "held twice"),
        ([first, released, Got(Span(7, 8), "a", 0, 1, None)], "nobody held it"),
        ([first, Got(Span(2, 3), "a", 2, 1, None)], "before its time"),
        ([first, released, Released(Span(7, 8), "a", "t", True)], "released twice"),
        ([first, Released(Span(2, 3), "b", "t", True)], "what it cannot"),
        ([first, Released(Span(2, 3), "a", "t", False)], "though it was held"),
        ([first, Listed(Span(2, 3), {})], "not listed"),
        ([first, released, Listed(Span(7, 8), {"t": "a"})], "it was not held"),
    ):
        assert any(words in one for one in problems(bad)), words
