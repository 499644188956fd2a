"""Looks for what is planted with whole worlds of the simulator.

The budget is a number of worlds, never a time, so that a slow machine finds what a fast one does.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from sim.broken.faults import Fault
from sim.broken.tree import FaultError, Tree

GIVEN_UP_S: Final = 3600  # only a run that hangs takes so long
PROCESS_DIED: Final = "a process of it died: "


@dataclass(frozen=True)
class Outcome:
    """Of one search. `law`: what was said to be broken, "": nothing was; `seed`: of the world in
    which it was; `worlds`, `steps`, `seconds`: until then, over all that were played."""

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
    """Plants the fault, builds, and looks for it, with the seeds of its budget from this one on."""
    with tree.with_planted(fault.file, fault.old, fault.new):
        tree.build()
        began = time.perf_counter()
        outcome = _hunt(fault, tree, first_seed)
        return replace(outcome, seconds=time.perf_counter() - began)


def look_at_none(tree: Tree, seeds: Iterable[int]) -> Outcome:
    """Worlds without a fault, of which the first one is told that breaks a law all the same: then
    what is found with a fault means nothing."""
    tree.build()
    nothing = Fault("nothing", "nothing", "", "", "", seeds=1)
    outcome = Outcome(nothing, "")
    for seed in seeds:
        outcome = _hunt(nothing, tree, seed)
        if outcome.found:
            break
    return outcome


def _hunt(fault: Fault, tree: Tree, first_seed: int) -> Outcome:
    done = _run(tree.python(
        "sim.broken.hunt", str(first_seed), str(fault.seeds), *fault.befalls), tree)
    if done.returncode < 0:  # an assertion of the core, which is a law too
        return Outcome(fault, PROCESS_DIED + _last_line(done.stderr), first_seed)
    if done.returncode != 0:
        raise FaultError(f"the simulator does not run with {fault.name}:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Outcome(fault, found["law"], found["seed"], found["worlds"], found["steps"])


def _run(command: list[str], tree: Tree) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=tree.folder, env=tree.environment, capture_output=True,
                          text=True, timeout=GIVEN_UP_S)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "without a word"
