"""The laws of the models, one history each: what is right, and what is almost the same and wrong.

tests/test_linear_oracle.py has the search against an oracle, tests/test_linear_faults.py long
histories with planted faults."""

from __future__ import annotations

import pytest
from linear_tools import acquire, cell, ended, held, refused, release

from dlock.linear import check, of_hold
from dlock.linear import history as h
from dlock.linear.history import Operation

SHARED = {"kind": h.RW, "shared": True}
WRITER = {"kind": h.RW}
SLOT = {"kind": h.SEMAPHORE, "size": 2}
AGAIN = {"kind": h.REENTRANT}

GOOD: dict[str, list[Operation]] = {
    "one after the other": [
        acquire("A", 0, 1, 1), release("A", 5, 6), acquire("B", 2, 6, 2), release("B", 7, 8)],
    "a try meets the holder": [acquire("A", 0, 1), refused("B", 2, 3), release("A", 4, 5)],
    "a try meets a grant that is under way": [refused("B", 1, 2), acquire("A", 0, 3)],
    "a try meets a release that is under way": [
        acquire("A", 0, 1), release("A", 2, 5), refused("B", 4, 6)],
    "a release that nobody confirmed has not been made yet": [
        acquire("A", 0, 1), release("A", 2, None), refused("B", 100, 101)],
    "or has": [acquire("A", 0, 1), release("A", 2, None), acquire("B", 100, 101)],
    "a killed holder's hold ends some time": [
        acquire("A", 0, 1), held("A", 5, 5), ended("A", 5), acquire("B", 3, 20)],
    "suspended, then confirmed, and nobody had it": [
        acquire("A", 0, 1, 1), held("A", 2, 2), held("A", 90, 90), release("A", 91, 92),
        acquire("B", 3, 92, 2)],
    "a killed client's request may have been granted": [
        acquire("K", 0, None), refused("B", 50, 51), acquire("C", 52, 53, 4)],
    "so may one that was asked again over a lost link": [
        acquire("A", 0, 10, 7, again=True), acquire("C", 4, 5, 6), release("C", 6, 7),
        refused("B", 1, 2)],
    "who stood in line is served first": [
        acquire("H", 0, 1, 1), acquire("A", 2, 20, 5, queued_ns=4), acquire("B", 6, 30, 9),
        release("H", 10, 11), release("A", 21, 22)],
    "who stood in line and left is not waited for": [
        acquire("H", 0, 1, 1), refused("A", 2, 9, queued_ns=4), acquire("B", 6, 30, 9),
        release("H", 10, 11)],
    "entered again and left as often": [
        acquire("A", 0, 1, 3, **AGAIN), acquire("A", 2, 3, 3, **AGAIN), release("A", 4, 5, **AGAIN),
        refused("B", 6, 7, **AGAIN), release("A", 8, 9, **AGAIN), acquire("B", 10, 11, 4, **AGAIN)],
    "readers together": [
        acquire("A", 0, 1, 1, **SHARED), acquire("B", 2, 3, 2, **SHARED), held("A", 4, 4, **SHARED),
        release("A", 5, 6, **SHARED), release("B", 5, 6, **SHARED),
        acquire("W", 7, 8, 3, **WRITER)],
    "a writer in line stops a reader that tries": [
        acquire("A", 0, 1, 1, **SHARED), refused("B", 4, 5, **SHARED, waits=False),
        acquire("W", 2, 9, 2, **WRITER), release("A", 7, 8, **SHARED)],
    "as many as there are slots": [
        acquire("A", 0, 1, 1, **SLOT), acquire("B", 0, 1, 2, **SLOT), refused("C", 2, 3, **SLOT),
        release("A", 4, 5, **SLOT), acquire("C", 6, 7, 3, **SLOT)],
    "a lost answer: the addition was made": [
        cell("A", h.ADD, 0, None, argument=5, outcome=h.UNKNOWN), cell("B", h.GET, 9, 9, result=5)],
    "a lost answer: it was not": [
        cell("A", h.ADD, 0, None, argument=5, outcome=h.UNKNOWN), cell("B", h.GET, 9, 9, result=0)],
    "a number begins anew with each primary": [
        cell("A", h.ADD, 0, 1, argument=5, result=0, life=1), cell("A", h.GONE, 5, 6, life=2),
        cell("A", h.ADD, 7, 8, argument=1, result=0, life=2)],
    "a swap that missed": [
        cell("A", h.ADD, 0, 1, argument=5, result=0),
        cell("B", h.SWAP, 2, 3, argument=4, desired=9, result=5), cell("A", h.GET, 4, 4, result=5)],
    "additions wrap around": [
        cell("A", h.ADD, 0, 1, argument=2**63 - 1, result=0),
        cell("A", h.ADD, 2, 3, argument=1, result=2**63 - 1),
        cell("A", h.GET, 4, 4, result=-(2**63))],
}

BAD: dict[str, tuple[str, list[Operation]]] = {
    "two holders": ("it is held by A", [
        acquire("A", 0, 1, 1), acquire("B", 2, 3, 2), release("A", 5, 6)]),
    "refused by a free lock": ("nothing stood in its way", [
        acquire("A", 0, 1), release("A", 2, 3), refused("B", 4, 5)]),
    "given to another while its client calls it held": ("it is held by A", [
        acquire("A", 0, 1, 1), held("A", 9, 9), ended("A", 9), acquire("B", 3, 5, 2)]),
    "suspended, then confirmed, though somebody had it": ("was over", [
        acquire("A", 0, 1, 1), held("A", 2, 2), ended("A", 2, 4), acquire("B", 5, 6, 2),
        held("A", 7, 8)]),
    "a lower token": ("its token is not above 8", [
        acquire("A", 0, 1, 8), release("A", 2, 3), acquire("B", 4, 5, 7)]),
    "one token twice": ("its token is not above 8", [
        acquire("A", 0, 1, 8), release("A", 2, 3), acquire("B", 4, 5, 8)]),
    "overtaken in line": ("stood in line when it asked", [
        acquire("H", 0, 1), acquire("A", 2, 40, queued_ns=4), release("H", 5, 6),
        acquire("B", 7, 8), release("B", 9, 10)]),
    "overtaken by a try": ("stood in line when it asked", [
        acquire("H", 0, 1), acquire("A", 2, 40, queued_ns=4), release("H", 5, 6),
        acquire("B", 7, 8, waits=False), release("B", 9, 10)]),
    "granted, and seen in line afterwards": ("", [
        acquire("A", 2, 40, 1, waiting_ns=20, queued_ns=22), acquire("B", 3, 10, 2)]),
    "another owner enters": ("it is held by A", [
        acquire("A", 0, 1, 3, **AGAIN), acquire("B", 2, 3, 3, **AGAIN),
        release("A", 8, 9, **AGAIN)]),
    "free before its last release": ("it is held by A", [
        acquire("A", 0, 1, 3, **AGAIN), acquire("A", 2, 3, 3, **AGAIN), release("A", 4, 5, **AGAIN),
        acquire("B", 6, 7, 4, **AGAIN), release("A", 8, 9, **AGAIN)]),
    "its own holder is refused to enter again": ("nothing stood in its way", [
        acquire("A", 0, 1, 3), release("A", 4, 5), refused("A", 6, 7)]),
    "a mutex is entered again": ("the same hold was granted twice", [
        acquire("A", 0, 1, 3), acquire("A", 2, 3, 3), release("A", 4, 5)]),
    "a writer among readers": ("it is held by A with token 1 (shared)", [
        acquire("A", 0, 1, 1, **SHARED), acquire("W", 2, 3, 2, **WRITER),
        release("A", 4, 5, **SHARED)]),
    "a reader beside a writer": ("it is held by W with token 1", [
        acquire("W", 0, 1, 1, **WRITER), acquire("A", 2, 3, 2, **SHARED),
        release("W", 4, 5, **WRITER)]),
    "a reader that becomes a writer": ("it is held by A.r", [
        acquire("A", 0, 1, 1, **SHARED, hold="A.r"), acquire("A", 2, 3, 2, **WRITER, hold="A.w"),
        release("A", 4, 5, **SHARED, hold="A.r")]),
    "a reader is refused, and no writer is in line": ("nothing stood in its way", [
        acquire("A", 0, 1, 1, **SHARED), refused("B", 4, 5, **SHARED)]),
    "one too many": ("it is held by A", [
        acquire("A", 0, 1, 1, **SLOT), acquire("B", 0, 1, 2, **SLOT), acquire("C", 2, 3, 3, **SLOT),
        held("A", 4, 4, **SLOT), held("B", 4, 4, **SLOT)]),
    "refused with a slot free": ("nothing stood in its way", [
        acquire("A", 0, 1, 1, **SLOT), refused("C", 2, 3, **SLOT)]),
    "an addition is lost": ("the number is 1", [
        cell("A", h.ADD, 0, 1, argument=1, result=0),
        cell("B", h.ADD, 2, 3, argument=1, result=0)]),
    "an unknown addition was made twice": ("the number is 5", [
        cell("A", h.ADD, 0, None, argument=5, outcome=h.UNKNOWN),
        cell("B", h.GET, 4, 4, result=5), cell("B", h.GET, 9, 9, result=10)]),
    "an old number is read": ("the number is 1", [
        cell("A", h.ADD, 0, 1, argument=1, result=0), cell("B", h.GET, 2, 3, result=0)]),
    "a swap of what was not there": ("the number is 1", [
        cell("A", h.ADD, 0, 1, argument=1, result=0),
        cell("B", h.SWAP, 2, 3, argument=0, desired=9, result=0)]),
    "the number of a former primary": ("of epoch 1, when that of epoch 2", [
        cell("A", h.ADD, 0, 1, argument=1, result=0, life=1),
        cell("B", h.GET, 2, 3, result=0, life=2),
        cell("A", h.ADD, 4, 5, argument=1, result=1, life=1)]),
    "a number that outlived its primary": ("the number is 1", [
        cell("A", h.ADD, 0, 1, argument=1, result=0, life=1),
        cell("B", h.GET, 2, 3, result=1, life=2)]),
}


@pytest.mark.parametrize("story", GOOD)
def test_what_is_right_is_explained(story: str) -> None:
    found = check(GOOD[story])
    assert found.ok, str(found)


@pytest.mark.parametrize("story", BAD)
def test_what_is_wrong_is_not(story: str) -> None:
    because, operations = BAD[story]
    found = check(operations)
    assert found.violated
    assert because in str(found)


def test_names_are_looked_at_each_by_itself() -> None:
    mine = [acquire("A", 0, 1, 1), acquire("A", 2, 3, 2)._replace(name="b")]
    assert check(mine) == (2, 2, ())
    both = check([*mine, acquire("B", 4, 5, 3), acquire("B", 4, 5, 4)._replace(name="b")])
    assert {fault.name for fault in both.faults} == {"a", "b"}


def test_the_prefix_that_fails_is_the_shortest() -> None:
    operations = [acquire("A", 0, 1, 1), ended("A", 4), held("A", 4, 4), acquire("B", 2, 5, 2),
                  held("A", 6, 6)]
    (fault,) = check([*operations, release("B", 7, 8)]).faults
    assert (fault.operation, fault.before) == (operations[-1], 3)
    assert check(operations[:-1]).ok


def test_a_name_of_two_kinds_and_one_of_none_are_refused() -> None:
    with pytest.raises(ValueError, match="several kinds"):
        check([acquire("A", 0, 1), acquire("B", 2, 3, **SHARED)])
    with pytest.raises(ValueError, match="no model of a 'spinlock'"):
        check([acquire("A", 0, 1, kind="spinlock")])


def test_too_much_is_said_to_be_too_much() -> None:
    lost = [cell(f"c{n}", h.ADD, 0, None, argument=2**n, outcome=h.UNKNOWN) for n in range(14)]
    asked = cell("B", h.GET, 1, 2, result=2**14 - 1)
    assert check([*lost, asked]).ok
    found = check([*lost, asked], worlds_max=1000)
    assert not found.ok
    assert not found.violated
    assert "undecided" in str(found)


def test_alike_changes_of_unknown_outcome_cost_nothing() -> None:
    lost = [cell(f"c{n}", h.ADD, n, None, argument=1, outcome=h.UNKNOWN) for n in range(300)]
    looks = [cell("B", h.GET, 1000 + n, 1000 + n, result=n) for n in range(0, 300, 30)]
    assert check([*lost, *looks]).ok
    assert check([*lost, *looks, cell("B", h.GET, 2000, 2000, result=301)]).violated


def test_holds_that_a_program_kept_account_of() -> None:
    times = {"asked_ns": 0, "begin_ns": 5, "end_ns": 20}
    one = of_hold("a", h.MUTEX, "A", token=1, **times)
    late = {"asked_ns": 10, "begin_ns": 30, "end_ns": 40}
    assert check([*one, *of_hold("a", h.MUTEX, "B", token=2, **late)]).ok
    early = {"asked_ns": 10, "begin_ns": 15, "end_ns": 40}
    found = check([*one, *of_hold("a", h.MUTEX, "B", token=2, **early)])
    assert found.violated
    assert check([*one, *of_hold("a", h.SEMAPHORE, "B", token=2, size=2, **early)][4:]).ok
