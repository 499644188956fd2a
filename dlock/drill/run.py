"""A drill from its begin to its end: the load is started, round after round a fault is injected,
and at the end everything must be there again.

Only what happened is written down here; `dlock.drill.judge` says what it means.
"""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import dlock
from dlock.address import parse
from dlock.drill import records
from dlock.drill.clients import Clients
from dlock.drill.fault import Fault
from dlock.drill.faults import BY_NAME, MENU
from dlock.drill.ground import Ground
from dlock.drill.load import SLOTS
from dlock.drill.network import Proxy
from dlock.drill.places import HOMES, PROXIES, PlaceError, addresses, free_ports
from dlock.drill.primary import DrillError, JoinedPrimaries, OwnPrimaries, Primaries, await_ready
from dlock.drill.records import (
    DrillBegun,
    DrillEnded,
    Problem,
    RoundBegun,
    RoundEnded,
    Skipped,
    Writer,
    now_ns,
)
from dlock.drill.scene import ACTORS, Scene, home_places
from dlock.errors import DlockError

SESSION_TTL_S: Final = 1.0
SERVED_S: Final = 60.0
END_S: Final = 60.0
JOIN_S: Final = 5.0
QUIET_S: Final = (0.05, 0.4)  # before a fault: the load runs, everything is well
CLIENTS: Final = 6
SESSIONS: Final = 1
STORM_CLIENTS: Final = 1000
PREFIX: Final = "dlock-drill/"
AGAIN_S: Final = 0.05


class CannotError(Exception):
    """What was asked for is not possible here; the text says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """What the operator wants. `faults`: by name, empty: all that are possible. `rounds` 0: one of
    each, or, with `seconds`, as many as fit."""

    seed: int
    faults: tuple[str, ...] = ()
    rounds: int = 0
    seconds: float = 0.0
    clients: int = CLIENTS
    sessions: int = SESSIONS
    storm_clients: int = STORM_CLIENTS
    ground: Ground = field(default_factory=Ground)


def choose(plan: Plan) -> tuple[list[Fault], list[tuple[Fault, str]]]:
    """The faults that will be injected, and those that cannot be, with the reason. CannotError: one
    that was asked for by name is impossible, or unknown."""
    unknown = [name for name in plan.faults if name not in BY_NAME]
    if unknown:
        raise CannotError(f"there is no fault {unknown[0]!r}; there are "
                          f"{', '.join(BY_NAME)} (dlock drill --list explains them)")
    wanted = [fault for fault in MENU if not plan.faults or fault.name in plan.faults]
    possible, skipped = [], []
    for fault in wanted:
        why = fault.missing(plan.ground)
        if why and plan.faults:
            raise CannotError(f"{fault.name} cannot be done here: {why}")
        if why:
            skipped.append((fault, why))
        else:
            possible.append(fault)
    if not possible:
        raise CannotError("none of the faults can be done here: "
                          + "; ".join(f"{fault.name}: {why}" for fault, why in skipped))
    return possible, skipped


def drill(plan: Plan, folder: Path, tell: Callable[[str], object]) -> None:
    """Carries it out; every process writes into the folder. `tell`: lines for people. CannotError:
    before anything began. What goes wrong later is in the records."""
    faults, skipped = choose(plan)
    writer = Writer(folder / f"drill{records.SUFFIX}")
    joined = plan.ground.joined
    ttl_s = _session_ttl_of(joined) if joined else SESSION_TTL_S
    writer.write(DrillBegun(
        now_ns(), plan.seed, repeat(plan), dlock.__version__,
        [fault.name for fault in faults], plan.rounds, plan.seconds, plan.clients, plan.sessions,
        ttl_s, joined))
    for fault, why in skipped:
        writer.write(Skipped(now_ns(), fault.name, why))
        tell(f"skipped: {fault.name}: {why}")
    interrupted, why = True, "ended by a signal"
    try:
        with _scene(plan, folder, writer, faults, ttl_s) as scene:
            scene.begin_clients(plan.clients)
            for fault in _rounds(plan, faults):
                _round(scene, fault, tell)
            _finish(scene)
        interrupted, why = False, ""
    except (DrillError, PlaceError, OSError, DlockError) as problem:
        why = str(problem)
    finally:
        writer.write(DrillEnded(now_ns(), interrupted, why))
        writer.close()


def repeat(plan: Plan) -> str:
    """The command that repeats the drill."""
    ground, words = plan.ground, ["dlock", "drill", "--seed", str(plan.seed)]
    flags = {
        "clients": (plan.clients, CLIENTS), "sessions": (plan.sessions, SESSIONS),
        "storm-clients": (plan.storm_clients, STORM_CLIENTS), "address": (ground.joined, ""),
        "data-port": (ground.data_port, 0), "kill-command": (ground.kill, ""),
        "start-command": (ground.start, ""), "stop-command": (ground.stop, ""),
        "continue-command": (ground.go_on, "")}
    if plan.faults:
        words += ["--faults", ",".join(plan.faults)]
    if plan.rounds:
        words += ["--rounds", str(plan.rounds)]
    if plan.seconds:
        words += ["--seconds", f"{plan.seconds:g}"]
    for name, (value, default) in flags.items():
        if value != default:
            words += [f"--{name}", str(value)]
    if ground.set_clock:
        words.append("--set-clock")
    return shlex.join(words)


# ---- Before -------------------------------------------------------------------------------------


def _session_ttl_of(address: str) -> float:
    """Of a primary that runs: what a new session has left."""
    try:
        with dlock.connect(address, timeout=JOIN_S, name="dlock-drill") as client:
            return max(round(client.session_left / 0.999, 1), 1.0)
    except (DlockError, ValueError) as problem:
        raise CannotError(f"no primary can be joined at {address}: {problem}") from None


@contextlib.contextmanager
def _scene(plan: Plan, folder: Path, writer: Writer, faults: Sequence[Fault],
           ttl_s: float) -> Iterator[Scene]:
    """Primaries that serve, proxies if a fault needs them, and nobody else yet."""
    prefix = f"{PREFIX}{os.urandom(4).hex()}/"
    primaries: Primaries
    if plan.ground.joined:
        primaries, ports, direct, through = _joined(plan.ground, writer)
    else:
        ports = free_ports()
        primaries = OwnPrimaries(folder, writer, ports, session_ttl_s=ttl_s)
        direct, through = home_places(ports[0])
    clients = Clients(folder, writer, seed=str(plan.seed), prefix=prefix, port=ports[0],
                      sessions=plan.sessions, actors=ACTORS)
    scene = Scene(folder, writer, primaries, clients, ttl_s, plan.seed, prefix,
                  plan.storm_clients, direct, None, kills=not plan.ground.kills())
    try:
        if isinstance(primaries, OwnPrimaries):
            primaries.start()
        if any(fault.proxies for fault in faults):
            scene.through = through
            targets = HOMES if not plan.ground.joined else (direct[1][0],)
            for host, target in zip(PROXIES, targets, strict=False):
                scene.proxies.append(Proxy(ports, host, target))
        yield scene
    finally:
        scene.close()


_Place = tuple[str, list[str]]


def _joined(ground: Ground, writer: Writer
            ) -> tuple[JoinedPrimaries, tuple[int, int], _Place, _Place]:
    """The operator's primary. The mirror, and proxies, know it by its first place."""
    endpoints, problems = parse(ground.joined).endpoints()
    if not endpoints:
        raise CannotError("; ".join(problems))
    first = endpoints[0]
    primaries = JoinedPrimaries(ground.joined, writer, kill=ground.kill, start=ground.start,
                                stop=ground.stop, go_on=ground.go_on)
    ports = first.port, ground.data_port
    return (primaries, ports, (ground.joined, [first.host]),
            (addresses(PROXIES[:1], first.port), [PROXIES[0]]))


def _rounds(plan: Plan, faults: Sequence[Fault]) -> Iterator[Fault]:
    """In an order that the seed decides, each as often as the others."""
    chance = random.Random(f"{plan.seed} order")
    rounds = plan.rounds or (0 if plan.seconds else len(faults))
    end = time.monotonic() + plan.seconds if plan.seconds else None
    number = 0
    while (not rounds or number < rounds) and (end is None or time.monotonic() < end):
        if number % len(faults) == 0:
            deck = chance.sample(list(faults), len(faults))
        yield deck[number % len(faults)]
        number += 1


# ---- A round ------------------------------------------------------------------------------------


def _round(scene: Scene, fault: Fault, tell: Callable[[str], object]) -> None:
    scene.round += 1
    scene.fault = fault.name
    chance = random.Random(f"{scene.seed} {scene.round}")
    time.sleep(chance.uniform(*QUIET_S))
    begun_s = time.monotonic()
    scene.writer.write(RoundBegun(now_ns(), scene.round, fault.name))
    fault.inject(scene, chance)
    problem = _well_again(scene)
    waited_s = (now_ns() - scene.healed_ns) / 1e9
    scene.writer.write(RoundEnded(now_ns(), scene.round, fault.name, not problem, waited_s))
    tell(f"round {scene.round}: {fault.name}: {time.monotonic() - begun_s:.1f} s"
         + (f": {problem}" if problem else ""))
    if problem:
        raise DrillError(f"round {scene.round}, {fault.name}: {problem}")


def _well_again(scene: Scene) -> str:
    """Waits until the primary is ready and everybody is served; what is not, "" if all is well."""
    if await_ready(scene.primaries, scene.writer, SERVED_S) is None:
        return f"the primary was not ready within {SERVED_S:g} s"
    for client in scene.newcomers:
        scene.clients.working(client)
    scene.newcomers.clear()
    left = scene.clients.await_served(scene.healed_ns, SERVED_S)
    if left:
        return (f"{', '.join(one.name for one in left)} not served within {SERVED_S:g} s after "
                "the fault was over")
    if isinstance(scene.primaries, OwnPrimaries):
        scene.primaries.check()
    return ""


# ---- The end ------------------------------------------------------------------------------------


def _finish(scene: Scene) -> None:
    """Everybody leaves; then every lock can be had, and none is held."""
    scene.clients.end()
    for problem in (*_not_to_be_had(scene), *_left_behind(scene)):
        scene.writer.write(Problem(now_ns(), "drill", problem))


def _not_to_be_had(scene: Scene) -> Iterator[str]:
    prefix = scene.prefix
    with dlock.connect(scene.direct[0], timeout=END_S, name="dlock-drill") as client:
        for lock in (client.lock(f"{prefix}atomic"), client.rwlock(f"{prefix}rw").write(),
                     client.fair_lock(f"{prefix}fair"),
                     *(client.semaphore(f"{prefix}semaphore", SLOTS) for _ in range(SLOTS))):
            if not lock.acquire(timeout=END_S):
                yield (f"all clients have ended, and {lock.name!r} cannot be had within "
                       f"{END_S:g} s: somebody or nobody holds it")


def _left_behind(scene: Scene) -> Iterator[str]:
    """Names that are still held or waited for; sessions of killed clients may take a while."""
    deadline = time.monotonic() + END_S

    def busy() -> list[str]:
        return scene.primaries.asked(
            lambda admin: [one.name for one in admin.locks(scene.prefix, busy_only=True)])

    while (names := busy()) and time.monotonic() < deadline:
        time.sleep(AGAIN_S)
    for name in names:
        yield f"all clients have ended, and {name!r} is still held or waited for"
