"""The first examples of the documents, word for word; the options and exit codes they name."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def example(document: str) -> str:
    """The first Python block of the document."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return str(re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)[0])


def serve_words() -> list[str]:
    (command,) = re.findall(r"^ +(dlock serve --listen .*)$", README, re.M)
    return str(command).split()


def taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """The port of a server that was started as the README says; another one where its port is
    taken, by a service of this machine for instance."""
    words = serve_words()
    wanted = int(words[-1].rpartition(":")[2])
    words[0] = shutil.which("dlock", path=sysconfig.get_path("scripts")) or "dlock"
    if taken(wanted):
        words[-1] = "127.0.0.1:0"
    address_file = tmp_path / "address"
    server = subprocess.Popen(
        [*words, "--state-dir", str(tmp_path / "state"), "--address-file", str(address_file)],
        stdin=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while not address_file.exists():
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server wrote no address"
            time.sleep(0.02)
        address = address_file.read_text(encoding="utf-8").splitlines()[0]
        yield int(address.rpartition(":")[2])
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


@pytest.mark.parametrize(
    ("document", "printed"),
    [
        ("README.md", r"held, fencing token [1-9]\d*\nread [\w ]+\nthe next task is 0\n"),
        ("docs/mirror.md", ""),
    ],
)
def test_the_first_example_does_what_it_says(
    port: int, tmp_path: Path, document: str, printed: str
) -> None:
    code = example(document)
    assert "21616" in code
    done = subprocess.run(
        [sys.executable, "-c", code.replace("21616", str(port))],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(printed, done.stdout), done.stdout


def help_of(subcommand: str) -> str:
    command = shutil.which("dlock", path=sysconfig.get_path("scripts")) or "dlock"
    return subprocess.run(
        [command, subcommand, "--help"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![-\w])--[a-z][a-z-]+", text)) - {"--help"}


def test_the_options_that_the_readme_names_exist() -> None:
    assert options(README) <= options(help_of("serve")) | options(help_of("run"))


def test_the_operations_page_names_every_option_and_exit_code() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    usage, _, rest = help_of("serve").partition("exit codes:")
    others = options(help_of("break")) | options(help_of("recover"))
    assert options(page) - (others - options(usage)) == options(usage)
    codes = re.findall(r"^ +(\d)  ", rest, re.M)
    assert re.findall(r"^\| (\d) \|", page, re.M) == codes
