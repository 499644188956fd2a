"""The floor of RDMA: perftest's programs, run as they are, their tables read.

A program is started twice, as the server on the first core and as the client on the last, both on
one device; ends by itself after so many iterations, or is ended by its own id.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.machine import cores
from benchmarks.peers import MissingError, free_port
from benchmarks.processes import START_SECONDS, end, start

PROGRAMS: Final = ("ib_send_lat", "ib_atomic_lat", "ib_read_lat")
# Where the client finds its server to exchange the queue pairs' numbers; both are on this machine.
HOST: Final = "127.0.0.1"
TIMEOUT_S: Final = 60.0
LISTENING: Final = "0A"  # as /proc/net/tcp has it
# The headings of the columns that are read, as perftest 4 and later print them.
TYPICAL: Final = "t_typical[usec]"
ITERATIONS: Final = "#iterations"
PERCENTILE: Final = "99%percentile[usec]"


@dataclass(frozen=True)
class Device:
    """What perftest is to use: a device, its port, the GID's index there."""

    name: str
    port: int
    gid_index: int


@dataclass(frozen=True)
class Latency:
    """Microseconds as perftest counts them: ib_send_lat half a round trip, the others a whole
    operation. `typical` is the median."""

    typical_us: float
    p99_us: float
    iterations: int


class OutputError(RuntimeError):
    """A program of perftest said something that is no table of latencies; the text has it."""


def need_programs() -> None:
    """MissingError that names the package unless all are there."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise MissingError(f"no {', '.join(missing)} on this machine; install the package perftest "
                           f"(apt-get install perftest)")


def parse(output: str) -> Latency:
    """The last row of the table. OutputError."""
    headings: list[str] = []
    found: dict[str, str] = {}
    for line in output.splitlines():
        # "99% percentile[usec]" is one column.
        words = line.replace("% percentile", "%percentile").split()
        if TYPICAL in words:
            headings = words
            if headings[0] == "#" and headings[1:2] == ["bytes"]:
                headings = ["#bytes", *headings[2:]]
        elif headings and len(words) == len(headings) and _is_number(words[0]):
            found = dict(zip(headings, words, strict=True))
    try:
        return Latency(float(found[TYPICAL]), float(found[PERCENTILE]), int(found[ITERATIONS]))
    except (KeyError, ValueError):
        raise OutputError(f"this is no table of perftest's:\n{output.strip()}") from None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def command(program: str, device: Device, listen_port: int, *, iterations: int, events: bool,
            extra: tuple[str, ...] = ()) -> list[str]:
    """Its words, without the server's address."""
    return [program, "-d", device.name, "-i", str(device.port), "-x", str(device.gid_index), "-F",
            "-p", str(listen_port), "-n", str(iterations), *extra, *(["-e"] if events else [])]


def _listens(listen_port: int) -> bool:
    """Without a connection, which would be taken for the client's."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == LISTENING and int(local.rpartition(":")[2], 16) == listen_port:
                return True
    return False


def _wait_until_listening(server: subprocess.Popen[str], listen_port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _listens(listen_port):
        if server.poll() is not None:
            raise OutputError(f"{server.args!r} ended with {server.returncode} and never listened; "
                              f"run it by hand to see why")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{server.args!r} did not listen in {START_SECONDS:g} s")
        time.sleep(0.02)


def measure(program: str, device: Device, *, iterations: int, events: bool = False,
            extra: tuple[str, ...] = ()) -> Latency:
    """One run of server and client. OutputError; TimeoutError."""
    server_core, client_core = cores()
    listen_port = free_port()
    words = command(program, device, listen_port, iterations=iterations, events=events, extra=extra)
    server = start(words, server_core, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_listening(server, listen_port)
        client = start([*words, HOST], client_core, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT)
        try:
            output, _ = client.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{program} did not end in {TIMEOUT_S:g} s") from None
        finally:
            end(client)
    finally:
        end(server)
    if client.returncode:
        raise OutputError(f"{program} ended with {client.returncode}:\n{output.strip()}")
    return parse(output)
