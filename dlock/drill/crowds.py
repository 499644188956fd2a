"""A reconnect storm: very many clients that come back to a new primary at once."""

from __future__ import annotations

import contextlib
import time
from typing import Final

from dlock.drill.clients import Client, Clients
from dlock.drill.places import HOMES, addresses, free_ports
from dlock.drill.primary import DrillError, OwnPrimaries, await_ready
from dlock.drill.records import Storm, now_ns
from dlock.drill.scene import Scene
from dlock.drill.worker import CROWD

PROCESSES: Final = 4
SESSION_TTL_S: Final = 10
PATIENCE_S: Final = 120.0
ROOM: Final = 100  # for clients beyond those


def storm(scene: Scene) -> None:
    """With a primary and clients of its own, which end with it."""
    label = f"storm{scene.round}-"
    ports = free_ports(HOMES[:1])
    with contextlib.ExitStack() as stack:
        primaries = OwnPrimaries(
            scene.folder, scene.writer, ports, session_ttl_s=SESSION_TTL_S, hosts=HOMES[:1],
            flags=("--max-clients", str(scene.storm_clients + ROOM)), label=f"{label}p")
        stack.callback(primaries.close)
        primaries.start()
        clients = Clients(
            scene.folder, scene.writer, seed=f"{scene.seed} {label}",
            prefix=f"{scene.prefix}{label}/", port=ports[0], sessions=1, actors=1,
            label=f"{label}c")
        stack.callback(clients.close)
        crowd = _gather(clients, ports[0], scene.storm_clients)
        _storm(scene, primaries, crowd)
        clients.end()


def _gather(clients: Clients, port: int, count: int) -> list[Client]:
    """So many clients, in a few processes, which hold a lock each."""
    shares = [count // PROCESSES + (number < count % PROCESSES) for number in range(PROCESSES)]
    crowd = [
        clients.begin(CROWD, addresses(HOMES[:1], port), list(HOMES[:1]), sessions=share, actors=1)
        for share in shares if share]
    for one in crowd:
        clients.working(one)
    for one in crowd:
        one.tell("take")
    for one in crowd:
        one.hear("asked", PATIENCE_S)
        if not one.all_held(PATIENCE_S):
            raise DrillError(f"{one.name} was granted only {one.held} of {one.orders.slots} locks")
    return crowd


def _storm(scene: Scene, primaries: OwnPrimaries, crowd: list[Client]) -> None:
    before = sum(one.held for one in crowd)
    killed_s = time.monotonic()
    scene.begun("primary", f"kill -9 of {primaries.newest}, with {scene.storm_clients} clients")
    primaries.kill()
    primaries.start()
    scene.ended(f"{primaries.newest} was started")
    if await_ready(primaries, scene.writer, PATIENCE_S) is None:
        scene.violated(f"{primaries.newest} was not ready within {PATIENCE_S:g} s")
    for one in crowd:
        one.tell("serve")
    for one in crowd:
        one.hear("served", PATIENCE_S)
    back_s = time.monotonic() - killed_s
    scene.writer.write(Storm(
        now_ns(), scene.round, scene.storm_clients, before, sum(one.held for one in crowd),
        back_s))
