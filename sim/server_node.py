"""A simulated server process: dlock's primary with its two threads as turns, its sockets on the
network of the world, its state directory in memory.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from dlock.control.state_dir import StateDirError
from dlock.primary import Primary, ServerConfig, ServerError
from sim.kernel import NEVER_NS, US_NS, Actor, NodeClock
from sim.machine import Killed
from sim.node import Node

if TYPE_CHECKING:
    from sim.world import World

BACKLOG: Final = 64
# Small tables are made and looked at fast; the people of a world need no more.
LOCKS_MAX: Final = 64
CLIENTS_MAX: Final = 64
OBJECTS_MAX: Final = 16
AT_ONCE_NS: Final = 5 * US_NS
FOREVER_NS: Final = 2**64 - 1  # a plane that has ended


def _listening() -> socket.socket:
    """A listening socket under a name that the machine chooses."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.bind("")
    listener.listen(BACKLOG)
    return listener


class _Control(Actor):
    """The control thread."""

    __slots__ = ("_node",)

    def __init__(self, node: ServerNode) -> None:
        super().__init__(f"{node.name}: control", node, node.primary.loop.fileno())
        self._node = node

    def turn(self) -> int:
        """One turn of the control loop."""
        return self._node.control_turn()


class _Plane(Actor):
    """The plane thread."""

    __slots__ = ("_node",)

    def __init__(self, node: ServerNode) -> None:
        super().__init__(f"{node.name}: plane", node)
        self._node = node

    def turn(self) -> int:
        """One turn of the plane."""
        return self._node.plane_turn()


class ServerNode(Node):
    """See the file. `primary`: the code that ships, from a start that succeeded on."""

    PORT: Final = 21616
    DATA_PORT: Final = 21617

    def __init__(self, world: World, name: str, place: str, clock: NodeClock) -> None:
        super().__init__(world, name, place, clock)
        self.primary: Primary
        self._plane = _Plane(self)
        self._control: _Control
        self._started = False
        self._stopping = False  # SIGTERM has come
        self._ended: set[str] = set()  # which of its threads have, in this epoch

    # ---- Beginning -------------------------------------------------------------------------------

    def start(self, *, take_over: bool) -> bool:
        """Becomes the primary; False: it could not, and has said why."""
        settings = self.world.settings
        config = ServerConfig(
            host=self.place, port=self.PORT, data_port=self.DATA_PORT,
            max_locks=LOCKS_MAX, max_clients=CLIENTS_MAX, max_objects=OBJECTS_MAX,
            session_ttl_ms=settings.session_ttl_ms, max_lease_ms=settings.max_lease_ms,
            wait_mode="block", state_dir=self.world.folder / "state", take_over=take_over,
            transport="tcp")
        self.world.say(self.name, "starts" + (" and takes over" if take_over else ""))
        control, data = _listening(), _listening()
        with self.world.running_as(self._plane):
            try:
                self.primary = Primary(
                    config, listener=control, data_listen_fd=data.fileno(),
                    random_bytes=self.world.machine.random_bytes)
                self._started = True
                self.primary.loop.begin()
            except (ServerError, StateDirError) as problem:
                self._cannot_go_on(problem)
            except Killed:
                pass
        if self.alive:
            self.world.network.listen(self, self.PORT, control, "control")
            self.world.network.listen(self, self.DATA_PORT, data, "data", self._plane)
            self._begin_epoch()
        data.close()
        return self.alive

    def _begin_epoch(self) -> None:
        self._ended.clear()
        self._control = _Control(self)
        self.actors = [self._control, self._plane]
        kernel = self.world.kernel
        kernel.watch_actor(self._control)
        kernel.wake_soon(self._control)
        kernel.wake_soon(self._plane)

    # ---- Turns -----------------------------------------------------------------------------------

    def control_turn(self) -> int:
        """One turn of the control loop. When the next one is due, in true time."""
        loop, kernel = self.primary.loop, self.world.kernel
        try:
            own_ns = loop.turn(0)
            if loop.stopping:
                loop.finish()
        except StateDirError as problem:
            self._cannot_go_on(problem)
        except Killed:
            self._release()
        if not self.alive:
            return NEVER_NS
        kernel.wake_soon(self._plane)  # there may be commands
        if loop.stopping:
            self.primary.plane.stop()
            self._thread_ended("control")
            return NEVER_NS
        return self._true_ns(own_ns)

    def plane_turn(self) -> int:
        """One turn of the plane. When the next one is due, in true time."""
        own_ns = self.primary.plane.turn()
        if own_ns < FOREVER_NS:
            return self._true_ns(own_ns)
        error = self.primary.plane.error
        if error:
            self.world.blame(f"{self.name}: the plane failed with errno {error}")
        if "plane" not in self._ended:
            self.primary.loop.stop()
            self._thread_ended("plane")
        return NEVER_NS

    def _true_ns(self, own_ns: int) -> int:
        """When its clock shows this."""
        if own_ns >= NEVER_NS:
            return NEVER_NS
        return self.clock.true_ns(own_ns) if own_ns else self.world.now_ns + AT_ONCE_NS

    # ---- Ending ----------------------------------------------------------------------------------

    def stop(self) -> None:
        """SIGTERM: both threads end in their time."""
        self.world.say(self.name, "is to end (SIGTERM)")
        self._stopping = True
        self.primary.loop.stop()
        self.primary.plane.stop()
        for actor in self.actors:
            self.world.kernel.wake_soon(actor)

    def _thread_ended(self, which: str) -> None:
        self._ended.add(which)
        if len(self._ended) < 2:
            return
        self.world.kernel.forget(self._control.fd)
        if self.primary.loop.epoch_above is not None and not self._stopping:
            self.primary.begin_anew()
            self.primary.loop.begin()
            self.world.say(self.name, f"begins anew with epoch {self.primary.epoch}")
            self._begin_epoch()
            self.world.began_anew(self)
        else:
            self.world.say(self.name, "has ended")
            self._over()

    def _cannot_go_on(self, problem: Exception) -> None:
        """It ends by itself, at once."""
        self.world.say(self.name, f"cannot {'go on' if self._started else 'start'}: {problem}")
        self._over()

    def _over(self) -> None:
        self.end()
        self._release()
        self.world.network.process_died(self, silently=False)
        self.world.crashed(self)

    def die(self, silently: bool = False) -> None:
        """kill -9. Its tables stay as they are, for who looks at them."""
        self.kill(silently)
        if self.world.kernel.running not in (self._control, self._plane):
            self._release()
        self.world.crashed(self)

    def die_now(self, where: str) -> None:
        """kill -9 in the middle of a turn."""
        self.world.say(self.name, f"is in the middle of {where}")
        self.die()
        raise Killed

    def _release(self) -> None:
        """Its locks on files end with it."""
        if self._started:
            self.primary.release_state()

    def tear_down(self) -> None:
        """Gives back what it has of the real machine."""
        if self._started:
            self.primary.close()
