"""What an operator reads after a drill: timelines, violations in full, the table, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from drill_records import COMMAND, MS, a_drill, added, hold, token, write

from dlock.drill import report
from dlock.drill.__main__ import main as judge_again
from dlock.drill.judge import judge
from dlock.drill.records import (
    LOST,
    TOLD_LOST,
    TOLD_SUSPENDED,
    ClientKilled,
    ClientStopped,
    DrillEnded,
    Failed,
    FaultBegun,
    Hold,
    PrimaryReady,
    Record,
    RoundBegun,
    RoundEnded,
    Skipped,
    Told,
    Writer,
)
from dlock.drill.timeline import EACH, short, timeline


def sorted_drill(*records: Record, **how: Any) -> list[Record]:
    return sorted(a_drill(*records, **how), key=lambda one: one.t_ns)


def told(at: float, said: str, count: int, **changed: Any) -> Told:
    fields: dict[str, Any] = {
        "t_ns": int(at * MS), "client": "c1", "session": 1, "actor": 0,
        "name": "dlock-drill/0a1b2c3d/fair", "token": token(count), "said": said,
        "how": "on_lost", **changed}
    return Told(**fields)


def words(*records: Record, number: int = 1) -> list[tuple[float, str, str]]:
    found = sorted_drill(*records)
    return [(round(one.seconds, 3), one.word, one.text)
            for one in timeline(found, judge(found), number).events]


def text_of(*records: Record, **how: Any) -> str:
    found = sorted_drill(*records, **how)
    return report.text(judge(found), found)


# ---- Timelines -----------------------------------------------------------------------------------


def test_a_round_is_told_in_times_after_its_failure() -> None:
    assert words(hold(700, 710, 0, token=token(5, 2))) == [
        (0.0, "FAULT", "kill -9 of p1"),
        (0.001, "primary", "p1 is killed"),
        (0.05, "primary", "p2 starts at 127.0.0.1:1"),
        (0.051, "fault", "over: p2 was started"),
        (0.2, "primary", "p2 listens, epoch 2"),
        (0.3, "primary", "p2 is ready: 6 of 6 clients came back"),
        (0.5, "grant", "the first one, 0.500 s after the failure"),
        (0.7, "served", "every client has been served again")]


def test_what_clients_were_told_is_told_and_the_same_not_twice() -> None:
    found = words(told(300, TOLD_LOST, 3), told(301, TOLD_LOST, 3, how="LockLost"))
    assert [one for one in found if one[1] == "lost"] == [
        (0.1, "lost", f"c1/1/0: fair, token {token(3)} (epoch 1), told by on_lost")]


def test_many_of_one_sort_are_a_number() -> None:
    many = [told(300 + n, TOLD_SUSPENDED, n, client=f"c{n % 2 + 1}") for n in range(EACH + 1)]
    (line,) = [one for one in words(*many) if one[1] == "suspended"]
    assert line == (0.1, "suspended", "7 holds, until 0.006 s later: c1 4, c2 3")


def test_fenced_writes_errors_and_numbers_stand_in_the_timeline() -> None:
    found = words(
        write(310, 1, 4, 2, accepted=False, late=True),
        Failed(320 * MS, "c2", 1, 0, "acquire", "a", "ConnectionLost", 0),
        Failed(340 * MS, "c2", 1, 0, "acquire", "a", "ConnectionLost", 0),
        added(300, 330, 0, outcome="unknown"), ClientKilled(350 * MS, "c3"),
        ClientStopped(360 * MS, "c4"))
    assert (0.11, "fenced", f"c1/1/0: a write to a with token {token(1)}, the storage had seen "
                            f"{token(2)}") in found
    assert (0.12, "errors", "ConnectionLost, until 0.020 s later: c2 2") in found
    assert (0.13, "numbers", "additions with an unknown outcome: c1 1") in found
    assert (0.15, "client", "c3 is killed") in found
    assert (0.16, "client", "c4 stands still (SIGSTOP)") in found


def test_a_primary_that_was_ready_before_is_no_news() -> None:
    found = words(PrimaryReady(850 * MS, "p2", 6, 6, 0), PrimaryReady(150 * MS, "p1", 0, 0, 0))
    assert len([one for one in found if "is ready" in one[2]]) == 1


def test_a_violation_stands_in_the_timeline_of_its_round() -> None:
    found = words(hold(210, 220, 1), hold(215, 217, 2, client="c2"))
    assert [one[:2] for one in found if one[1] == "VIOLATION"] == [(0.017, "VIOLATION")]


def test_names_are_short_and_safe() -> None:
    assert short("dlock-drill/0a1b2c3d/own/c1/1") == "own/c1/1"
    assert short("jobs/\x1b[2J") == "jobs/\\x1b[2J"


# ---- The whole report ----------------------------------------------------------------------------


def test_a_clean_drill_in_a_few_lines() -> None:
    text = text_of(hold(100, 450, 1), hold(700, 710, 0, token=token(5, 2)),
                   write(11, 1, 1, 0), write(12, 1, 2, 1), write(13, 1, 2, 3, accepted=False))
    assert "dlock drill: 1 round in 1.0s, seed 7: no violation" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("kill-primary"))
    assert row == ["kill-primary", "1", "500ms", "500ms", "300ms", "700ms", "1", "1", "0", "0",
                   "0", "0"]
    assert "writes   2 accepted (of these 0 by a holder who was late" in text
    assert "1 fenced" in text
    assert text.endswith(f"again: {COMMAND}\nverdict: no violation")


def test_a_violation_explains_itself() -> None:
    """The two holds, their clients, tokens and intervals, and the command that repeats the
    round."""
    text = text_of(hold(210, 220, 1, asked_ns=205 * MS),
                   hold(215, 217, 2, client="c2", lease_ms=500))
    assert "1 VIOLATION (exclusion 1)" in text
    assert ("VIOLATION of exclusion (round 1, kill-primary, 0.217 s after the drill began)"
            in text)
    assert (f"hold   c1/1/0 a (atomic, alone, no lease) token {token(1)} (epoch 1), asked for "
            "+0.005000 s, HELD from +0.010000 s to +0.020000 s, suspended 0 times, released"
            in text)
    assert (f"hold   c2/1/0 a (atomic, alone, lease 500 ms) token {token(2)} (epoch 1), asked for "
            "+0.014999 s, HELD from +0.015000 s to +0.017000 s" in text)
    assert "(times after: kill -9 of p1)" in text
    assert "to repeat it: dlock drill --seed 7 --faults kill-primary --rounds 1" in text


def test_a_violation_before_the_first_failure_is_told_from_the_begin() -> None:
    text = text_of(hold(10, 20, 1), hold(15, 17, 2, client="c2"))
    assert "VIOLATION of exclusion (outside of all rounds, 0.017 s after the drill began)" in text
    assert "HELD from +0.010000 s to +0.020000 s" in text


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([write(310, 2, 1, 0), write(311, 1, 2, 1)], "accepted as number 2"),
        ([added(310, 311, 5), added(312, 313, 5)], "it had been 5"),
        ([hold(310, 330, 3, name="dlock-drill/0a1b2c3d/fair", ended=LOST),
          told(320, TOLD_LOST, 3)], "at +0.120000 s: lost, by on_lost"),
    ],
)
def test_every_kind_of_record_can_be_told(records: list[Record], said: str) -> None:
    assert said in text_of(*records)


def test_many_violations_are_told_in_part() -> None:
    text = text_of(*(hold(10, 20, n, client=f"c{n}") for n in range(30)))
    assert text.count("VIOLATION of exclusion") == report.VIOLATIONS
    assert "415 violations more are not told here" in text


def test_what_could_not_be_carried_out_says_why() -> None:
    text = text_of(interrupted=True, why="no port was free")
    assert text.endswith("verdict: not carried out: no port was free")
    assert report.text(judge([]), []) .endswith("not carried out: there are no records of a drill")


def test_what_was_skipped_is_named() -> None:
    text = text_of(hold(1, 2, 1), Skipped(1, "partition", "it needs root"))
    assert "skipped  partition: it needs root" in text


def many_rounds(count: int) -> list[Record]:
    """Rounds of 10 ms; the first grant comes after 1 ms, in round 17 after 5 ms."""
    records: list[Record] = []
    for number in range(2, count + 2):
        at = 1000 + 10 * number
        records += [
            RoundBegun(at * MS, number, "cut"),
            FaultBegun((at + 1) * MS, number, "cut", "network", "cut"),
            hold(at + (6 if number == 17 else 2), at + 8, number, asked_ns=(at + 1) * MS + 1),
            RoundEnded((at + 9) * MS, number, "cut", True, 0.0)]
    return records


def test_of_many_rounds_the_slowest_and_the_violated_are_told() -> None:
    records = many_rounds(40)
    ended = [DrillEnded(3000 * MS, False, "")]
    bad = [hold(1203, 1205, 900, name="z"), hold(1204, 1206, 901, name="z", client="c2")]
    whole = [one for one in sorted_drill(*records, *bad) if not isinstance(one, DrillEnded)] + ended
    assert report.rounds_to_tell(judge(whole), whole) == [1, 17, 20]  # the only one of its fault


def test_json_has_what_the_text_has() -> None:
    found = sorted_drill(hold(210, 220, 1), hold(215, 217, 2, client="c2"))
    told_json = json.loads(json.dumps(report.as_json(judge(found), found)))
    assert told_json["status"] == 1
    assert told_json["violations"] == {"exclusion": 1}
    assert [one["client"] for one in told_json["found"][0]["records"]] == ["c1", "c2"]
    assert told_json["found"][0]["repeat"].endswith("--rounds 1")
    assert told_json["failures"][0]["fault"] == "kill-primary"
    assert told_json["timelines"][0]["events"][0]["text"] == "kill -9 of p1"
    assert told_json["holds"]["all"] == 2
    assert isinstance(found[0].t_ns, int)
    assert sum(isinstance(one, Hold) for one in found) == 2


# ---- Judging what was kept -----------------------------------------------------------------------


def kept(folder: Path, *records: Record) -> Path:
    writer = Writer(folder / "drill.jsonl")
    for one in sorted_drill(*records):
        writer.write(one)
    writer.close()
    return folder


def test_kept_records_are_judged_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = kept(tmp_path, hold(210, 220, 1), hold(215, 217, 2, client="c2"))
    assert judge_again([str(folder), "--json", str(tmp_path / "report.json")]) == 1
    assert "VIOLATION of exclusion" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["status"] == 1
    (tmp_path / "clean").mkdir()
    assert judge_again([str(kept(tmp_path / "clean", hold(210, 220, 1)))]) == 0


def test_what_is_no_record_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "drill.jsonl").write_text('{"what": "weather"}\n')
    assert judge_again([str(tmp_path)]) == 2
    assert "no record of a drill" in capsys.readouterr().err
    assert judge_again([str(tmp_path / "nowhere")]) == 2
    assert "there are no records of a drill" in capsys.readouterr().out
