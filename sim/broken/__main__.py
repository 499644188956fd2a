"""`python -m sim.broken [NAME ...]`: plants each fault by itself, and says in which world, or in
which history, it is found."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sim.broken.faults import FAULTS, Fault
from sim.broken.finders import Outcome, look_at_none, look_for, what_found
from sim.broken.tree import ROOT, FaultError, Tree

HEAD = (f"{'fault':<27}{'seed':>5} {'worlds':>6} {'steps':>9} {'seconds':>7}"
        "  what was said")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sim.broken", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these (default: all)")
    parser.add_argument("--list", action="store_true", help="what each of them breaks, and no more")
    parser.add_argument("--seeds", type=int, metavar="N",
                        help="look at so many worlds, or histories, at most "
                        "(default: each fault's own budget)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED",
                        help="the first of the worlds (default: %(default)s)")
    parser.add_argument("--none", type=int, metavar="N",
                        help="plant nothing, and play N worlds: nothing may be found")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "broken",
                        help="where the copy of the tree is (default: %(default)s)")
    return parser.parse_args()


def line_of(outcome: Outcome) -> str:
    """One row of the table."""
    fault = outcome.fault
    if not outcome.found:
        played = "histories" if fault.histories else f"worlds, {outcome.steps:,} steps"
        return (f"{fault.name:<27}NOT FOUND in {fault.seeds} {played}, "
                f"{outcome.seconds:.1f} s")
    steps = "histories" if fault.histories else f"{outcome.steps:,}"
    return (f"{fault.name:<27}{outcome.seed:>5} {outcome.worlds:>6} "
            f"{steps:>9} {outcome.seconds:>7.1f}  {outcome.law[:90]}")


def _chosen(names: list[str]) -> list[Fault]:
    known = {fault.name: fault for fault in FAULTS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise FaultError(f"no such fault: {', '.join(unknown)}; --list names them all")
    return [known[name] for name in names] if names else list(FAULTS)


def main() -> int:
    """0: each was found, in worlds that are good without it; 1: not so; 2: one could not be
    planted."""
    arguments = _arguments()
    try:
        chosen = _chosen(arguments.names)
        if arguments.list:
            for fault in chosen:
                print(f"{fault.name:<27}{fault.file}\n    {fault.breaks}")
            return 0
        tree = Tree(arguments.folder)
        tree.refresh()
        if arguments.none is not None:
            outcome = look_at_none(
                tree, range(arguments.first, arguments.first + arguments.none))
            print(f"seed {outcome.seed}: {outcome.law}" if outcome.found else
                  f"nothing was found in {arguments.none} worlds")
            return int(outcome.found)
        print(HEAD, flush=True)
        outcomes = []
        for fault in chosen:
            budget = fault.with_seeds(arguments.seeds) if arguments.seeds else fault
            outcomes.append(look_for(budget, tree, arguments.first))
            print(line_of(outcomes[-1]), flush=True)
        sound = look_at_none(tree, *what_found(outcomes))
        missed = sum(not outcome.found for outcome in outcomes)
    except FaultError as problem:
        print(problem, file=sys.stderr)
        return 2
    print(f"{len(chosen) - missed} of {len(chosen)} found; without a fault "
          + (f"seed {sound.seed} breaks a law too: {sound.law}" if sound.found else
             "the same worlds and histories break no law"))
    return 1 if missed or sound.found else 0


if __name__ == "__main__":
    sys.exit(main())
