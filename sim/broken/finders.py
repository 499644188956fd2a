"""Looks for what is planted: with whole worlds of the simulator, or with the random histories of a
test.

The budget is a number of worlds or of histories, never a time, so that a slow machine finds what a
fast one does.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from sim.broken.faults import Fault
from sim.broken.tree import FaultError, Tree

GIVEN_UP_S: Final = 3600  # only a run that hangs takes so long
PROCESS_DIED: Final = "a process of it died: "
PASSED, SOME_FAILED = 0, 1  # how pytest ends
# Of its summary: which case it was, and what was said. Anything else than an assertion is no law.
FAILED: Final = re.compile(
    r"^FAILED \S+\[(?P<case>\d+)\] - (?:AssertionError: )?"
    r"(?:seed (?P<seed>\d+): [a-z_ ]*: )?(?P<law>.*)$", re.MULTILINE)
NO_LAW: Final = re.compile(r"^(?!AssertionError)\w*(Error|Exception)\b")


@dataclass(frozen=True)
class Outcome:
    """Of one search. `law`: what was said to be broken, "": nothing was; `seed`: of the world, or
    the history, in which it was; `worlds`, `steps` (of worlds), `seconds`: until then, over all
    that were played."""

    fault: Fault
    law: str
    seed: int = 0
    worlds: int = 0
    steps: int = 0
    seconds: float = 0.0

    @property
    def found(self) -> bool:
        """Was it?"""
        return bool(self.law)


def look_for(fault: Fault, tree: Tree, first_seed: int = 0) -> Outcome:
    """Plants the fault, builds, and looks for it, with the seeds of its budget from this one on;
    histories begin at the first seed of their test."""
    with tree.with_planted(fault.file, fault.old, fault.new):
        tree.build()
        began = time.perf_counter()
        outcome = _play(fault, tree) if fault.histories else _hunt(fault, tree, first_seed)
        return replace(outcome, seconds=time.perf_counter() - began)


def look_at_none(
    tree: Tree, seeds: Iterable[int], histories: Mapping[str, int] | None = None
) -> Outcome:
    """Worlds, and so many histories of these tests, without a fault. The first that is told to
    break a law all the same: then what is found with a fault means nothing."""
    tree.build()
    nothing = Fault("nothing", "nothing", "", "", "", seeds=1)
    outcome = Outcome(nothing, "")
    for seed in seeds:
        outcome = _hunt(nothing, tree, seed)
        if outcome.found:
            return outcome
    for test, count in (histories or {}).items():
        outcome = _play(replace(nothing, histories=test, seeds=count), tree)
        if outcome.found:
            return outcome
    return outcome


def what_found(outcomes: Iterable[Outcome]) -> tuple[list[int], dict[str, int]]:
    """The worlds in which something was found, and how many histories of which test it took: what
    `look_at_none` is to be shown."""
    seeds: set[int] = set()
    histories: dict[str, int] = {}
    for outcome in outcomes:
        fault = outcome.fault
        if outcome.found and fault.histories:
            histories[fault.histories] = max(outcome.worlds, histories.get(fault.histories, 0))
        elif outcome.found:
            seeds.add(outcome.seed)
    return sorted(seeds), histories


def _hunt(fault: Fault, tree: Tree, first_seed: int) -> Outcome:
    done = _run(tree.python(
        "sim.broken.hunt", str(first_seed), str(fault.seeds), *fault.befalls), tree)
    if done.returncode < 0:  # an assertion of the core, which is a law too
        return Outcome(fault, PROCESS_DIED + _last_line(done.stderr), first_seed)
    if done.returncode != 0:
        raise FaultError(f"the simulator does not run with {fault.name}:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Outcome(fault, found["law"], found["seed"], found["worlds"], found["steps"])


def _play(fault: Fault, tree: Tree) -> Outcome:
    """The test of the fault, in the copy of the tree, until a history of it goes wrong."""
    count = str(fault.seeds)
    done = _run(
        tree.python("pytest", fault.histories, "-x", "-q", "--tb=no", "--color=no",
                    "-p", "no:cacheprovider"),
        tree, DLOCK_ORACLE_SEEDS=count, DLOCK_HISTORIES=count, DLOCK_SEED="1", COLUMNS="1000",
        PYTEST_ADDOPTS="")
    if done.returncode < 0:
        return Outcome(fault, PROCESS_DIED + _last_line(done.stderr))
    if done.returncode == PASSED:
        return Outcome(fault, "", worlds=fault.seeds)
    failed = FAILED.search(done.stdout)
    if done.returncode != SOME_FAILED or failed is None or NO_LAW.match(failed["law"]):
        raise FaultError(f"{fault.histories} does not run with {fault.name}:\n"
                         f"{(done.stdout + done.stderr)[-3000:]}")
    seed = int(failed["seed"] or failed["case"])
    first = 1 if failed["seed"] else 0
    return Outcome(fault, failed["law"], seed, worlds=seed - first + 1)


def _run(
    command: list[str], tree: Tree, **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=tree.folder, env={**tree.environment, **more},
                          capture_output=True, text=True, timeout=GIVEN_UP_S)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "without a word"
