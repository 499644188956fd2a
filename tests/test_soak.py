"""Long runs: does a quantity grow? And a short run of the real thing, in which a planted leak is
found."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from failover_tools import until
from hypothesis import given, settings
from hypothesis import strategies as st

from dlock.drill import soak_report
from dlock.drill.sample import folder_bytes, usage
from dlock.drill.soak_report import Done, Life, Run, Series
from dlock.drill.steady import PIECES_MIN, Sample, Trend, Verdict, trend

LONG_S = 200.0  # ten processes begin one after another, which a busy machine takes its time for

pytestmark = pytest.mark.timeout(1000)

# ---- The statistics ------------------------------------------------------------------------------


def samples(values: list[float]) -> list[Sample]:
    """One a second."""
    return [(float(second), value) for second, value in enumerate(values)]


def noisy(slope: float, noise: float, count: int = 600, seed: int = 1) -> list[Sample]:
    chance = random.Random(seed)
    return samples([slope * second + chance.uniform(-noise, noise) for second in range(count)])


def test_what_stays_is_flat() -> None:
    found = trend(samples([7.0] * 100), 1.0)
    assert (found.verdict, found.growth, found.low, found.high) == (Verdict.FLAT, 0, 0, 0)
    assert (found.first, found.last, found.least, found.greatest) == (7, 7, 7, 7)


def test_what_grows_is_said_to_grow_by_how_much() -> None:
    found = trend(noisy(0.1, 5.0), 10.0)
    assert found.verdict is Verdict.GROWS
    assert found.growth == pytest.approx(60, abs=5)
    assert found.low <= found.growth <= found.high
    assert found.per_hour == pytest.approx(360, abs=30)


def test_noise_alone_does_not_grow() -> None:
    for seed in range(50):
        assert trend(noisy(0.0, 50.0, seed=seed), 60.0).verdict is Verdict.FLAT


def test_growth_within_the_bound_is_flat() -> None:
    assert trend(noisy(0.01, 1.0), 10.0).verdict is Verdict.FLAT


def test_what_shrinks_is_flat() -> None:
    assert trend(noisy(-0.1, 1.0), 10.0).verdict is Verdict.FLAT


def test_a_bound_within_the_noise_is_left_open() -> None:
    assert trend(noisy(0.01, 30.0, count=60), 0.7).verdict is Verdict.OPEN


def test_one_step_is_not_growth() -> None:
    """A pool that was made, a table that was enlarged: it happens once."""
    assert trend(samples([10.0] * 300 + [20.0] * 300), 5.0).verdict is not Verdict.GROWS


def test_a_few_wild_samples_change_nothing() -> None:
    values = [10.0] * 600
    for at in (3, 200, 201, 590):
        values[at] = 1e6
    assert trend(samples(values), 1.0).verdict is Verdict.FLAT


def test_too_few_samples_say_nothing() -> None:
    assert trend([], 1.0).verdict is Verdict.FEW
    assert trend(samples([1.0, 100.0]), 1.0).verdict is Verdict.FEW
    assert trend(samples([1.0] * PIECES_MIN), 1.0).verdict is Verdict.FLAT


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=PIECES_MIN, max_size=80),
       st.floats(-1e3, 1e3), st.floats(-1e6, 1e6))
def test_a_slope_on_top_is_found_on_top(values: list[float], slope: float, level: float) -> None:
    """Adding a straight line moves the growth and both ends of its interval by just that."""
    plain = trend(samples(values), 0.0)
    tilted = trend([(at, value + level + slope * at) for at, value in samples(values)], 0.0)
    added = slope * plain.observed_s
    for name in ("growth", "low", "high"):
        assert getattr(tilted, name) == pytest.approx(
            getattr(plain, name) + added, rel=1e-6, abs=1e-3)


# ---- Looking at processes ------------------------------------------------------------------------


GROWS = """
import os, sys, threading
print(flush=True)
sys.stdin.readline()
for _ in range(3):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
block = os.urandom(32 << 20)
print(flush=True)
sys.stdin.readline()
"""


def test_usage_sees_descriptors_threads_and_memory() -> None:
    """Of a process of its own: what else happens in this one is not known."""
    with subprocess.Popen([sys.executable, "-c", GROWS], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            before = usage(process.pid)
            print(file=process.stdin, flush=True)
            process.stdout.readline()
            after = usage(process.pid)
        finally:
            process.kill()
    assert after.descriptors == before.descriptors + 5
    assert after.threads == before.threads + 3
    assert after.memory_bytes - before.memory_bytes > 16 << 20
    assert after.resident_bytes >= after.memory_bytes // 2
    assert after.cpu_s >= before.cpu_s


def test_who_is_not_there_cannot_be_looked_at() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(ProcessLookupError, match="cannot be looked at"):
        usage(process.pid)


def test_a_folder_is_measured(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "b").write_bytes(b"4567")
    assert folder_bytes(tmp_path) == (2, 7)


# ---- The verdict over a run ----------------------------------------------------------------------


def a_run(series: list[Series], **changed: Any) -> Run:
    fields: dict[str, Any] = {
        "seconds": 100.0, "warm_up_s": 20.0, "series": series, "problems": [],
        "done": {"threads, steady": Done({"lock": 5}, {})}, "lives": {}, "victims": {}, **changed}
    return Run(**fields)


def line_of(run: Run, what: str) -> Trend:
    (found,) = [one.trend for one in soak_report.judge(run).lines if one.what == what]
    return found


FACTS = {"seed": 1}


def test_a_run_in_which_nothing_grows_is_flat() -> None:
    run = a_run([Series("threads, steady", "threads", samples([7.0] * 100))])
    judged = soak_report.judge(run)
    assert (judged.status, judged.problems, judged.doubts) == (0, [], [])
    assert "FLAT: nothing grows" in soak_report.text(run, judged, FACTS)
    assert json.loads(json.dumps(soak_report.as_json(run, judged, FACTS)))["status"] == 0


def test_a_run_in_which_something_grows_is_not() -> None:
    run = a_run([Series("threads, steady", "descriptors", samples([float(n) for n in range(100)]))])
    judged = soak_report.judge(run)
    assert judged.status == 1
    assert judged.problems == [
        "threads, steady: descriptors grows by 79 in 1m19s (bound 2)"]
    assert "NOT FLAT" in soak_report.text(run, judged, FACTS)


def test_the_warm_up_is_not_judged() -> None:
    values = [float(n) for n in range(20)] + [20.0] * 80
    run = a_run([Series("threads, steady", "descriptors", samples(values))])
    assert line_of(run, "descriptors").verdict is Verdict.FLAT


def test_a_doubt_is_said_and_is_no_success() -> None:
    run = a_run([Series("threads, steady", "memory", samples([0.0, 0.0, 0.0]))])
    judged = soak_report.judge(run)
    assert judged.status == 2
    assert "NOT DECIDED" in soak_report.text(run, judged, FACTS)


def test_who_did_nothing_is_a_problem() -> None:
    judged = soak_report.judge(a_run([], done={"tasks, steady": Done({}, {})}))
    assert (judged.status, judged.problems) == (1, ["tasks, steady did nothing"])


def test_a_primary_that_is_killed_now_and_then_is_judged_over_its_lives() -> None:
    within = Series("primary, failing", "memory", samples([0.0, 1e9] * 50))
    gauge = Series("primary, failing", "locks", samples([5.0] * 100))
    lives = [Life(10.0 * number, 9, 1 << 20, 20 + 3 * number, 3) for number in range(12)]
    judged = soak_report.judge(a_run([within, gauge], lives={"failing": lives}))
    assert [(one.who, one.what, one.trend.verdict) for one in judged.lines] == [
        ("primary, failing", "locks", Verdict.FLAT),
        ("primary, failing, at most in a life", "memory", Verdict.FLAT),
        ("primary, failing, at most in a life", "descriptors", Verdict.GROWS),
        ("primary, failing, at most in a life", "threads", Verdict.FLAT)]
    assert judged.status == 1


# ---- The real thing ------------------------------------------------------------------------------


def soak(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """A short run; its exit status and what it wrote."""
    done = subprocess.run(
        [sys.executable, "-m", "dlock.drill.soak", "--seconds", "8", "--rate", "60",
         "--least-turns", "250", "--output", str(folder), *words],
        capture_output=True, text=True, check=False)
    log = (folder / "log").read_text(encoding="utf-8")
    assert (folder / "soak.json").exists(), done.stderr + log
    assert (folder / "soak.txt").read_text(encoding="utf-8") in done.stdout
    return done.returncode, json.loads((folder / "soak.json").read_text(encoding="utf-8"))


def grown(found: dict[str, Any]) -> set[tuple[str, str]]:
    return {(one["who"], one["what"]) for one in found["lines"] if one["verdict"] == "grows"}


def test_a_run_is_carried_out_to_its_end(tmp_path: Path) -> None:
    """How steady it is in so short a time is not asserted; that all of it works is."""
    _, found = soak(tmp_path)
    beside = [one for one in found["problems"] if " grows by " not in one]
    assert beside == []
    assert set(found["done"]) == {
        f"{kind}, {name}" for kind in ("threads", "tasks", "mirror", "churn")
        for name in ("steady", "failing")}
    assert all(sum(done["counts"].values()) for done in found["done"].values())
    watched = {one["who"] for one in found["samples"]}
    assert watched == {
        *(f"{who}, {name}" for who in ("primary", *("threads", "tasks", "mirror", "churn"))
          for name in ("steady", "failing")),
        "state directory, steady", "state directory, failing"}
    assert found["finished"] is True


def children_of(pid: int) -> set[int]:
    return {int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def runs(pid: int) -> bool:
    """A process that has ended and is not waited for by anybody yet does not run."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_run_has_started_ends_with_it(tmp_path: Path, how: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dlock.drill.soak", "--seconds", "600", "--output", str(tmp_path)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        until(lambda: len(children_of(process.pid)) >= 5, LONG_S)
        started = children_of(process.pid)
        process.send_signal(how)
        assert process.wait(LONG_S) != 0
    finally:
        process.kill()
        process.wait()
    until(lambda: not any(runs(one) for one in started), LONG_S)


def test_planted_leaks_are_found(tmp_path: Path) -> None:
    """In a client; and sessions that nobody ends, which its primary has to carry."""
    plants = ("memory", "descriptors", "threads", "sessions")
    status, found = soak(tmp_path, *(word for one in plants for word in ("--plant", one)))
    assert status == 1
    assert grown(found) >= {
        ("threads, steady", "memory"), ("threads, steady", "descriptors"),
        ("threads, steady", "threads"), ("primary, steady", "clients"),
        ("primary, steady", "descriptors")}
