"""Faults of clients: stopped past their leases, killed for good, and very many at once."""

from __future__ import annotations

import random
import time
from typing import Final

from dlock.drill import crowds
from dlock.drill.fault import Fault
from dlock.drill.ground import Ground
from dlock.drill.scene import Scene

PAST: Final = (1.2, 2.0)  # how long a client is stopped, in sessions
AWAY_WITH_IT: Final = 0.3  # how often the primary dies with the client


class StopClient(Fault):
    """See `summary`."""

    name = "stop-client"
    summary = "SIGSTOP of a client process for longer than its leases and session last"
    done = """A client process is stopped, as a hung node stops it, for 1.2 to 2 times as long as a
        session lasts, and then continued."""
    must = """Its locks pass to others when its session or leases are over. When it goes on it sees
        by its own clock that it holds nothing, before it does anything; a write that it had begun
        is refused by the storage if somebody else has written since."""

    def inject(self, scene: Scene, chance: random.Random) -> None:
        """See `summary`."""
        client = chance.choice(scene.clients.running)
        seconds = scene.session_ttl_s * chance.uniform(*PAST)
        scene.begun("client", f"SIGSTOP of {client.name}")
        scene.clients.stop(client)
        time.sleep(seconds)
        scene.clients.go_on(client)
        scene.ended(f"{client.name} goes on after {seconds:.1f} s")


class ClientNeverBack(Fault):
    """See `summary`."""

    name = "client-never-back"
    summary = "kill -9 of a client process that never comes back"
    done = """A client process is killed while it holds locks; now and then the primary is killed
        with it, so that the next one waits for a client that does not exist any more. Another
        client process begins afterwards."""
    must = """What it held is free when its session and its leases are over, not before; a new
        primary waits for it that long and no longer, and then serves everybody."""
    needs = "nothing; with --address the primary dies with it only where it can be killed"

    def inject(self, scene: Scene, chance: random.Random) -> None:
        """See `summary`."""
        client = chance.choice(scene.clients.running)
        with_primary = chance.random() < AWAY_WITH_IT and scene.kills
        scene.begun("client", f"kill -9 of {client.name}")
        held = scene.clients.kill(client)
        if with_primary:
            scene.begun("primary", f"kill -9 of {scene.primaries.newest}")
            scene.primaries.kill()
            scene.primaries.start()
        scene.ended(f"{client.name} held {held} locks and is gone")
        scene.newcomers.append(scene.clients.replace(client))


class ReconnectStorm(Fault):
    """See `summary`."""

    name = "reconnect-storm"
    summary = "1000 clients come back to a new primary at once"
    done = """A primary of its own is started, with 1000 clients (--storm-clients) of which each
        holds a lock. It is killed, and another one is started."""
    must = """All of them come back, and each holds its lock as before."""
    needs = "a primary that the drill starts itself; some 300 MB of memory"

    def missing(self, ground: Ground) -> str:
        """See `Fault`."""
        return ground.owns()

    def inject(self, scene: Scene, chance: random.Random) -> None:
        """See `summary`."""
        del chance
        crowds.storm(scene)
