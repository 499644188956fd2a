"""Whole worlds: that no law is broken in a bounded number of them, that a seed is always the same
world, and that one in which a law is broken says so, tells what led to it, and how to see it again.

Each runs in a process of its own, since a world takes the clock of the process that it is in.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(1600)

ROOT = Path(__file__).resolve().parent.parent
SEEDS = "0:40"
PATIENCE_S = 1500  # of a machine on which everything else runs too

# What the worlds of SEEDS must have met, at least so often: a number that falls to nothing when
# people or faults do not do any more what they are there for.
MET = {
    "lock granted": 500,
    "rwlock granted": 200,
    "fair lock granted": 100,
    "semaphore granted": 100,
    "several at once": 20,
    "entered again": 5,
    "extended": 100,
    "writes": 500,
    "counted": 100,
    "ObjectLost": 10,
    "OutcomeUnknown": 1,
    "Deadlock": 1,
    "not granted in time": 100,
    "ConnectionLost": 20,
    "cancelled": 100,
    "cancels that crossed a grant": 3,
    "holds broken": 5,
    "on_suspended": 20,
    "on_lost": 20,
    "told by release": 20,
    "suspended, then confirmed": 5,
    "left with people inside": 5,
    "primaries replaced": 40,
    "recoveries": 20,
    "recoveries interrupted": 5,
    "evicted by an operator": 1,
    "fault: kill-primary": 10,
    "fault: kill-at-disk": 5,
    "fault: kill-client": 10,
    "fault: take-over": 5,
    "fault: pause-primary": 10,
    "fault: pause-client": 10,
    "fault: partition": 5,
    "fault: cut": 10,
    "served in the end": 500,
}

# One law that no world keeps, in the place of one that all do.
BROKEN_LAW = """
import sys
from sim import laws_engine, __main__
from sim.scene import LawBroken

def look(self):
    if self.ready and self.entries:
        raise LawBroken("nobody may hold anything")
    return []

laws_engine.EngineView.look = look
sys.argv = ["sim", "--seeds", "3:9", "--lines", "30"]
sys.exit(__main__.main())
"""


def sim(*arguments: str, hash_seed: str | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m sim` with these arguments, or `python` with those that begin with -c."""
    start = [] if arguments[0] == "-c" else ["-m", "sim"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONHASHSEED", None)
    if hash_seed is not None:
        environment["PYTHONHASHSEED"] = hash_seed
    return subprocess.run([sys.executable, *start, *arguments], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.fixture(scope="module")
def played() -> subprocess.CompletedProcess[str]:
    return sim("--seeds", SEEDS, "-j", "2", "--keep-going")


def test_no_law_is_broken(played: subprocess.CompletedProcess[str]) -> None:
    assert played.returncode == 0, played.stdout + played.stderr
    assert "no law was broken" in played.stdout


def test_the_worlds_have_met_what_they_are_there_for(
    played: subprocess.CompletedProcess[str]
) -> None:
    lines = re.findall(r"^ *([\d,]+) (\D.*)$", played.stdout, re.M)
    met = {what: int(count.replace(",", "")) for count, what in lines}
    assert {what: met.get(what, 0) for what, least in MET.items()
            if met.get(what, 0) < least} == {}


@pytest.mark.parametrize("seed", ["7", "42"])
def test_a_seed_is_the_same_world_in_every_process(seed: str) -> None:
    # The command starts itself anew with the order of sets that is every run's.
    first, again = (sim("--seed", seed, "--tell", "--steps", hash_seed=one) for one in ("1", None))
    lines, others = (one.stdout.splitlines() for one in (first, again))
    assert len(lines) > 100
    assert lines[:-1] == others[:-1]
    digest = re.compile(r"transcript ([0-9a-f]{16})")
    assert digest.findall(lines[-1]) == digest.findall(others[-1]) != []


def test_a_seed_is_the_same_world_after_other_worlds() -> None:
    played = sim("-c", "from sim.run import play\n"
                       "for seed in (7, 12, 42, 7, 42): print(seed, play(seed).digest)")
    assert played.returncode == 0, played.stderr
    digests = played.stdout.splitlines()
    assert digests[0] == digests[3]
    assert digests[2] == digests[4]
    assert digests[0] != digests[2].replace("42", "7")


def test_a_broken_law_ends_its_world_and_is_told() -> None:
    played = sim("-c", BROKEN_LAW, hash_seed="0")
    assert played.returncode == 1, played.stderr
    lines = played.stdout.splitlines()
    head = re.match(r"seed (\d+): nobody may hold anything", lines[0])
    assert head, lines[0]
    assert any("LAW" in line and "nobody may hold anything" in line for line in lines)
    assert any(re.match(r" +\d+\.\d{6}  \w+ +\S", line) for line in lines)
    assert f"replay it: python -m sim --seed {head[1]} --tell" in lines
    assert lines[-1].endswith(f"laws were broken in the seeds [{head[1]}]")


def test_a_range_that_is_none_is_refused() -> None:
    played = sim("--seeds", "many")
    assert played.returncode == 2
    assert "write A:B" in played.stderr
