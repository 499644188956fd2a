"""The judge of a drill: records made by hand, good ones, and each kind of violation; random ones
against a judge that compares every pair."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drill_records import MS, a_drill, added, hold, reader, slot, token, write
from hypothesis import given
from hypothesis import strategies as st

from dlock.drill import violations as rules
from dlock.drill.judge import CLEAN, KEPT, NOT_CARRIED_OUT, VIOLATED, Verdict, judge, repeat
from dlock.drill.records import (
    KILLED,
    LAPSED,
    LOST,
    TOLD_CONFIRMED,
    TOLD_LOST,
    UNTOLD,
    ClientEnded,
    ClientKilled,
    DrillEnded,
    Failed,
    FaultBegun,
    Hold,
    PrimaryExited,
    PrimaryKilled,
    PrimaryListening,
    PrimaryReady,
    PrimaryStarted,
    PrimaryStopped,
    Problem,
    Record,
    RoundBegun,
    RoundEnded,
    Told,
    Write,
    Writer,
    read,
)


def kinds(*records: Record) -> list[str]:
    return [one.violation.kind for one in judge(a_drill(*records)).found]


CLEAN_HOLDS = (
    hold(10, 20, 1), hold(21, 30, 2, client="c2"), hold(15, 25, 3, name="b"),
    reader(40, 60, 4, name="r"), reader(45, 70, 5, name="r", client="c2"),
    hold(71, 80, 6, name="r", kind="rw"),
    slot(10, 30, 7), slot(12, 50, 8, client="c2"), slot(31, 60, 9, client="c3"))


# ---- What is good is called good -----------------------------------------------------------------


def test_a_good_drill_is_clean() -> None:
    verdict = judge(a_drill(*CLEAN_HOLDS))
    assert (verdict.status, verdict.found, verdict.why_not) == (CLEAN, [], "")
    assert (verdict.holds, verdict.names, verdict.clients) == (9, 4, 3)
    assert verdict.ends == {"released": 9, LAPSED: 0, LOST: 0, UNTOLD: 0, KILLED: 0}


def test_the_order_of_the_records_means_nothing() -> None:
    records = a_drill(*CLEAN_HOLDS, hold(15, 16, 20))
    shuffled = random.Random(1).sample(records, len(records))
    first, second = judge(records), judge(shuffled)
    assert [one.violation for one in first.found] == [one.violation for one in second.found]
    assert first.counts == second.counts
    assert first.failures == second.failures


def test_one_hold_that_two_actors_share_is_one() -> None:
    """The mirror's: re-entry by another thread of the same client."""
    assert kinds(hold(10, 20, 1), hold(12, 30, 1, actor=1)) == []


def test_what_touches_does_not_overlap_when_there_is_a_moment_between() -> None:
    assert kinds(hold(10, 20, 1), hold(20.000001, 30, 2)) == []
    assert kinds(hold(10, 20, 1), hold(20, 30, 2)) == [rules.EXCLUSION]


def test_a_hold_that_was_suspended_and_confirmed_is_one() -> None:
    assert kinds(hold(10, 600, 1, suspended=1), hold(601, 700, 2)) == []


def test_holds_of_a_killed_client_and_leases_that_ran_out_are_excused() -> None:
    assert kinds(hold(10, 20, 1, ended=KILLED), hold(30, 40, 2, ended=LAPSED),
                 ClientKilled(21 * MS, "c1")) == []


def test_tokens_of_readers_have_no_order_among_themselves() -> None:
    assert kinds(reader(10, 20, 2), reader(30, 40, 1, client="c2")) == []


def test_tokens_of_different_names_have_no_order() -> None:
    assert kinds(hold(10, 20, 2), hold(30, 40, 1, name="b")) == []


def test_a_late_write_that_was_refused_is_fenced() -> None:
    verdict = judge(a_drill(
        hold(1, 2, 1), write(10, 2, 1, 0), write(11, 1, 1, 2, accepted=False, late=True),
        write(12, 2, 2, 2, late=True)))
    assert verdict.status == CLEAN
    assert dict(verdict.writes) == {"accepted": 2, "fenced": 1, "late": 1}


def test_writes_of_which_a_killed_process_told_nothing_are_a_gap() -> None:
    assert kinds(write(10, 1, 1, 0), write(12, 3, 3, 2)) == []


def test_numbers_begin_anew_with_a_primary_and_after_a_cut() -> None:
    assert kinds(added(10, 11, 5), added(450, 451, 5)) == []
    cut = FaultBegun(600 * MS, 1, "cut", "network", "")
    assert kinds(cut, added(550, 551, 9), added(950, 951, 9)) == []
    assert kinds(cut, added(610, 611, 9), added(620, 621, 9)) == []


def test_numbers_are_not_judged_while_a_primary_stood_still() -> None:
    """It may have ended every session when it went on, and the number with the last of them."""
    stopped = PrimaryStopped(600 * MS, "p2")
    assert kinds(stopped, added(700, 701, 9), added(720, 721, 0)) == []
    assert kinds(stopped, added(920, 921, 9), added(930, 931, 0)) == [rules.NUMBERS]


def test_a_number_whose_answer_came_from_either_primary_is_not_judged() -> None:
    assert kinds(added(10, 11, 5), added(12, 450, 5), added(13, 300, 1, outcome="unknown")) == []


def test_what_a_fault_has_of_its_own_is_another_service() -> None:
    """Its tokens and numbers have nothing to do with the first; a failure is about its own."""
    verdict = judge(a_drill(
        hold(10, 20, 1), hold(650, 660, 1, name="x", client="storm2-c1"),
        hold(900, 910, 0, name="x", client="storm2-c1", token=token(2, 2)),
        hold(860, 870, 0, name="b", token=token(9, 3)),
        added(600, 601, 4), added(602, 603, 4, client="storm2-c1"),
        RoundBegun(600 * MS, 2, "reconnect-storm"),
        PrimaryStarted(610 * MS, "storm2-p1", 1, ""), PrimaryListening(620 * MS, "storm2-p1", 1),
        FaultBegun(655 * MS, 2, "reconnect-storm", "primary", "kill -9 of storm2-p1"),
        PrimaryKilled(656 * MS, "storm2-p1"), PrimaryReady(800 * MS, "storm2-p2", 1, 1, 0),
        RoundEnded(950 * MS, 2, "reconnect-storm", True, 0.1)))
    assert verdict.found == []
    storm = verdict.failures[1]
    assert (storm.held, storm.grant_s) == (1, pytest.approx(0.245))
    assert storm.ready_s == pytest.approx(0.145)


# ---- Each kind of violation is found -------------------------------------------------------------


def test_two_who_hold_alone() -> None:
    (found,) = judge(a_drill(hold(10, 20, 1), hold(15, 17, 2, client="c2"))).found
    assert found.violation.kind == rules.EXCLUSION
    assert found.violation.text == (
        f"'a' was held by c1/1/0 (alone, token {token(1)}) and by c2/1/0 (alone, token {token(2)}) "
        "at the same time, for at least 2.000 ms")
    one, other = found.violation.records
    assert isinstance(one, Hold)
    assert isinstance(other, Hold)
    assert (one.client, one.begin_ns, one.end_ns) == ("c1", 10 * MS, 20 * MS)
    assert (other.client, other.begin_ns, other.end_ns) == ("c2", 15 * MS, 17 * MS)


def test_a_reader_beside_a_writer() -> None:
    assert kinds(reader(10, 20, 1), hold(15, 17, 2, kind="rw")) == [rules.EXCLUSION]
    assert kinds(hold(10, 20, 1, kind="rw"), reader(15, 17, 2)) == [rules.EXCLUSION]


def test_an_overlap_behind_others_that_are_over() -> None:
    """The long one is met by a hold that began after many others had ended."""
    short = [hold(20 + n, 20.5 + n, n + 2, name="a", client="c2", exclusive=False, kind="rw")
             for n in range(9)]
    late = hold(50, 60, 90, client="c3", kind="rw")
    assert kinds(reader(10, 55, 1), *short, late) == [rules.EXCLUSION]


def test_one_more_than_there_are_slots() -> None:
    (found,) = judge(a_drill(
        slot(10, 30, 1), slot(11, 30, 2, client="c2"), slot(29, 40, 3, client="c3"))).found
    assert found.violation.kind == rules.EXCLUSION
    assert "has 2 slots and was held 3 times" in found.violation.text


@pytest.mark.parametrize(
    ("first", "second"),
    [(hold(10, 20, 2), hold(30, 40, 1)), (hold(10, 20, 2, kind="rw"), reader(30, 40, 1)),
     (reader(10, 20, 2), hold(30, 40, 1, kind="rw"))],
)
def test_a_later_hold_with_a_lower_token(first: Hold, second: Hold) -> None:
    (found,) = judge(a_drill(first, replace(second, client="c2"))).found
    assert found.violation.kind == rules.TOKEN_ORDER
    assert "10.000 ms later by c2/1/0 with the lower token" in found.violation.text


def test_a_token_that_was_given_out_twice() -> None:
    assert kinds(hold(10, 20, 1), hold(30, 40, 1, client="c2")) == [rules.TOKEN_ORDER]
    assert kinds(hold(10, 20, 1), hold(30, 40, 1, name="b", client="c2")) == [rules.TOKEN_ORDER]


def test_a_loss_of_which_nobody_was_told() -> None:
    verdict = judge(a_drill(hold(10, 20, 1, ended=UNTOLD)))
    assert [one.violation.kind for one in verdict.found] == [rules.NOT_TOLD]
    assert verdict.status == VIOLATED


def test_who_is_told_that_it_is_lost_does_not_hold_it_any_more() -> None:
    def told(at: float, said: str) -> Told:
        return Told(int(at * MS), "c1", 1, 0, "a", token(1), said, "on_lost")

    assert kinds(hold(10, 20, 1, ended=LOST), told(21, TOLD_LOST)) == []
    assert kinds(hold(10, 20, 1), told(15, TOLD_CONFIRMED)) == []
    assert kinds(hold(10, 20, 1), told(15, TOLD_LOST)) == [rules.BELIEVED_ON]


@pytest.mark.parametrize(
    "writes",
    [
        [write(10, 2, 1, 0), write(11, 1, 2, 1)],
        [write(10, 1, 1, 2)],
        [write(10, 1, 1, 0), write(11, 2, 1, 1)],
        [write(10, 2, 1, 2, accepted=False)],
    ],
    ids=["falls", "below what it had seen", "two with one number", "refused for nothing"],
)
def test_a_storage_that_lets_the_wrong_ones_in(writes: list[Write]) -> None:
    assert kinds(*writes) == [rules.STORAGE]


def test_numbers_that_two_got_or_that_fall() -> None:
    assert kinds(added(10, 11, 5), added(12, 13, 5, client="c2")) == [rules.NUMBERS]
    assert kinds(added(10, 11, 5), added(12, 13, 4, client="c2")) == [rules.NUMBERS]
    assert kinds(added(10, 13, 5), added(12, 14, 4, client="c2")) == []


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (RoundEnded(800 * MS, 1, "cut", False, 60.0), rules.NO_END),
        (ClientEnded(800 * MS, "c1", 1, False), rules.DIED),
        (PrimaryExited(800 * MS, "p2", -11, False), rules.DIED),
        (Problem(800 * MS, "c1", "held after it was lost"), rules.SEEN),
    ],
)
def test_what_a_process_has_seen(record: Record, kind: str) -> None:
    assert kinds(record) == [kind]


def test_who_ended_as_expected_is_no_violation() -> None:
    assert kinds(ClientEnded(800 * MS, "c1", 0, True), PrimaryExited(800 * MS, "p2", 0, True)) == []


# ---- Where, and how to repeat it -----------------------------------------------------------------


def test_a_violation_is_told_in_its_round_with_the_command_that_repeats_it() -> None:
    (found,) = judge(a_drill(hold(210, 220, 1), hold(215, 217, 2, client="c2"))).found
    assert (found.round, found.fault, found.seconds) == (1, "kill-primary", pytest.approx(0.217))
    assert found.repeat == "dlock drill --seed 7 --faults kill-primary --rounds 1"


def test_a_violation_lies_in_the_last_round_that_had_begun() -> None:
    second = (RoundBegun(600 * MS, 2, "cut"), RoundEnded(950 * MS, 2, "cut", True, 0.1))

    def place(at: float) -> tuple[int, str]:
        (found,) = judge(a_drill(*second, hold(at, at + 1, 1, ended=UNTOLD))).found
        return found.round, found.fault

    assert place(50) == (0, "")
    assert place(300) == (1, "kill-primary")
    assert place(700) == (2, "cut")


@pytest.mark.parametrize(
    ("command", "rounds", "repeated"),
    [
        ("dlock drill --seed 7 --rounds 20 --clients 3", 4,
         "dlock drill --seed 7 --clients 3 --rounds 4"),
        ("dlock drill --seed 7 --seconds 60", 4, "dlock drill --seed 7 --rounds 4"),
        ("dlock drill --seed 7 --rounds=20 --start-command 'a b'", 2,
         "dlock drill --seed 7 --start-command 'a b' --rounds 2"),
        ("dlock drill --seed 7", 0, "dlock drill --seed 7"),
        ("", 3, ""),
    ],
)
def test_the_command_ends_after_the_round(command: str, rounds: int, repeated: str) -> None:
    assert repeat(command, rounds) == repeated


def test_very_many_violations_are_all_counted() -> None:
    count = 60
    verdict = judge(a_drill(*(hold(10, 20, n, client=f"c{n}") for n in range(count))))
    assert verdict.counts[rules.EXCLUSION] == count * (count - 1) // 2 > KEPT
    assert len(verdict.found) == KEPT


# ---- What could not be carried out ---------------------------------------------------------------


def test_a_drill_without_an_end_is_no_success() -> None:
    records = [one for one in a_drill(*CLEAN_HOLDS) if not isinstance(one, DrillEnded)]
    verdict = judge(records)
    assert verdict.status == NOT_CARRIED_OUT
    assert "did not come to its end" in verdict.why_not
    assert judge([]).status == NOT_CARRIED_OUT


def test_an_interrupted_drill_says_why() -> None:
    verdict = judge(a_drill(*CLEAN_HOLDS, interrupted=True, why="no port was free"))
    assert (verdict.status, verdict.why_not) == (NOT_CARRIED_OUT, "no port was free")


def test_a_drill_in_which_nothing_was_held_says_nothing() -> None:
    assert judge(a_drill()).status == NOT_CARRIED_OUT


def test_a_violation_weighs_more_than_an_interruption() -> None:
    assert judge(a_drill(hold(1, 2, 1, ended=UNTOLD), interrupted=True)).status == VIOLATED


# ---- What each failure meant ---------------------------------------------------------------------


def failure_of(*records: Record) -> Any:
    (found,) = judge(a_drill(*records)).failures
    return found


def test_the_first_grant_after_a_primary_is_one_by_its_successor() -> None:
    """A grant that was on its way when the primary died is seen after its death."""
    found = failure_of(
        hold(100, 110, 1), hold(201, 205, 2, name="b"),
        hold(700, 710, 0, name="c", token=token(5, 2)),
        hold(650, 660, 0, name="d", token=token(4, 2)))
    assert found.grant_s == pytest.approx(0.45)
    assert found.ready_s == pytest.approx(0.3)
    assert found.over_s == pytest.approx(0.051)
    assert found.served_s == pytest.approx(0.7)


def test_after_a_client_it_is_one_that_was_asked_for_after_it() -> None:
    failed = FaultBegun(600 * MS, 2, "kill-client", "client", "kill -9 of c3")
    verdict = judge(a_drill(
        failed, RoundEnded(950 * MS, 2, "kill-client", True, 0.1),
        hold(601, 610, 1, asked_ns=500 * MS), hold(640, 650, 2, name="b", asked_ns=620 * MS)))
    assert verdict.failures[1].grant_s == pytest.approx(0.04)
    assert verdict.failures[1].ready_s is None


def test_a_grant_that_never_came_is_none() -> None:
    assert failure_of(hold(100, 110, 1)).grant_s is None


def test_holds_that_a_failure_met() -> None:
    found = failure_of(
        hold(100, 150, 1, name="before"),
        hold(100, 650, 2, name="kept"), hold(150, 450, 3, name="kept too"),
        hold(150, 300, 4, name="given back before the next one listened"),
        hold(150, 240, 5, name="lost", ended=LOST, t_ns=600 * MS),
        hold(150, 420, 6, name="lost though listened", ended=LOST, t_ns=600 * MS),
        hold(150, 190, 7, name="untold", ended=UNTOLD, t_ns=700 * MS),
        hold(150, 230, 8, name="killed", ended=KILLED),
        hold(300, 310, 9, name="after"))
    assert (found.held, found.kept, found.released) == (7, 2, 1)
    assert (found.lost, found.untold, found.killed) == (2, 1, 1)


def test_errors_and_numbers_are_counted() -> None:
    verdict = judge(a_drill(
        hold(1, 2, 1), Failed(3, "c1", 1, 0, "acquire", "a", "ConnectionLost", 2),
        added(1, 2, 0), added(3, 4, 0, outcome="unknown")))
    assert dict(verdict.errors) == {"ConnectionLost": 1}
    assert dict(verdict.numbers) == {"done": 1, "unknown": 1}


# ---- Against a judge that compares every pair ----------------------------------------------------


def some_holds(chance: random.Random, count: int) -> Iterator[Hold]:
    """A crowd in which much is wrong, and some is not."""
    for _ in range(count):
        begin = chance.randrange(40)
        kind = chance.choice(["atomic", "rw", "semaphore"])
        yield hold(
            begin, begin + chance.choice([0, 0, 1, 3, 10]), chance.randrange(1, 3 * count),
            client=f"c{chance.randrange(3)}", session=chance.randrange(1, 3), name=kind,
            kind=kind, slots=2 if kind == "semaphore" else 0,
            exclusive=kind == "atomic" or (kind == "rw" and chance.random() < 0.4))


def overlaps(one: Hold, other: Hold) -> bool:
    return one.begin_ns <= other.end_ns and other.begin_ns <= one.end_ns


def brute(holds: list[Hold]) -> dict[str, set[Any]]:
    """Pairs that overlap, moments with too many, holds that come too late, tokens given twice."""
    pairs, late, twice, crowded = set(), set(), set(), set()
    for (i, one), (j, other) in itertools.combinations(enumerate(holds), 2):
        excludes = one.name == other.name and (one.exclusive or other.exclusive)
        if excludes and overlaps(one, other) and not rules.same(one, other):
            pairs.add(frozenset((i, j)))
        if one.token == other.token and not (rules.same(one, other) and one.name == other.name):
            twice.add(one.token)
    for i, one in enumerate(holds):
        for other in holds:
            if (one.name == other.name and (one.exclusive or other.exclusive)
                    and other.end_ns < one.begin_ns and other.token > one.token):
                late.add(i)
        if one.slots:
            at_once = {(two.client, two.session, two.token) for two in holds
                       if two.name == one.name and two.begin_ns <= one.begin_ns <= two.end_ns}
            if len(at_once) > one.slots:
                crowded.add((one.name, one.begin_ns))
    return {"pairs": pairs, "late": late, "twice": twice, "crowded": crowded}


def swept(holds: list[Hold]) -> dict[str, set[Any]]:
    """The same, from the judge's violations."""
    number: Callable[[Any], int] = {id(one): i for i, one in enumerate(holds)}.__getitem__
    found: dict[str, set[Any]] = {"pairs": set(), "late": set(), "twice": set(), "crowded": set()}
    for one in rules.of_holds(holds):
        met = [record for record in one.records if isinstance(record, Hold)]
        if "given out twice" in one.text:
            found["twice"].add(met[0].token)
        elif one.kind == rules.TOKEN_ORDER:
            found["late"].add(number(id(met[1])))
        elif "slots" in one.text:
            found["crowded"].add((met[0].name, one.t_ns))
        else:
            found["pairs"].add(frozenset(number(id(record)) for record in met))
    return found


@given(st.integers(0, 2**32), st.integers(0, 40))
def test_the_sweeps_find_what_every_pair_shows(seed: int, count: int) -> None:
    holds = list(some_holds(random.Random(seed), count))
    assert swept(holds) == brute(holds)


# ---- From the files of a drill -------------------------------------------------------------------


def test_records_are_judged_as_they_were_written(tmp_path: Path) -> None:
    records = a_drill(*CLEAN_HOLDS, hold(15, 16, 20, client="c4"))
    writers = [Writer(tmp_path / f"{name}.jsonl") for name in ("drill", "c1", "c2")]
    for number, one in enumerate(records):
        writers[number % 3].write(one)
    for writer in writers:
        writer.close()
    verdict: Verdict = judge(read(tmp_path))
    assert verdict.counts == judge(records).counts
    assert verdict.records == len(records)
    assert json.loads((tmp_path / "drill.jsonl").read_text().splitlines()[0])["what"] == (
        "drill-begun")
