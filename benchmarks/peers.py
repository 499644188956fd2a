"""The peers' servers: private, on a free port of loopback, nothing kept, ended by their own id."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.processes import START_SECONDS, Address, end, start

PACKAGES: Final = ("redis-server", "postgresql")


class MissingError(Exception):
    """A peer that this machine does not have; the text says what to do."""


def install() -> None:
    """Debian's packages, by apt-get; their services are not started."""
    environment = {**os.environ, "RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *PACKAGES],
                   check=True, env=environment)


def need_module(name: str) -> None:
    """MissingError unless it can be imported."""
    if importlib.util.find_spec(name) is None:
        raise MissingError(f"Python has no module {name}; pip install 'dlock[bench]'")


def free_port() -> int:
    """One that nobody listened at a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _wait_for(address: Address, process: subprocess.Popen[str], what: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection((address.host, address.port)):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise MissingError(f"{what} does not start here")
        time.sleep(0.02)


@contextlib.contextmanager
def redis_server(core: int | None) -> Iterator[Address]:
    """Redis without persistence."""
    need_module("redis")
    program = shutil.which("redis-server")
    if program is None:
        raise MissingError("redis-server is not installed; --install-peers does it (apt-get)")
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        process = start([program, "--port", str(port), "--bind", "127.0.0.1", "--save", "",
                         "--appendonly", "no", "--dir", folder], core,
                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            address = Address("127.0.0.1", port, process.pid)
            _wait_for(address, process, "redis-server")
            yield address
        finally:
            end(process)


def _postgres_program(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    program = shutil.which(name) or (str(found[-1]) if found else None)
    if program is None:
        raise MissingError("PostgreSQL is not installed; --install-peers does it (apt-get)")
    return program


@contextlib.contextmanager
def postgres_server(core: int | None, *, durable: bool = False) -> Iterator[Address]:
    """PostgreSQL in a folder of its own; it refuses to run as root, so another user runs it.
    `durable`: with fsync."""
    need_module("psycopg")
    initdb, postgres = _postgres_program("initdb"), _postgres_program("postgres")
    prefix: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        if os.geteuid() == 0:
            user = _other_user()
            prefix = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}",
                      "--clear-groups"]
            os.chmod(folder, 0o755)
            os.chown(data, user.pw_uid, user.pw_gid)
        made = subprocess.run(
            [*prefix, initdb, "-D", str(data), "-U", "postgres", "-A", "trust", "-N"],
            capture_output=True, text=True, cwd="/")
        if made.returncode:
            raise MissingError(f"initdb fails: {made.stderr.strip()[-200:]}")
        port = free_port()
        # The postmaster's children inherit its core.
        process = start([*prefix, postgres, "-D", str(data), "-p", str(port), "-h", "127.0.0.1",
                         "-k", "", "-c", f"fsync={'on' if durable else 'off'}"], core,
                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            address = Address("127.0.0.1", port, process.pid)
            _wait_for(address, process, "PostgreSQL")
            time.sleep(0.5)  # it listens a little before it answers
            yield address
        finally:
            end(process)


def _other_user() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise MissingError("there is no user but root, and PostgreSQL refuses to run as root")
