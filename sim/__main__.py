"""`python -m sim`: plays worlds from their seeds. docs/simulator.md is its guide."""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import sys
import time
from collections import Counter

COMMAND = "python -m sim"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--seeds", metavar="A:B",
                        help="the seeds from A up to B, without B (default: 0:100; with --minutes "
                             "0: and no end)")
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--minutes", type=float,
                        help="begin no further world after this time")
    parser.add_argument("-j", "--jobs", type=int, default=1, metavar="N",
                        help="so many worlds at a time, each in a process (default: 1)")
    parser.add_argument("--keep-going", action="store_true",
                        help="go on after a seed in which a law was broken")
    parser.add_argument("--lines", type=int, default=60, metavar="N",
                        help="of the transcript that are shown then (default: %(default)s)")
    parser.add_argument("--tell", action="store_true",
                        help="with --seed: print the whole transcript while it is played")
    parser.add_argument("--steps", action="store_true", help="with --tell: every step too")
    parser.add_argument("--profile", action="store_true",
                        help="with --seed: where the time goes")
    return parser.parse_args()


def _seeds(text: str) -> range:
    """A: is without an end."""
    first, colon, last = text.partition(":")
    begin = int(first or 0)
    return range(begin, int(last) if last else 1 << 62 if colon else begin + 1)


def main() -> int:
    """0: no law was broken; 1: one was; 2: it was called wrongly."""
    arguments = _arguments()
    if arguments.seed is not None and (arguments.tell or arguments.profile):
        return _tell(arguments)
    try:
        seeds = _seeds(arguments.seeds or ("0:100" if arguments.minutes is None else "0:"))
    except ValueError:
        print(f"{arguments.seeds!r} is no range of seeds: write A:B", file=sys.stderr)
        return 2
    if arguments.seed is not None:
        seeds = range(arguments.seed, arguments.seed + 1)
    return _play(arguments, seeds)


def _play(arguments: argparse.Namespace, seeds: range) -> int:
    from sim.run import play_all

    began = time.perf_counter()
    end = began + arguments.minutes * 60 if arguments.minutes is not None else float("inf")
    broken: list[int] = []
    worlds = steps = 0
    virtual_s = 0.0
    seen: Counter[str] = Counter()

    def over() -> bool:
        return time.perf_counter() >= end or (bool(broken) and not arguments.keep_going)

    for outcome in play_all(seeds, arguments.jobs, over):
        worlds += 1
        steps += outcome.steps
        virtual_s += outcome.virtual_s
        seen.update(outcome.seen)
        if outcome.violation is not None:
            broken.append(outcome.seed)
            print(f"seed {outcome.seed}: {outcome.violation}", flush=True)
            print("\n".join(outcome.tail[len(outcome.tail) - arguments.lines:]))
            print(f"replay it: {COMMAND} --seed {outcome.seed} --tell", flush=True)
    seconds = time.perf_counter() - began
    for what, count in sorted(seen.items()):
        print(f"{count:12,} {what}")
    print(f"{worlds} worlds, {steps:,} steps, {virtual_s / 3600:.1f} h of virtual time in "
          f"{seconds:.1f} s: {steps / seconds * 60:,.0f} steps a minute; "
          + (f"laws were broken in the seeds {broken}" if broken else "no law was broken"))
    return 1 if broken else 0


def _tell(arguments: argparse.Namespace) -> int:
    from sim.run import outcome_of
    from sim.world import World

    loud = print if arguments.tell else None
    world = World(arguments.seed, loud=loud, tell_steps=arguments.steps)
    began = time.perf_counter()
    profile = cProfile.Profile()
    if arguments.profile:
        profile.enable()
    violation = world.run()
    profile.disable()
    outcome = outcome_of(world, violation, time.perf_counter() - began, arguments.lines)
    if arguments.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
    print(f"seed {outcome.seed}: {outcome.steps:,} steps, {outcome.virtual_s:.1f} s of virtual "
          f"time in {outcome.seconds:.1f} s; transcript {outcome.digest}; "
          f"{outcome.violation or 'no law was broken'}")
    return 1 if violation is not None else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of names are in one order in every run only so.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "sim", *sys.argv[1:]])
    sys.exit(main())
