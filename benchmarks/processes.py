"""What a measurement starts beside itself, and ends again whatever happens: servers and workers.

Every process is ended by its own id. A worker (benchmarks/worker.py) says when it is ready, starts
on a word, says when it is warm and when it is done, and on another word prints one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Address:
    """Where a server listens, and which process it is."""

    host: str
    port: int
    pid: int


def end(process: subprocess.Popen[str]) -> None:
    """Asks, then insists."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdin, process.stdout):
        if stream:
            stream.close()


def start(words: Sequence[str], core: int | None = None, **options: Any) -> subprocess.Popen[str]:
    """A process, on one core if given, with pipes."""
    taskset = [] if core is None else ["taskset", "-c", str(core)]
    return subprocess.Popen([*taskset, *words], text=True, cwd=ROOT, **options)


@contextlib.contextmanager
def dlock_server(wait: str, core: int | None = None, *, max_locks: int | None = None,
                 max_clients: int | None = None, transport: str | None = None,
                 device: str | None = None) -> Iterator[Address]:
    """`dlock serve`, both threads on one core."""
    words = [sys.executable, "-c", "import sys; from dlock.cli import main; sys.exit(main())",
             "serve", "--listen", "127.0.0.1:0", "--wait", wait, "--session-ttl", "60",
             "--log-level", "warning"]
    if core is not None:
        words += ["--data-cpus", str(core), "--control-cpus", str(core)]
    if max_locks is not None:
        words += ["--max-locks", str(max_locks)]
    if max_clients is not None:
        words += ["--max-clients", str(max_clients)]
    if transport is not None:
        words += ["--transport", transport]
    if device is not None:
        words += ["--device", device]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "address"
        process = start([*words, "--address-file", str(file)], stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not file.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("dlock serve did not start")
                time.sleep(0.01)
            host, port = file.read_text().split()[0].rsplit(":", 1)
            yield Address(host, int(port), process.pid)
        finally:
            end(process)


@contextlib.contextmanager
def echo_server(wait: str, connections: int, core: int | None = None) -> Iterator[Address]:
    """A bare C server that sends back what comes; ends when its connections have closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        worker = Worker("echo", core, {"listener": listener.fileno(), "connections": connections,
                                       "wait": wait}, pass_fds=(listener.fileno(),))
        try:
            worker.wait("ready")
            worker.go()
            host, port = listener.getsockname()
            yield Address(host, port, worker.process.pid)
        finally:
            worker.close()


def connect(address: Address) -> socket.socket:
    """A data connection, blocking, that gives up on a dead server."""
    connected = socket.create_connection((address.host, address.port))
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    two_seconds = (2).to_bytes(8, sys.byteorder) + (0).to_bytes(8, sys.byteorder)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, two_seconds)
    return connected


class Worker:
    """One process of benchmarks/worker.py."""

    def __init__(self, task: str, core: int | None = None, arguments: dict[str, Any] | None = None,
                 **options: Any) -> None:
        words = [sys.executable, "-m", "benchmarks.worker", task, json.dumps(arguments or {})]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = start(words, core, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             env=environment, **options)

    def wait(self, state: str) -> None:
        """Until it says that it is ready, warm or done."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if line != f"{state}\n":
            raise RuntimeError(f"a worker did not get {state}: {line!r}")

    def go(self) -> None:
        """Lets it go on."""
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """What it found out; once it is done."""
        self.go()
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a worker ended without a result")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """Ends it."""
        end(self.process)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def measure(task: str, core: int | None, **arguments: Any) -> dict[str, Any]:
    """One worker from start to end."""
    with Worker(task, core, arguments) as worker:
        worker.wait("ready")
        worker.go()
        worker.wait("warm")
        worker.wait("done")
        return worker.result()
