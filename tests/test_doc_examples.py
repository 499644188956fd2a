"""Every example of the documents is run: Python blocks against a server, commands against a server
on which somebody holds what they speak of.

The Python blocks of a page are one program, in their order: what one block makes, the next may use.
The server is where DLOCK_ADDRESS says, as in `dlock.connect()`; a block with a server of its own
address is told so by a replaced port. What stands in no block that is marked as `python` and in no
line that begins with `    $ ` is no example.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import dlock
from dlock.server import Server, ServerConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DEFAULT_PORT = "21616"
# Their examples use the port of the README's server; tests/test_readme.py runs them.
ELSEWHERE = {"README.md", "docs/mirror.md"}
SECONDS = 60


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def program(page: Path) -> str:
    """All Python blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S))


def commands(page: Path) -> list[str]:
    """The lines that a reader would type: those after a prompt, without what is printed."""
    return re.findall(r"^ {4}\$ (dlock .*)$", page.read_text(encoding="utf-8"), re.M)


def names_in(page: Path) -> set[str]:
    """The names of locks that its commands speak of."""
    words = {word for line in commands(page) for word in shlex.split(line, comments=True)}
    return {word for word in words if re.fullmatch(r"\w+(/\w+)+", word)}


def hold(names: set[str], holder: dlock.Client, waiter: dlock.Client) -> list[dlock.Lock]:
    """Each lock is held by one, and wanted by another, while what is returned is kept."""
    kept = []
    for wanted in sorted(names):
        locks = holder.lock(wanted), waiter.lock(wanted)
        kept += locks
        assert locks[0].acquire(timeout=SECONDS)
        locks[1].acquire_future()
        until = time.monotonic() + SECONDS
        while not holder.admin.show(wanted).waiters:
            assert time.monotonic() < until
            time.sleep(0.01)
    return kept


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(ServerConfig(port=0, state_dir=tmp_path / "state"))
    yield server
    server.stop()


def run(words: list[str], server: Server, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=folder, text=True, capture_output=True, timeout=SECONDS, check=False,
        env={**os.environ, "DLOCK_ADDRESS": server.address, "PYTHONWARNINGS": "error"})


@pytest.mark.parametrize(
    "page", [page for page in PAGES if program(page) and name(page) not in ELSEWHERE], ids=name)
def test_the_python_examples_of(page: Path, server: Server, tmp_path: Path) -> None:
    code = program(page).replace(f"127.0.0.1:{DEFAULT_PORT}", server.address)
    ended = run([sys.executable, "-c", code], server, tmp_path)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("page", "command"),
    [pytest.param(page, command, id=f"{name(page)}: {command}")
     for page in PAGES for command in commands(page)],
)
def test_the_command(page: Path, command: str, server: Server, tmp_path: Path) -> None:
    """With a holder of everything that it names, and somebody who waits for it; `run`, which would
    wait for that holder, without, and with a program of the name that it is to run."""
    words = shlex.split(command, comments=True)
    words[0] = shutil.which("dlock", path=sysconfig.get_path("scripts")) or "dlock"
    for word in words[1:]:
        if word.startswith("./"):
            (tmp_path / word).write_text("#!/bin/sh\ntest -n \"$DLOCK_TOKEN\"\n")
            (tmp_path / word).chmod(0o755)
    if words[1] == "watch":  # it goes on until it is stopped
        words = ["timeout", "--preserve-status", "--signal=INT", "2", *words]
    with dlock.connect(server.address) as holder, dlock.connect(server.address) as waiter:
        kept = [] if words[1] == "run" else hold(names_in(page), holder, waiter)
        ended = run(words, server, tmp_path)
        del kept
        no_rdma_here = words[1] == "rdma" and ended.returncode == 1
        assert ended.returncode in (0, 130) or no_rdma_here, ended.stderr
