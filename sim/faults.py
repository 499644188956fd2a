"""What befalls a world: one fault after the other, at random moments, each from the menu of its
seed. A fault that lasts ends by itself, and all end when the world is to come to its end.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Final

from sim.client_node import ClientNode
from sim.kernel import MS_NS, NEVER_NS, SECOND_NS, Actor
from sim.machine import Killed
from sim.pipe import Connection
from sim.server_node import ServerNode

if TYPE_CHECKING:
    from sim.world import World

RESTART_NS: Final = (10 * MS_NS, 4 * SECOND_NS)  # until somebody starts a new primary
COME_BACK_NS: Final = (10 * MS_NS, 15 * SECOND_NS)
HOUR_S: Final = 3600
DISK_WRITES_MAX: Final = 40  # a primary that is to die at the disk dies at one of the next so many


class Fate(Actor):
    """The actor behind it. It wakes by itself, now and then."""

    __slots__ = ("_doomed", "_ended", "_rng", "_world")

    def __init__(self, world: World, rng: Random) -> None:
        super().__init__("fate")
        self._world = world
        self._rng = rng
        self._ended = False
        self._doomed = 0  # waits for the disk until a primary dies in one; 0: none does

    def begin(self) -> None:
        """From now on."""
        self._world.machine.on_disk = self._disk
        if self._world.settings.faults:
            self._world.kernel.wake(self, self._gap_ns())

    def _gap_ns(self) -> int:
        gap_ns = self._world.settings.fault_gap_ns
        return self._world.now_ns + int(self._rng.expovariate(1 / gap_ns)) + 1

    def turn(self) -> int:
        """One fault."""
        if self._ended:
            return NEVER_NS
        name = self._rng.choice(self._world.settings.faults)
        self._world.seen[f"fault: {name}"] += 1
        _FAULTS[name](self)
        return self._gap_ns()

    def over(self) -> None:
        """Everything that lasts ends."""
        world = self._world
        self._ended = True
        self._doomed = 0
        world.network.heal()
        for place in world.places:
            world.network.set_down(place, False)
        for node in [*world.servers, *world.clients]:
            node.resume()
        self._ensure_primary()

    # ---- The primary -----------------------------------------------------------------------------

    def _serving(self) -> ServerNode | None:
        primary = self._world.primary
        return primary if primary is not None and primary.alive else None

    def _restart_later(self) -> None:
        self._world.later(self._rng.randrange(*RESTART_NS), "supervisor", self._ensure_primary)

    def _ensure_primary(self) -> None:
        """A supervisor starts a primary where none runs."""
        world = self._world
        if self._serving() is None:
            place = self._rng.choice(world.places)
            world.network.set_down(place, False)
            world.start_primary(place)
            if self._serving() is None:
                self._restart_later()

    def primary_ended(self, node: ServerNode) -> None:
        """It is gone, by our hand or its own."""
        if node is self._world.primary:
            self._restart_later()

    def kill_primary(self) -> None:
        """kill -9; now and then the next one dies too, before its recovery is over."""
        node = self._serving()
        if node is not None:
            node.die()
            if self._rng.random() < 0.3:
                delay_ns = self._rng.randrange(RESTART_NS[0], 3 * RESTART_NS[1])
                self._world.later(delay_ns, "fate", self._kill_again)

    def _kill_again(self) -> None:
        node = self._serving()
        if node is not None and not self._ended:
            node.die()

    def kill_at_disk(self) -> None:
        """kill -9 in the middle of what it writes: at one of its next waits for the disk."""
        self._doomed = self._rng.randrange(1, DISK_WRITES_MAX)

    def lose_machine(self) -> None:
        """The primary's machine dies, and nobody is told. Another one is started later."""
        world, node = self._world, self._serving()
        if node is not None:
            world.network.set_down(node.place, True)
            node.die(silently=True)
            place = node.place
            world.later(self._rng.randrange(8 * SECOND_NS), "fate",
                        lambda: world.network.set_down(place, False))

    def pause_primary(self) -> None:
        """SIGSTOP of the primary, from a moment to beyond everybody's patience."""
        node = self._serving()
        if node is not None and not node.paused:
            node.pause()
            self._world.later(self._span_ns(), "fate", node.resume)

    def take_over(self) -> None:
        """An operator starts another primary beside one that runs, or that stands still."""
        node = self._serving()
        if node is not None:
            if self._rng.random() < 0.5 and not node.paused:
                node.pause()
                self._world.later(self._span_ns(), "fate", node.resume)
            self._world.start_primary(self._rng.choice(self._world.places), take_over=True)

    def stop_primary(self) -> None:
        """SIGTERM."""
        node = self._serving()
        if node is not None and not node.paused:
            node.stop()

    def _span_ns(self) -> int:
        """How long something lasts: mostly short, sometimes longer than any session."""
        ttl_ns = self._world.settings.session_ttl_ms * MS_NS
        return self._rng.randrange(
            self._rng.choice((20 * MS_NS, ttl_ns // 4, ttl_ns // 2, 2 * ttl_ns, 4 * ttl_ns)))

    def _disk(self, what: str) -> None:
        """A node waits for its disk: that takes its time, and may be its end."""
        world = self._world
        running = world.kernel.running
        node = running.host if running is not None else None
        if not isinstance(node, ServerNode):
            return
        if not node.alive:
            raise Killed  # what it would clean up stays as it is
        if self._doomed and node is world.primary:
            self._doomed -= 1
            if not self._doomed:
                node.die_now(what)
        if what == "fsync" and world.settings.slow_disk:
            chance = self._rng.random()
            world.kernel.spend(int(chance * MS_NS) if chance < 0.97 else
                               self._rng.randrange(world.settings.session_ttl_ms * MS_NS // 2))

    # ---- Clients ---------------------------------------------------------------------------------

    def _some_client(self) -> ClientNode | None:
        running = [node for node in self._world.clients if node.alive and not node.done]
        return self._rng.choice(running) if running else None

    def pause_client(self) -> None:
        """SIGSTOP of a client."""
        node = self._some_client()
        if node is not None and not node.paused:
            node.pause()
            self._world.later(self._span_ns(), "fate", node.resume)

    def kill_client(self) -> None:
        """kill -9 of a client, or the death of its machine; mostly it comes back as another."""
        node = self._some_client()
        if node is None:
            return
        node.kill(silently=self._rng.random() < 0.3)
        self._world.crashed(node)
        if self._rng.random() < 0.8:
            place = node.place
            self._world.later(self._rng.randrange(*COME_BACK_NS), "supervisor",
                              lambda: self._come_back(place))

    def _come_back(self, place: str) -> None:
        if not self._ended:
            self._world.start_client(place)

    # ---- The network -----------------------------------------------------------------------------

    def _some_connections(self) -> list[Connection]:
        living = [one for one in self._world.network.connections if not one.cut]
        if not living:
            return []
        return self._rng.sample(living, self._rng.choice((1, 1, 1, min(3, len(living)))))

    def cut(self) -> None:
        """Connections break; their ends hear of it at once, when they send next, or never."""
        for one in self._some_connections():
            told = (self._rng.random() < 0.6, self._rng.random() < 0.6)
            answered = self._rng.random() < 0.7
            self._world.say("network", f"cuts the {one.name}, which "
                            f"{_who(told, 'is told', 'are told', 'nobody is told')}")
            self._world.network.cut(one, told, answered)

    def stall(self) -> None:
        """What is under way on a connection arrives much later, perhaps when another one has taken
        its place."""
        for one in self._some_connections():
            span_ns = self._span_ns()
            self._world.say("network", f"stalls the {one.name} for {span_ns / 1e9:.3f} s")
            self._world.network.stall(one, self._world.now_ns + span_ns)

    def silence(self) -> None:
        """Nothing gets from one place to another, in one direction or in both."""
        world, rng = self._world, self._rng
        client = self._some_client()
        if client is None:
            return
        server = rng.choice(world.places)
        ways = [(client.place, server), (server, client.place)]
        if rng.random() < 0.5:
            ways = [rng.choice(ways)]
        self._silence(ways)

    def partition(self) -> None:
        """Nobody reaches the servers of a place, nor they anybody."""
        server = self._rng.choice(self._world.places)
        self._silence([way for node in self._world.clients
                       for way in ((node.place, server), (server, node.place))])

    def _silence(self, ways: list[tuple[str, str]]) -> None:
        world, span_ns = self._world, self._span_ns()
        world.say("network", "is silent " + ", ".join(f"from {a} to {b}" for a, b in ways)
                  + f" for {span_ns / 1e9:.3f} s")
        for way in ways:
            world.network.silence(*way)
        world.later(span_ns, "network", world.network.heal)

    # ---- Clocks ----------------------------------------------------------------------------------

    def step_wall_clock(self) -> None:
        """The wall clocks are set; nobody may care."""
        step_s = self._rng.choice((-HOUR_S, HOUR_S, -1, 86400))
        self._world.machine.wall_step_s += step_s
        self._world.say("world", f"the wall clocks are set by {step_s} s")

    def change_rate(self) -> None:
        """A clock goes at another rate."""
        world = self._world
        place = self._rng.choice([*world.places, *(node.place for node in world.clients)])
        rate_ppm = world.any_rate_ppm()
        world.clock_of(place).change_rate(world.now_ns, rate_ppm)
        world.say("world", f"the clock of {place} is {rate_ppm:+d} ppm off")


def _who(told: tuple[bool, bool], one: str, both: str, none: str) -> str:
    if all(told):
        return f"both ends {both}"
    if not any(told):
        return none
    return f"its {'client' if told[0] else 'server'} {one}"


_FAULTS: Final[dict[str, Callable[[Fate], None]]] = {
    "kill-primary": Fate.kill_primary,
    "kill-at-disk": Fate.kill_at_disk,
    "lose-machine": Fate.lose_machine,
    "pause-primary": Fate.pause_primary,
    "take-over": Fate.take_over,
    "stop-primary": Fate.stop_primary,
    "pause-client": Fate.pause_client,
    "kill-client": Fate.kill_client,
    "cut": Fate.cut,
    "stall": Fate.stall,
    "silence": Fate.silence,
    "partition": Fate.partition,
    "step-wall-clock": Fate.step_wall_clock,
    "change-rate": Fate.change_rate,
}
MENU: Final = tuple(_FAULTS)
