"""Plays worlds, one after the other or on several cores, and says what came of them."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from sim.transcript import KEPT_LINES
from sim.world import World


@dataclass(frozen=True)
class Outcome:
    """Of one world. `violation`: which law was broken, None: none was; `tail`: the last lines of
    its transcript, if one was; `digest`: of the whole transcript; `seen`: what was met, and how
    often."""

    seed: int
    steps: int
    seconds: float
    virtual_s: float
    digest: str
    violation: str | None = None
    tail: tuple[str, ...] = ()
    seen: Counter[str] = field(default_factory=Counter)


def play(seed: int, lines: int = KEPT_LINES) -> Outcome:
    """One world, quietly."""
    began = time.perf_counter()
    world = World(seed)
    violation = world.run()
    return outcome_of(world, violation, time.perf_counter() - began, lines)


def outcome_of(world: World, violation: BaseException | None, seconds: float,
               lines: int) -> Outcome:
    """What came of a world that has been played."""
    return Outcome(
        world.seed, world.kernel.steps, seconds, world.now_ns / 1e9, world.transcript.digest,
        None if violation is None else str(violation),
        () if violation is None else tuple(world.transcript.tail(lines)), world.seen)


def play_all(seeds: Iterable[int], jobs: int, until: Callable[[], bool]) -> Iterator[Outcome]:
    """These worlds, `jobs` at a time, in the order in which they end; no further ones are begun
    when `until` says so."""
    if jobs == 1:
        for seed in seeds:
            if until():
                return
            yield play(seed)
        return
    context = multiprocessing.get_context("spawn")
    waiting = iter(seeds)
    with concurrent.futures.ProcessPoolExecutor(jobs, context) as pool:
        playing: dict[concurrent.futures.Future[Outcome], int] = {}
        while True:
            while len(playing) < 2 * jobs and not until():
                following = next(waiting, None)
                if following is None:
                    break
                playing[pool.submit(play, following)] = following
            if not playing:
                return
            done, _ = concurrent.futures.wait(
                playing, return_when=concurrent.futures.FIRST_COMPLETED)
            for one in sorted(done, key=playing.__getitem__):
                seed = playing.pop(one)
                try:
                    yield one.result()
                except concurrent.futures.process.BrokenProcessPool:
                    suspects = sorted([seed, *playing.values()])
                    raise SystemExit(f"a process of the simulator died in one of the seeds "
                                     f"{suspects}: play each by itself") from None
