"""A node of a world: one process on one machine, with a clock of its own, that runs, stands still
or is dead. What it runs is in sim/client_node.py and sim/server_node.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.kernel import Actor, NodeClock

if TYPE_CHECKING:
    from sim.world import World


class Node:
    """`name`: of this process, unique in its world; `place`: of its machine; `paused`: SIGSTOP;
    `alive`: it has not ended. `log`: for whoever observes it."""

    def __init__(self, world: World, name: str, place: str, clock: NodeClock) -> None:
        self.world = world
        self.name = name
        self.place = place
        self.clock = clock
        self.paused = False
        self.alive = True
        self.log: list[object] = []
        self.actors: list[Actor] = []

    def now_ns(self) -> int:
        """What its clock shows."""
        return self.clock.read_ns(self.world.now_ns)

    def pause(self) -> None:
        """SIGSTOP: it does not run, and does not know."""
        self.paused = True
        self.world.say(self.name, "is stopped (SIGSTOP)")

    def resume(self) -> None:
        """SIGCONT."""
        if self.paused and self.alive:
            self.paused = False
            self.world.say(self.name, "runs again (SIGCONT)")
            for actor in self.actors:
                self.world.kernel.go_on(actor)

    def kill(self, silently: bool = False) -> None:
        """kill -9; `silently`: its machine goes with it, so that nobody is told."""
        self.world.say(self.name, "dies with its machine" if silently else "is killed (kill -9)")
        self.end()
        self.world.network.process_died(self, silently)

    def end(self) -> None:
        """Nothing of it runs any more."""
        self.alive = False
        self.paused = False
        for actor in self.actors:
            if actor.fd >= 0:
                self.world.kernel.forget(actor.fd)

    def tear_down(self) -> None:
        """Gives back what it has of the real machine, when its world is over."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"
