"""Plays worlds until a law is broken: `python -m sim.broken.hunt FIRST COUNT [FAULT ...]`, run in
the copy of the tree that has something planted.

Only worlds that these faults of sim/faults.py may befall are played, and counted: where nobody
takes over, nobody can answer who was replaced. It prints one line of JSON.
"""

from __future__ import annotations

import itertools
import json
import sys
from random import Random

from sim import faults
from sim.run import play
from sim.settings import draw


def hunt(first: int, count: int, needed: frozenset[str]) -> dict[str, object]:
    """What was found: the seed, the law; and how many worlds and steps it took."""
    steps = worlds = 0
    for seed in itertools.count(first):
        if worlds == count:
            break
        if not needed <= frozenset(draw(Random(f"{seed}/settings"), faults.MENU).faults):
            continue
        outcome = play(seed, 0)
        worlds += 1
        steps += outcome.steps
        if outcome.violation is not None:
            return {"law": outcome.violation, "seed": seed, "worlds": worlds, "steps": steps}
    return {"law": "", "seed": 0, "worlds": worlds, "steps": steps}


if __name__ == "__main__":
    print(json.dumps(hunt(int(sys.argv[1]), int(sys.argv[2]), frozenset(sys.argv[3:]))))
