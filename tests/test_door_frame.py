"""The frame of all doors: words, names, listeners, and the life of a door process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_tools import dlock
from door_tools import free_port
from failover_tools import PATIENCE_S, Primary, until

import dlock as dlock_api
from dlock.cli.door_words import split
from dlock.doors import listen
from dlock.doors.names import DESCRIPTOR_BYTES_MAX, KINDS, Names

HERE = Path(__file__).resolve().parent


# ---- Words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "ours", "rest"),
    [
        ("glockd", "glockd", ""),
        ("glockd -port 1", "glockd", "-port 1"),
        ("ldlm --help", "ldlm", "--help"),
        ("ldlm --connect a:1 --password x --connect b:1", "ldlm --connect a:1",
         "--password x --connect b:1"),
        ("x --namespace=n --ready-file f -- y", "x --namespace=n --ready-file f", "-- y"),
        ("doubledutch 80 h 0", "doubledutch", "80 h 0"),
        ("glockd --connect", "glockd --connect", ""),
        ("--help", "--help", ""),
        ("", "", ""),
    ],
)
def test_ours_come_first_and_then_everything_is_the_originals(
    words: str, ours: str, rest: str
) -> None:
    assert split(words.split()) == (ours.split(), rest.split())


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nokind"], 2, "'nokind'"),
        (["glockd", "--namespace", "a:b"], 2, "'a:b' is no namespace"),
        (["glockd", "--namespace", ""], 2, "'' is no namespace"),
        (["glockd", "--connect", "here:99999"], 2, "'here:99999' is no HOST:PORT"),
        (["glockd", "--connect"], 2, "expected one argument"),
    ],
)
def test_wrong_words_are_refused(words: list[str], code: int, said: str) -> None:
    done = dlock("door", *words)
    assert done.code == code
    assert said in done.err


@pytest.mark.parametrize(
    ("kind", "package"),
    [("glockd", "wsproto"), ("doubledutch", "httptools"), ("ldlm", "httptools"), ("ldlm", "h2"),
     ("ldlm", "google")],
)
def test_a_missing_package_is_named_with_what_mends_it(kind: str, package: str) -> None:
    program = (
        f"import sys\nsys.modules[{package!r}] = None\nfrom dlock.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n")
    done = subprocess.run([sys.executable, "-c", program, "door", kind, "--check"], text=True,
                          capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (72, "")
    assert done.stderr == (f"dlock door: the package {package}, which {kind} needs, is not "
                           f"installed: pip install 'dlock[doors]'\n")


# ---- Names ---------------------------------------------------------------------------------------


def test_every_name_has_a_descriptor_of_its_own() -> None:
    long = b"x" * 600
    texts = [b"", b"a", b":", b"+shared:a", b"long:a", b"\xff\x00", long, long + b"y"]
    found = {}
    for names in (Names("n"), Names("n.m")):
        for text in texts:
            for kind in (names.exclusive, names.shared):
                named = kind(text)
                assert 0 < len(named.descriptor) <= DESCRIPTOR_BYTES_MAX
                assert found.setdefault(named.descriptor, (names, kind, text)) == (
                    names, kind, text)
    assert len(found) == 2 * 2 * len(texts)
    assert Names("n").exclusive(b"a") == (b"n:a", b"")
    assert Names("n").shared(b"a") == (b"n+shared:a", b"")


def test_a_name_is_kept_whole_at_any_length() -> None:
    names = Names("n")
    most = DESCRIPTOR_BYTES_MAX - len(b"n:")
    assert names.exclusive(b"x" * most) == (b"n:" + b"x" * most, b"")
    named = names.exclusive(b"x" * (most + 1))
    assert named.descriptor.startswith(b"n+long:")
    assert named.text == b"n:" + b"x" * (most + 1)
    assert names.shared(b"x" * most).descriptor.startswith(b"n+shared+long:")


@pytest.mark.parametrize("namespace", ["", "a:b", "a+b", "a b", "x" * 65, "é", "a\n"])
def test_what_is_no_namespace_is_refused(namespace: str) -> None:
    with pytest.raises(ValueError, match="is no namespace"):
        Names(namespace)


def test_kinds_are_namespaces() -> None:
    for kind in KINDS:
        assert Names(kind).namespace == kind


# ---- Listeners -----------------------------------------------------------------------------------


def test_all_addresses_are_one_listener_for_both_families() -> None:
    with listen.tcp_socket("", 0) as listener:
        port = listener.getsockname()[1]
        assert listen.shown(listener) == f"127.0.0.1:{port}"
        with socket.create_connection(("127.0.0.1", port)):
            accepted, peer = listener.accept()
            accepted.close()
        assert listen.host_port(*peer[:2]).startswith("127.0.0.1:")
        with pytest.raises(OSError, match="in use"):
            listen.tcp_socket("", port)


def test_a_unix_socket_says_whether_somebody_lives_behind_it(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    assert not listen.somebody_listens(path)
    with listen.unix_socket(path, 0o700) as listener:
        assert listen.somebody_listens(path)
        assert listen.shown(listener) == f"unix:{path}"
    assert os.stat(path).st_mode & 0o777 == 0o700
    assert not listen.somebody_listens(path)


# ---- The life of a door --------------------------------------------------------------------------


class Plain:
    """The smallest door, in a process of its own."""

    def __init__(self, folder: Path, address: str, port: int, wrong: str = "",
                 ready: str = "ready") -> None:
        self.ready_file = folder / ready
        self.log = folder / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "plain_door.py"), address, "space",
                 str(self.ready_file), str(port), wrong],
                stdin=subprocess.DEVNULL, stderr=log)

    def said(self) -> str:
        return self.log.read_text()

    def ended(self) -> int:
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    one = Primary(tmp_path, ttl_s=2.0)
    yield one
    one.kill()


@pytest.fixture
def plains() -> Iterator[list[Plain]]:
    made: list[Plain] = []
    yield made
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_the_ready_file_is_there_while_it_accepts(
    tmp_path: Path, primary: Primary, plains: list[Plain], number: int
) -> None:
    (tmp_path / "ready").write_text("of a killed one:1\n")
    plains.append(door := Plain(tmp_path, primary.place, 0))
    until(lambda: door.ready_file.exists() and "killed" not in door.ready_file.read_text())
    host, port = door.ready_file.read_text().strip().split(":")
    with socket.create_connection((host, int(port))) as client:
        assert client.makefile("rb").read() == b"space\n"
    door.process.send_signal(signal.SIGUSR1)
    until(lambda: "door counters kind=plain namespace=space connections=1\n" in door.said())
    door.process.send_signal(number)
    assert door.ended() == 0
    assert not door.ready_file.exists()


def test_it_waits_for_its_server_and_ends_while_it_waits(
    tmp_path: Path, plains: list[Plain]
) -> None:
    address = tmp_path / "address"
    plains.append(waiting := Plain(tmp_path, str(address), 0))
    until(lambda: "door waits for its server" in waiting.said())
    waiting.process.terminate()
    assert waiting.ended() == 0
    assert not waiting.ready_file.exists()
    plains.append(patient := Plain(tmp_path, str(address), 0))
    until(lambda: "door waits for its server" in patient.said())
    primary = Primary(tmp_path)
    try:
        until(patient.ready_file.exists)
    finally:
        patient.process.terminate()
        assert patient.ended() == 0
        primary.kill()


def test_it_waits_for_room_at_its_server(tmp_path: Path, plains: list[Plain]) -> None:
    primary = Primary(tmp_path, flags=("--max-clients", "1"))
    try:
        with dlock_api.connect(primary.place):
            plains.append(door := Plain(tmp_path, primary.place, 0))
            until(lambda: "door waits for its server: " in door.said())
            assert door.process.poll() is None
        until(door.ready_file.exists)
    finally:
        primary.kill()


@pytest.mark.parametrize("place", ["no/folder/ready", "log/ready", "."])
def test_a_ready_file_that_cannot_be_written_is_told_before_anything_is_served(
    tmp_path: Path, plains: list[Plain], place: str
) -> None:
    """Nothing is asked of a server, so that no predecessor loses its place."""
    plains.append(door := Plain(tmp_path, "127.0.0.1:1", 0, ready=place))
    assert door.ended() == 1
    assert "the ready file " in door.said()
    assert "Choose another place for it" in door.said()
    assert "Traceback" not in door.said()


def test_who_cannot_have_the_port_ends_with_the_originals_words(
    tmp_path: Path, primary: Primary, plains: list[Plain]
) -> None:
    with listen.tcp_socket("127.0.0.1", 0) as taken:
        plains.append(door := Plain(tmp_path, primary.place, taken.getsockname()[1]))
        assert door.ended() == 7
        assert "error listening: " in door.said()
    plains.append(door := Plain(tmp_path, primary.place, free_port(), "late-failure"))
    assert door.ended() == 9
    assert "it cannot begin" in door.said()


def test_a_door_that_gives_up_says_why_and_fails(
    tmp_path: Path, primary: Primary, plains: list[Plain]
) -> None:
    plains.append(door := Plain(tmp_path, primary.place, 0, "ends"))
    assert door.ended() == 1
    assert "door ends: for a reason" in door.said()
    assert not door.ready_file.exists()


def test_a_stop_that_fails_is_told_and_ends_all_the_same(
    tmp_path: Path, primary: Primary, plains: list[Plain]
) -> None:
    plains.append(door := Plain(tmp_path, primary.place, 0, "failing-stop"))
    until(door.ready_file.exists)
    door.process.terminate()
    assert door.ended() == 0
    assert "door failed to stop" in door.said()
    with primary.admin() as admin:
        assert admin.stats()["clients"] == 0, "it left the server all the same"
