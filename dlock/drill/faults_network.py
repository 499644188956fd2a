"""Faults of the network: connections cut, replies lost, a partition."""

from __future__ import annotations

import random
import time

from dlock.drill import partition
from dlock.drill.fault import Fault
from dlock.drill.ground import Ground
from dlock.drill.scene import Scene


class Cut(Fault):
    """See `summary`."""

    name = "cut"
    summary = "connections are cut, those of one plane or of both"
    done = """Half of the clients reach the primary through a proxy of the drill. It ends all their
        connections, or those of the control plane or of the data plane alone, once or several times
        in a row."""
    must = """Sessions survive their connections: everything that was held is held, and waits keep
        their places."""
    needs = "with --address: --data-port"
    proxies = True

    def missing(self, ground: Ground) -> str:
        """See `Fault`."""
        return ground.proxies()

    def inject(self, scene: Scene, chance: random.Random) -> None:
        """See `summary`."""
        times = chance.choice((1, 1, 2, 5))
        for number in range(times):
            if number:
                time.sleep(chance.random() * 0.1)
            which = chance.choice(("all", "control", "data"))
            scene.begun("network", f"cut: {which} connections")
            for proxy in scene.proxies:
                proxy.cut(*{"control": proxy.ports[:1], "data": proxy.ports[1:]}.get(which, ()))
        scene.ended(f"cut {times} times")


class LostReplies(Fault):
    """See `summary`."""

    name = "lost-replies"
    summary = "requests arrive, their replies do not"
    done = """The proxy keeps back what the primary answers to half of the clients, for a moment
        or for longer than a session lasts; then it cuts the connections, and what it had kept back
        is lost."""
    must = """A lock whose grant was lost is held by nobody for long: its client asks again and gets
        the same grant, or has given it up. An addition whose answer was lost is said to be
        unknown, and is never repeated."""
    needs = "with --address: --data-port"
    proxies = True

    def missing(self, ground: Ground) -> str:
        """See `Fault`."""
        return ground.proxies()

    def inject(self, scene: Scene, chance: random.Random) -> None:
        """See `summary`."""
        seconds = chance.choice((0.05, 0.2, 0.2, 1.5)) * scene.session_ttl_s
        scene.begun("network", "replies are kept back")
        for proxy in scene.proxies:
            proxy.hold_answers()
        time.sleep(seconds)
        for proxy in scene.proxies:
            proxy.cut()
            proxy.mend()
        scene.ended(f"after {seconds:.2f} s what was kept back is lost")


class Partition(Fault):
    """See `summary`."""

    name = "partition"
    summary = "a client is cut off in a network of its own, and joined again"
    done = """A primary and client processes are started in network namespaces of their own, with a
        virtual cable between the two. The cable is cut for longer than a session lasts, while
        clients on the primary's side go on; then it is mended."""
    must = """Those who are cut off see by their own clocks that they hold nothing, before the
        others get it; afterwards they are told, and go on."""
    needs = "root, and the program ip; a primary that the drill starts itself"

    def missing(self, ground: Ground) -> str:
        """See `Fault`."""
        return ground.owns() or ground.networks()

    def inject(self, scene: Scene, chance: random.Random) -> None:
        """See `summary`."""
        partition.play(scene, chance)
