"""The laws of what clients believe, and of numbers, on events that are made by hand: each lets pass
what is right, and sees what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sim_company import ATOMIC, BOOK, EXCLUSIVE, LOCK, POOL, SHARED, Company, later, token

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sim.laws_belief import LOOSE, TELL_NS, TELL_TURNS, believed
from sim.numbers import Numbers
from sim.scene import MS_NS, LawBroken


@pytest.fixture
def company() -> Company:
    return Company()


# ---- Exclusion -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "first", "second"),
    [(LOCK, EXCLUSIVE, EXCLUSIVE), (BOOK, EXCLUSIVE, SHARED), (BOOK, SHARED, EXCLUSIVE)])
def test_two_at_a_time_are_seen(
    company: Company, key: tuple[bytes, int, int], first: int, second: int
) -> None:
    company.takes(company.anna, key, first, token(1))
    later(499)
    with pytest.raises(LawBroken, match="two at a time"):
        company.takes(company.bert, key, second, token(2))


def test_readers_are_together(company: Company) -> None:
    company.takes(company.anna, BOOK, SHARED, token(1))
    company.takes(company.bert, BOOK, SHARED, token(2))


def test_who_stands_still_believes_until_his_time_is_over(company: Company) -> None:
    hold = company.takes(company.anna, LOCK, EXCLUSIVE, token(1), left_ms=500)
    later(499)
    assert believed(hold)
    later(1)
    assert not believed(hold)
    company.takes(company.bert, LOCK, EXCLUSIVE, token(2))


def test_a_release_ends_a_belief(company: Company) -> None:
    company.gives_back(company.takes(company.anna, LOCK, EXCLUSIVE, token(1)))
    company.takes(company.bert, LOCK, EXCLUSIVE, token(2))


def test_a_semaphore_has_so_many_slots(company: Company) -> None:
    company.takes(company.anna, POOL, EXCLUSIVE, token(1))
    company.takes(company.bert, POOL, EXCLUSIVE, token(2))
    with pytest.raises(LawBroken, match="3 believe in a slot, and it has 2"):
        company.takes(company.anna, POOL, EXCLUSIVE, token(3))


def test_one_token_is_one_hold(company: Company) -> None:
    company.gives_back(company.takes(company.anna, LOCK, EXCLUSIVE, token(1)))
    with pytest.raises(LawBroken, match="has the token"):
        company.takes(company.bert, BOOK, EXCLUSIVE, token(1))


def test_what_operators_break_at_once_is_safe_by_its_token_only(company: Company) -> None:
    company.takes(company.anna, (LOOSE, ATOMIC, 1), EXCLUSIVE, token(1))
    company.takes(company.bert, (LOOSE, ATOMIC, 1), EXCLUSIVE, token(2))


# ---- Tokens --------------------------------------------------------------------------------------


def test_an_older_token_after_a_newer_one_is_seen(company: Company) -> None:
    company.gives_back(company.takes(company.anna, LOCK, EXCLUSIVE, token(2)))
    with pytest.raises(LawBroken, match="3:2 was granted since"):
        company.takes(company.bert, LOCK, EXCLUSIVE, token(1))


def test_a_grant_in_between_is_seen_though_nobody_heard_of_it(company: Company) -> None:
    hold = company.takes(company.anna, LOCK, EXCLUSIVE, token(1))
    later(600)
    company.now(hold, hold.token, 0)
    company.beliefs.granted(LOCK, EXCLUSIVE, token(2))
    with pytest.raises(LawBroken, match="3:2 was granted since"):
        company.now(hold, hold.token, 500)


def test_readers_need_no_order_among_themselves(company: Company) -> None:
    company.takes(company.anna, BOOK, SHARED, token(2))
    company.takes(company.bert, BOOK, SHARED, token(1))


# ---- Told ----------------------------------------------------------------------------------------


def look_often(company: Company) -> None:
    for _ in range(TELL_TURNS + 1):
        company.beliefs.look(company.anna)


def test_suspended_and_confirmed_is_counted(company: Company) -> None:
    hold = company.takes(company.anna, LOCK, EXCLUSIVE, token(1))
    later(600)
    company.now(hold, hold.token, 0)
    company.now(hold, hold.token, 300)
    assert company.seen["suspended, then confirmed"] == 1


def test_a_loss_that_nobody_is_told_of_is_seen(company: Company) -> None:
    hold = company.takes(company.anna, LOCK, EXCLUSIVE, token(1))
    later(600)
    company.now(hold, 0, 0)
    later(TELL_NS // MS_NS + 1)
    with pytest.raises(LawBroken, match=r"is lost since \d+ ms, and nobody was told"):
        look_often(company)


def test_a_suspension_that_nobody_is_told_of_is_seen(company: Company) -> None:
    hold = company.takes(company.anna, LOCK, EXCLUSIVE, token(1))
    later(600)
    company.now(hold, hold.token, 0)
    later(TELL_NS // MS_NS + 1)
    with pytest.raises(LawBroken, match=r"is suspended since \d+ ms, and nobody was told"):
        look_often(company)


@pytest.mark.parametrize("state", ["told", "unwatched", "away"])
def test_who_was_told_or_cannot_be_is_not_waited_for(company: Company, state: str) -> None:
    hold = company.takes(company.anna, LOCK, EXCLUSIVE, token(1), watched=state != "unwatched")
    later(600)
    hold.lost = state == "told"
    company.anna.node.settled = state != "away"  # type: ignore[attr-defined]
    company.now(hold, 0, 0)
    later(2 * TELL_NS // MS_NS)
    look_often(company)
    look_often(company)


def test_a_hold_that_goes_while_it_is_believed_is_seen(company: Company) -> None:
    hold = company.takes(company.anna, LOCK, EXCLUSIVE, token(1))
    with pytest.raises(LawBroken, match="is gone while it was believed"):
        company.now(hold, 0, 0)


def test_an_operator_may_take_it(company: Company) -> None:
    hold = company.takes(company.anna, LOCK, EXCLUSIVE, token(1))
    company.beliefs.breaks.add(LOCK[0])
    company.now(hold, 0, 0)
    hold.lost = hold.handle.broken = True
    company.beliefs.look(company.anna)


def test_a_loss_that_no_operator_ordered_is_seen_where_one_breaks_others(company: Company) -> None:
    hold = company.takes(company.anna, LOCK, EXCLUSIVE, token(1))
    company.beliefs.breaks.add(LOCK[0])
    hold.lost = True
    with pytest.raises(LawBroken, match="was lost while it was believed"):
        company.now(hold, 0, 0)


def test_what_was_told_to_be_lost_stays_lost(company: Company) -> None:
    hold = company.takes(company.anna, LOCK, EXCLUSIVE, token(1))
    later(600)
    hold.lost = True
    company.now(hold, 0, 0)
    with pytest.raises(LawBroken, match="was told to be lost, and is held again"):
        company.now(hold, hold.token, 300)


# ---- Numbers -------------------------------------------------------------------------------------


def test_numbers_that_fit_pass() -> None:
    numbers = Numbers()
    numbers.bases["kept"] = 1000
    one, two, look = (numbers.begins("kept", who, amount)
                      for who, amount in (("anna", 1), ("bert", 3), ("bert", 0)))
    numbers.found(two, 1, 1000)
    numbers.found(one, 1, 1003)
    numbers.found(look, 1, 1003)
    numbers.found(numbers.begins("kept", "anna", 1), 2, 1000)  # another primary, another number


def test_a_number_that_two_have_got_is_seen() -> None:
    numbers = Numbers()
    one, two = numbers.begins("count", "anna", 1), numbers.begins("count", "bert", 1)
    numbers.found(one, 1, 0)
    with pytest.raises(LawBroken, match="both found 0"):
        numbers.found(two, 1, 0)


def test_a_lost_addition_is_seen() -> None:
    numbers = Numbers()
    numbers.found(numbers.begins("count", "anna", 3), 1, 0)
    with pytest.raises(LawBroken, match=r"found 2 .* where 3\.\.3 is possible"):
        numbers.found(numbers.begins("count", "bert", 0), 1, 2)


def test_an_addition_that_was_made_twice_is_seen() -> None:
    numbers = Numbers()
    numbers.begins("count", "anna", 1)  # unknown: once or not at all
    numbers.found(numbers.begins("count", "bert", 0), 1, 1)
    with pytest.raises(LawBroken, match=r"found 2 .* where 0\.\.1 is possible"):
        numbers.found(numbers.begins("count", "bert", 0), 1, 2)


def test_what_was_never_made_does_not_count() -> None:
    numbers = Numbers()
    numbers.never(numbers.begins("count", "anna", 1))
    with pytest.raises(LawBroken, match=r"where 0\.\.0 is possible"):
        numbers.found(numbers.begins("count", "bert", 0), 1, 1)
