"""A world: one service, its clients, the network between them, and what befalls them, from a seed.

A world is busy for a while, with faults; then all that is broken is mended, the clients finish what
they do and leave, and nothing may be left of them. After each turn the laws are checked.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Final

from sim import faults, laws, people
from sim.client_node import ClientNode
from sim.kernel import MS_NS, NEVER_NS, SECOND_NS, Actor, Host, Kernel, NodeClock
from sim.machine import Machine
from sim.network import Network
from sim.node import Node
from sim.scene import LawBroken
from sim.server_node import ServerNode
from sim.settings import CLIENT_NAMES, PLACES, RATE_PPM_MAX, Settings, draw
from sim.transcript import LogLines, Transcript

OFFSET_S: Final = (1000, 9000)  # what the clocks of nodes show at the beginning
FINISH_NS: Final = 400 * SECOND_NS  # for all to finish when nothing befalls them any more
BUSY_STEPS: Final = 30_000  # a world of the fast shows no more in more
STEPS_MAX: Final = 2_000_000
MEMORY: Final = Path("/dev/shm")


class _Later(Actor):
    """Something that happens once."""

    __slots__ = ("_call",)

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        super().__init__(name)
        self._call = call

    def turn(self) -> int:
        """Now."""
        self._call()
        return NEVER_NS


class World:
    """See the file. `clients`: the processes of the users, dead ones replaced when they come back;
    `servers`: every primary that was started, in order; `primary`: the newest, or None before the
    first; `healing`: nothing befalls anybody any more, and who lives there is to finish and leave;
    `rng`: for the users."""

    def __init__(self, seed: int, settings: Settings | None = None,
                 loud: Callable[[str], None] | None = None, *, tell_steps: bool = False) -> None:
        self.seed = seed
        self.settings = settings or draw(Random(f"{seed}/settings"), faults.MENU)
        self.rng = Random(f"{seed}/people")
        self.machine = Machine(seed)
        self.kernel = Kernel(Random(f"{seed}/kernel"), self.enter)
        self.network = Network(self.kernel, Random(f"{seed}/network"), self.settings.weather)
        self.transcript = Transcript(loud)
        self.clients: list[ClientNode] = []
        self.servers: list[ServerNode] = []
        self.dead: list[Node] = []
        self.primary: ServerNode | None = None
        self.healing = False
        self.violation: LawBroken | None = None
        self.folder: Path
        self._over = False
        self._real: tuple[tuple[str, str], ...] = ()
        self._tell_steps = tell_steps
        self._clocks = Random(f"{seed}/clocks")
        self._clock_of: dict[str, NodeClock] = {}
        self._fate = faults.Fate(self, Random(f"{seed}/faults"))
        self._laws: laws.Laws
        self._people: people.People

    # ---- For everybody in it ---------------------------------------------------------------------

    @property
    def now_ns(self) -> int:
        """True time, which no node knows."""
        return self.kernel.now_ns

    def say(self, actor: str, text: str) -> None:
        """A line of the transcript."""
        if self._over:
            return
        for real, shown in self._real:
            text = text.replace(real, shown)
        self.transcript.say(self.kernel.now_ns, actor, text)

    def blame(self, text: str, cause: BaseException | None = None) -> None:
        """A law is broken: the world ends after this turn."""
        if self.violation is None and not self._over:
            self.say("LAW", text)
            self.violation = cause if isinstance(cause, LawBroken) else LawBroken(text)
            if cause is not self.violation:
                self.violation.__cause__ = cause

    def enter(self, host: Host | None) -> None:
        """From now on the clock of this node is the one that is read; None: true time."""
        now_ns = self.kernel.now_ns
        self.machine.set_clock(host.clock.read_ns(now_ns) if host is not None else now_ns + 1)

    @contextlib.contextmanager
    def running_as(self, actor: Actor) -> Iterator[None]:
        """What happens outside of a turn is this actor's doing, by its clock."""
        former, self.kernel.running = self.kernel.running, actor
        self.enter(actor.host)
        try:
            yield
        finally:
            self.kernel.running = former
            self.enter(former.host if former is not None else None)

    def later(self, delay_ns: int, name: str, call: Callable[[], None]) -> None:
        """Happens once, so much later."""
        self.kernel.wake(_Later(name, call), self.now_ns + delay_ns)

    @property
    def seen(self) -> Counter[str]:
        """What was met in it, and how often."""
        return self._laws.seen

    @property
    def session_ttl_ms(self) -> int:
        """How long a session lives without being heard of."""
        return self.settings.session_ttl_ms

    # ---- Nodes -----------------------------------------------------------------------------------

    def clock_of(self, place: str) -> NodeClock:
        """The clock of a machine, which outlives the processes on it."""
        clock = self._clock_of.get(place)
        if clock is None:
            rate_ppm = self.any_rate_ppm()
            offset_ns = self._clocks.randrange(*OFFSET_S) * SECOND_NS
            clock = self._clock_of[place] = NodeClock(offset_ns, rate_ppm)
        return clock

    def any_rate_ppm(self) -> int:
        """How much faster a clock goes than true time."""
        return self._clocks.randint(-RATE_PPM_MAX, RATE_PPM_MAX) if self.settings.drift else 0

    @property
    def places(self) -> tuple[str, ...]:
        """Where primaries may run."""
        return PLACES if self.settings.two_places else PLACES[:1]

    def start_client(self, place: str) -> ClientNode:
        """A new process of this user, in the place of a former one that is dead."""
        former = [index for index, one in enumerate(self.clients) if one.place == place]
        started = sum(one.place == place for one in [*self.clients, *self.dead])
        name = f"{place}{started + 1}" if started else place
        address = ",".join(f"{server}.{name}:{ServerNode.PORT}" for server in self.places)
        node = ClientNode(self, name, place, self.clock_of(place), address)
        if former:
            self.dead.append(self.clients[former[0]])
            self.clients[former[0]] = node
        else:
            self.clients.append(node)
        self.say(node.name, "starts")
        node.start(people.live(node, self._people))
        return node

    def start_primary(self, place: str, *, take_over: bool = False) -> ServerNode:
        """A new server, which becomes the primary if it can start."""
        node = ServerNode(self, f"{place}{len(self.servers) + 1}", place, self.clock_of(place))
        self.servers.append(node)
        if node.start(take_over=take_over):
            former, self.primary = self.primary, node
            self._primary_changed(former, node)
        return node

    def began_anew(self, node: ServerNode) -> None:
        """It has taken a higher epoch, with tables that are empty."""
        self._primary_changed(node, node)

    def _primary_changed(self, former: ServerNode | None, node: ServerNode) -> None:
        try:
            self._laws.primary_changed(former, node)
        except LawBroken as broken:
            self.blame(str(broken), broken)

    def crashed(self, node: Node) -> None:
        """Told by whoever has ended a node against its will."""
        self._laws.crashed(node)
        if isinstance(node, ServerNode):
            self._fate.primary_ended(node)

    # ---- Its life --------------------------------------------------------------------------------

    def run(self) -> LawBroken | None:
        """Plays it; what was broken."""
        log = LogLines(lambda text: self.say(self._speaker(), text))
        self.folder = Path(tempfile.mkdtemp(prefix="dlock-sim-", dir=MEMORY if MEMORY.is_dir()
                                            else None))
        # What differs from run to run is not to be read, and not to be compared.
        self._real = ((str(self.folder), "/sim"), (f"process {os.getpid()}", "process 1"))
        gc.disable()
        self.machine.install()
        log.install()
        try:
            self._play()
        finally:
            log.remove()
            self._tidy()
            self.machine.remove()
            gc.enable()
            shutil.rmtree(self.folder, ignore_errors=True)
        return self.violation

    def _speaker(self) -> str:
        running = self.kernel.running
        return running.host.name if running is not None and running.host is not None else "world"

    def _play(self) -> None:
        self.say("world", f"seed {self.seed}: {self.settings}")
        self.enter(None)
        self._laws = laws.Laws(self)
        self._people = people.People(self, self._laws)
        self.start_primary(self.places[0])
        for place in CLIENT_NAMES[: self.settings.clients]:
            self.start_client(place)
        self._fate.begin()
        self._go_on_until(lambda: self.now_ns >= self.settings.busy_ns
                          or self.kernel.steps >= BUSY_STEPS)
        self._heal()
        self._finish()
        if self.violation is None:
            self._at_end()

    def _go_on_until(self, over: Callable[[], bool]) -> None:
        kernel, after_step = self.kernel, self._laws.after_step
        while self.violation is None and not over():
            actor = kernel.step()
            if actor is None:
                return
            if self._tell_steps:
                self.say("step", actor.name)
            if actor.host is not None:
                try:
                    after_step(actor.host)
                except Exception as broken:  # a law, or what no user has expected
                    self.blame(_said(broken), broken)
                    return
            if kernel.steps > STEPS_MAX:
                self.blame(f"the world does not come to an end in {STEPS_MAX} steps")

    def _heal(self) -> None:
        self._fate.over()
        self.healing = True
        self.say("world", "nothing befalls anybody any more")

    def _finish(self) -> None:
        end_ns = self.now_ns + FINISH_NS
        self._go_on_until(lambda: self._all_done() or self.now_ns > end_ns)
        for node in self.clients:
            if not node.done:
                self.blame(f"{node.name} has not come to its end, {FINISH_NS // SECOND_NS} s after "
                           f"the last fault")
        settings = self.settings
        rest_ns = (2 * settings.session_ttl_ms + settings.max_lease_ms + 2000) * MS_NS
        end_ns = self.now_ns + rest_ns
        self._go_on_until(lambda: self.now_ns > end_ns)

    def _at_end(self) -> None:
        self.enter(self.primary)
        try:
            self._laws.at_end()
        except Exception as broken:
            self.blame(_said(broken), broken)

    def _all_done(self) -> bool:
        return all(node.done for node in self.clients)

    def _tidy(self) -> None:
        """What is left is given back to the real machine. Nothing that happens here counts."""
        self._over = True
        hook = sys.unraisablehook
        sys.unraisablehook = lambda _problem: None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.enter(None)
                for node in [*self.servers, *self.clients, *self.dead]:
                    with contextlib.suppress(Exception):
                        node.tear_down()
                self.network.close()
                self.kernel.close()
                self.clients.clear()
                self.dead.clear()
                gc.collect()
        finally:
            sys.unraisablehook = hook


def _said(problem: Exception) -> str:
    return str(problem) if isinstance(problem, LawBroken) else repr(problem)
