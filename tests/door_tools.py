"""What the tests of doors share: a primary in a process of its own, door processes beside it, their
clients' sockets.

    with beside(tmp_path) as place:
        door = place.door("glockd", "-port", str(port), "-pidfile", str(tmp_path / "pid"))
        with socket.create_connection(door.address) as client: ...
        place.primary.restart()  # kill -9, then the same address and state directory
"""

from __future__ import annotations

import contextlib
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cli_tools import environment
from failover_tools import PATIENCE_S, Primary, until

DLOCK_MODULE = (sys.executable, "-m", "dlock")


PORTS: Final = range(10_000, 32_000)  # below those that the kernel gives to who connects


def free_port() -> int:
    """A TCP port of this machine that nobody has now, and that no connection gets by chance."""
    while True:
        port = random.choice(PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("0.0.0.0", port))
            return port


class Ready:
    """Where a door listens, as its ready file has it: HOST:PORT, unix:PATH."""

    def __init__(self, listeners: list[str]) -> None:
        self._listeners = listeners

    @property
    def listeners(self) -> list[str]:
        """All of them."""
        return self._listeners

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) of the first TCP listener."""
        first = next(one for one in self.listeners if not one.startswith("unix:"))
        host, _, port = first.rpartition(":")
        return host.strip("[]"), int(port)


class Door(Ready):
    """`dlock door KIND` in a process of its own. Its log is a file. `address` is what `--connect`
    says."""

    def __init__(
        self, folder: Path, address: str, kind: str, *words: str, namespace: str | None = None,
        wait: bool = True, name: str | None = None, **added: str,
    ) -> None:
        super().__init__([])
        name = name or kind
        self.kind = kind
        self.ready_file = folder / f"{name}.ready"
        self.log = folder / f"{name}.log"
        self.out = folder / f"{name}.out"
        chosen = ("--namespace", namespace) if namespace else ()
        self._command = [*DLOCK_MODULE, "door", kind, "--connect", address, *chosen,
                         "--ready-file", str(self.ready_file), *words]
        self._environment = environment(None, **added)
        self._folder = folder
        self.start(wait=wait)

    def start(self, *, wait: bool = True) -> None:
        """The process; the log goes on where it was."""
        self.ready_file.unlink(missing_ok=True)
        with open(self.log, "ab") as log, open(self.out, "ab") as out:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=out, stderr=log,
                cwd=self._folder, env=self._environment)
        if wait:
            until(lambda: self.ready_file.exists() or self.process.poll() is not None)
            assert self.process.poll() is None, self.said()

    def said(self) -> str:
        """Its log up to now."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def listeners(self) -> list[str]:
        """As the ready file has them now."""
        until(self.ready_file.exists)
        return self.ready_file.read_text().splitlines()

    def counters(self) -> dict[str, int]:
        """What it has counted, as its log says when it is asked with SIGUSR1."""
        before = self.said().count("door counters")
        self.process.send_signal(signal.SIGUSR1)
        until(lambda: self.said().count("door counters") > before
              and self.said().endswith("\n"))
        line = [one for one in self.said().splitlines() if "door counters" in one][-1]
        return {name: int(count) for name, count in re.findall(r"(\S+)=(-?\d+)\b", line)}

    def kill(self) -> None:
        """As kill -9 does."""
        self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its own way to end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def restart(self) -> None:
        """Killed, and started again with the same words."""
        self.kill()
        self.start()

    def end(self) -> None:
        """After a test: nothing is left, and nothing failed unseen."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.kill()


class Place:
    """A primary and the doors beside it."""

    def __init__(self, folder: Path, ttl_s: float, flags: tuple[str, ...]) -> None:
        self.folder = folder
        self.primary = Primary(folder, ttl_s=ttl_s, flags=flags)
        # Started again, it listens at the same address.
        self.primary.listen = self.primary.place
        self.doors: list[Door] = []

    def door(self, kind: str, *words: str, **options: str) -> Door:
        """A door of this primary; options as for `Door`."""
        self.doors.append(Door(self.folder, self.primary.listen, kind, *words, **options))
        return self.doors[-1]

    def end(self) -> None:
        for door in self.doors:
            door.end()
        self.primary.kill()


@contextlib.contextmanager
def beside(folder: Path, *, ttl_s: float = 10.0, flags: tuple[str, ...] = ()) -> Iterator[Place]:
    """A primary with a state directory; it and every door of it are ended afterwards."""
    place = Place(folder, ttl_s, flags)
    try:
        yield place
    finally:
        place.end()
