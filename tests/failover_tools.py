"""What the tests of failovers share: a primary in a process of its own that can be killed, stopped
and started again on the same state directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dlock.admin import Admin
from dlock.client import Client

PATIENCE_S = 30.0


def until(condition: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    """Waits for what must come true; how soon is not asserted."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


class Primary:
    """`dlock serve` in a process of its own, with an address file. `state_dir`: "none" or a path;
    None: in the folder. `flags`: more of its flags."""

    def __init__(
        self, folder: Path, *, ttl_s: float = 10.0, state_dir: str | None = None,
        listen: str = "127.0.0.1:0", flags: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.address_file = folder / "address"
        self.address = str(self.address_file)
        self.ttl_s = ttl_s
        self.listen = listen
        self._flags = [
            *("--session-ttl", str(ttl_s), "--wait", "block"),
            *("--state-dir", state_dir or str(folder / "state")), *flags]
        self._environment = {**os.environ, **(environment or {})}
        self._stopped = False
        self.start()

    def start(self) -> None:
        """Another process; it serves when the address file says where."""
        program = shutil.which("dlock", path=sysconfig.get_path("scripts")) or "dlock"
        self.process = subprocess.Popen(
            [program, "serve", "--listen", self.listen, "--address-file", self.address,
             *self._flags],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=self._environment)

    def kill(self) -> None:
        """As kill -9 does."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Killed, and started again."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """In its tracks, until `go_on`."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    @property
    def serving(self) -> bool:
        """Has the process that runs now said where it is?"""
        with contextlib.suppress(OSError):
            return f" pid {self.process.pid}\n" in self.address_file.read_text()
        return False

    @property
    def place(self) -> str:
        """HOST:PORT of the process that runs now."""
        until(lambda: self.serving)
        return self.address_file.read_text().split()[0]

    @contextlib.contextmanager
    def admin(self) -> Iterator[Admin]:
        """An operator's view of the process that runs now."""
        with Admin(self.place) as admin:
            yield admin


def epoch_of(client: Client) -> int:
    """Of the primary that this client has last taken up its session at."""
    return int(client._session.home[0])


def back_at(client: Client, epoch: int) -> None:
    """Waits until the client is whole at this primary or a later one, which serves everything."""
    until(lambda: epoch_of(client) >= epoch and client._whole() and client._session.ready)
