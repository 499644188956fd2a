"""A partition: a primary and clients in two network namespaces, with a cable between them that is
cut and mended.

The namespaces belong to two processes that do nothing else, so that they are gone, cable and all,
when these end; nothing outside of them is touched.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from collections.abc import Iterator
from typing import Final

from dlock.drill import child
from dlock.drill.clients import Clients
from dlock.drill.places import free_ports
from dlock.drill.primary import DrillError, OwnPrimaries, read_line, within
from dlock.drill.scene import ACTORS, Scene
from dlock.drill.worker import MIRROR, TASKS, THREADS

INSIDE, OUTSIDE = "10.93.17.1", "10.93.17.2"  # in namespaces that nobody else sees
CABLE: Final = "cable"
COMMAND_S: Final = 30.0
SERVED_S: Final = 60.0
CUT: Final = (1.5, 2.5)  # for how long, in sessions


class Network:
    """A namespace, for as long as its process lives."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen(
            child.words("network"), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True)
        self.path = f"/proc/{self._popen.pid}/ns/net"
        self.pid = self._popen.pid
        if read_line(self._popen.stdout, COMMAND_S) != "kept":
            self.close()
            raise DrillError("there is no network namespace to be had")

    def ip(self, words: str) -> None:
        """ip(8), inside."""
        done = within(self.path, lambda: subprocess.run(
            ["ip", *words.split()], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=COMMAND_S))
        if done.returncode:
            raise DrillError(f"ip {words}: {done.stderr.strip()}")

    def close(self) -> None:
        """It is gone."""
        self._popen.kill()
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def _networks() -> Iterator[tuple[Network, Network]]:
    """Two, with a cable between them."""
    with contextlib.ExitStack() as stack:
        both = []
        for _ in range(2):
            both.append(Network())
            stack.callback(both[-1].close)
        inside, outside = both
        inside.ip(f"link add {CABLE} type veth peer name {CABLE} netns {outside.pid}")
        for network, address in ((inside, INSIDE), (outside, OUTSIDE)):
            network.ip(f"address add {address}/24 dev {CABLE}")
            network.ip("link set lo up")
            network.ip(f"link set {CABLE} up")
        yield inside, outside


def play(scene: Scene, chance: random.Random) -> None:
    """With a primary and clients of its own, which end with it."""
    label = f"part{scene.round}-"
    with contextlib.ExitStack() as stack:
        inside, outside = stack.enter_context(_networks())
        ports = free_ports(("127.0.0.1",))  # nobody else is in there, so any would do
        primaries = OwnPrimaries(
            scene.folder, scene.writer, ports, session_ttl_s=scene.session_ttl_s, hosts=(INSIDE,),
            network=inside.path, label=f"{label}p")
        stack.callback(primaries.close)
        primaries.start()
        groups = []
        for network, side in ((inside, "in"), (outside, "out")):
            groups.append(Clients(
                scene.folder, scene.writer, seed=f"{scene.seed} {label}",
                prefix=f"{scene.prefix}{label}/", port=ports[0], sessions=1, actors=ACTORS,
                network=network.path, label=f"{label}{side}"))
            stack.callback(groups[-1].close)
        place = f"{INSIDE}:{ports[0]}", [INSIDE]
        begun = [(group, group.begin(flavour, *place)) for group, flavours in
                 zip(groups, ((THREADS, TASKS), (TASKS, THREADS, MIRROR)), strict=True)
                 for flavour in flavours]
        for group, client in begun:
            group.working(client)
        _cut(scene, chance, (inside, outside))
        for group in groups:
            left = group.await_served(scene.healed_ns, SERVED_S)
            if left:
                scene.violated(f"{left[0].name} was not served within {SERVED_S:g} s after the "
                               "network was mended")
        for group in groups:
            group.end()


def _cut(scene: Scene, chance: random.Random, networks: tuple[Network, Network]) -> None:
    """At one of its two ends, for longer than a session lasts."""
    end = chance.choice(networks)
    seconds = scene.session_ttl_s * chance.uniform(*CUT)
    time.sleep(chance.random() * scene.session_ttl_s)
    scene.begun("network", f"the cable is cut, at the {_side(end, networks)} end")
    end.ip(f"link set {CABLE} down")
    time.sleep(seconds)
    end.ip(f"link set {CABLE} up")
    scene.ended(f"it was mended after {seconds:.1f} s")


def _side(end: Network, networks: tuple[Network, Network]) -> str:
    return "primary's" if end is networks[0] else "clients'"
