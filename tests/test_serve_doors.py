"""`dlock serve --door`: doors beside a primary are started, watched, and end with it. The door here
is tests/plain_door.py, which stands in the place of a kind in all processes of a test."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_tools import environment
from door_clients import CLIENTS, words
from door_tools import DLOCK_MODULE, Ready, free_port
from failover_tools import PATIENCE_S, until

from dlock.doors.names import KINDS

HERE = Path(__file__).resolve().parent
INSTEAD = f"""
import sys
sys.path.append({str(HERE)!r})
from dlock.doors import names
names.KINDS["glockd"] = names.KINDS["ldlm"] = "plain_door"
"""


class Serve:
    """`dlock serve` with doors; its log is a file."""

    def __init__(self, folder: Path, *words: str, listen: str = "127.0.0.1:0",
                 plain: bool = True, **added: str) -> None:
        (folder / "sitecustomize.py").write_text(INSTEAD if plain else "")
        self.log = folder / "serve.log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*DLOCK_MODULE, "serve", "--listen", listen, "--state-dir",
                 str(folder / "state"), "--session-ttl", "2", "--wait", "block", *words],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, cwd=folder,
                env=environment(None, PYTHONPATH=str(folder), **added))

    def said(self) -> str:
        return self.log.read_text()

    def greeting(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def pids(self) -> list[int]:
        """Of all doors that it has started so far."""
        return [int(pid) for pid in re.findall(r"a door starts .* pid=(\d+)", self.said())]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(2 * PATIENCE_S)


@pytest.fixture
def serves() -> Iterator[list[Serve]]:
    made: list[Serve] = []
    yield made
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


def answer(port: int) -> bytes:
    """What a plain door says; nothing if none is there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as client:
        return client.makefile("rb").read()
    return b""


def gone(pid: int) -> bool:
    """Has this process ended? One that nobody has waited for yet has, too."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def test_doors_are_there_while_the_primary_serves(tmp_path: Path, serves: list[Serve]) -> None:
    """Any number, also several of a kind: by flag here, in TOML below."""
    ports = [free_port() for _ in range(3)]
    serves.append(one := Serve(
        tmp_path, "--door", f"glockd={ports[0]}", "--door", f"ldlm={ports[1]}",
        "--door", f"glockd=--namespace other --ready-file {tmp_path}/ready {ports[2]}"))
    assert one.greeting().startswith("dlock serves on ")
    until(lambda: [answer(port) for port in ports] == [b"glockd\n", b"ldlm\n", b"other\n"])
    until(lambda: (tmp_path / "ready").exists())
    pids = one.pids()
    assert len(pids) == 3
    assert one.end() == 0
    assert all(map(gone, pids))
    assert [answer(port) for port in ports] == [b"", b"", b""]
    assert not (tmp_path / "ready").exists()
    assert one.said().count("door serves") == 3


def test_a_file_and_the_environment_say_the_same(tmp_path: Path, serves: list[Serve]) -> None:
    by_file, by_variable = free_port(), free_port()
    (tmp_path / "c.toml").write_text(
        f"[[door]]\nkind = 'glockd'\nnamespace = 'filed'\nflags = ['{by_file}']\n")
    serves.append(one := Serve(tmp_path, "--config", "c.toml"))
    until(lambda: answer(by_file) == b"filed\n")
    assert one.end() == 0
    serves.append(two := Serve(tmp_path, DLOCK_DOOR=f"glockd=--namespace told {by_variable}"))
    until(lambda: answer(by_variable) == b"told\n")
    assert two.end(signal.SIGINT) == 0
    with socket.socket() as free:  # it went with the primary
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", by_variable))


def test_a_door_that_dies_is_started_again(tmp_path: Path, serves: list[Serve]) -> None:
    port = free_port()
    serves.append(one := Serve(tmp_path, "--door", f"glockd={port}"))
    until(lambda: answer(port) == b"glockd\n")
    (first,) = one.pids()
    os.kill(first, signal.SIGKILL)
    until(lambda: len(one.pids()) == 2)
    until(lambda: answer(port) == b"glockd\n")
    assert re.search(rf"a door has ended kind=glockd namespace=glockd pid={first} code=-9 "
                     rf"again_in_s=0\.2", one.said())
    assert one.end() == 0


def test_one_that_cannot_go_on_is_tried_less_and_less_often(
    tmp_path: Path, serves: list[Serve]
) -> None:
    serves.append(one := Serve(tmp_path, "--door", f"glockd={free_port()} late-failure"))
    until(lambda: one.said().count("a door has ended") >= 3)
    assert re.findall(r"again_in_s=(\S+)", one.said())[:3] == ["0.2", "0.4", "0.8"]
    assert "it cannot begin" in one.said()
    assert one.end() == 0


def test_no_door_outlives_a_primary_that_is_killed(tmp_path: Path, serves: list[Serve]) -> None:
    """And its port can be had at once by the doors of the next one."""
    port = free_port()
    serves.append(one := Serve(tmp_path, "--door", f"glockd={port}"))
    address = re.search(r"on (\S+) ", one.greeting())
    assert address
    until(lambda: answer(port) == b"glockd\n")
    (door,) = one.pids()
    one.end(signal.SIGKILL)
    until(lambda: gone(door))
    assert answer(port) == b""
    serves.append(two := Serve(tmp_path, "--door", f"glockd={port}", listen=address[1]))
    until(lambda: answer(port) == b"glockd\n")
    assert two.end() == 0


def quickly(monkeypatch: pytest.MonkeyPatch, name: str, value: float) -> None:
    """Another of its times, in the processes of this test."""
    quick = f"import dlock.cli.serve_doors as one\none.{name} = {value}\n"
    monkeypatch.setattr(sys.modules[__name__], "INSTEAD", INSTEAD + quick)


def test_asked_for_counters_it_has_its_doors_tell_theirs(
    tmp_path: Path, serves: list[Serve], monkeypatch: pytest.MonkeyPatch
) -> None:
    quickly(monkeypatch, "STEADY_S", 0.0)
    port = free_port()
    serves.append(one := Serve(tmp_path, "--door", f"glockd={port}"))
    until(lambda: answer(port) == b"glockd\n")
    one.process.send_signal(signal.SIGUSR1)
    until(lambda: "door counters kind=plain namespace=glockd connections=" in one.said())
    assert len(one.pids()) == 1
    assert one.end() == 0


def test_a_door_that_does_not_end_is_killed(
    tmp_path: Path, serves: list[Serve], monkeypatch: pytest.MonkeyPatch
) -> None:
    quickly(monkeypatch, "STOP_SECONDS", 1.0)
    port = free_port()
    serves.append(one := Serve(tmp_path, "--door", f"glockd={port} deaf"))
    until(lambda: answer(port) == b"glockd\n")
    (door,) = one.pids()
    assert one.end() == 0
    assert gone(door)
    assert f"a door does not end and is killed pid={door}" in one.said()


def door_of(ready_file: Path) -> Ready:
    """A door that says where it is."""
    until(ready_file.exists)
    return Ready(ready_file.read_text().splitlines())


def test_the_real_doors_are_served_and_their_locks_are_free_after_a_kill(
    tmp_path: Path, serves: list[Serve]
) -> None:
    """A session lives on for minutes here, so nothing can wait for its end. Each door is the next
    one's predecessor, though both are gone when it begins."""
    flags = ["--session-ttl", "600"]
    for kind in KINDS:
        text = shlex.join(["--ready-file", str(tmp_path / kind), *words(kind, tmp_path, kind)])
        flags += ["--door", f"{kind}={text}"]
    ready = {client: tmp_path / client.partition("-")[0] for client in CLIENTS}
    address = "127.0.0.1:0"
    for _ in range(2):
        serves.append(one := Serve(tmp_path, *flags, listen=address, plain=False))
        address = re.findall(r"on (\S+) ", one.greeting())[0]
        for kind, file in ready.items():
            client = CLIENTS[kind](door_of(file))
            assert client.try_lock(f"of {kind}"), "it is free though nobody gave it back"
            client.close()
            client = CLIENTS[kind](door_of(file))
            assert client.try_lock(f"of another {kind}")
        one.end(signal.SIGKILL)
        until(lambda: all(map(gone, serves[-1].pids())))
        for file in ready.values():
            file.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("doors", "said"),
    [
        (["glockd=x"], "dlock serve: --door glockd=x: plain: ['x'] begins with no port\n"),
        (["ldlm=1", "glockd=x 'y z'"], "--door glockd=x 'y z': plain: ['x', 'y z'] begins"),
        (["glockd=0"], "--door glockd=0: plain: help\n"),
        (["glockd=1", "glockd=2"], "another one of this kind has the namespace glockd, and each"),
        (["gloc=1"], "'gloc' is no kind of door"),
        (["glockd"], "'glockd' is not KIND='words'"),
        (["glockd=--connect h:1"], "the door serves from this primary"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_served(
    tmp_path: Path, serves: list[Serve], doors: list[str], said: str
) -> None:
    flags = [flag for door in doors for flag in ("--door", door)]
    serves.append(one := Serve(tmp_path, *flags))
    assert one.greeting() == ""
    assert one.process.wait(PATIENCE_S) == 2
    assert said in one.said()
    assert "Traceback" not in one.said()


def test_the_printed_settings_show_the_doors(tmp_path: Path, serves: list[Serve]) -> None:
    serves.append(one := Serve(tmp_path, "--door", "glockd=--namespace n 1 ends",
                               "--print-config"))
    out, _ = one.process.communicate(timeout=PATIENCE_S)
    assert out.decode().endswith(
        '\n[[door]]  # --door\nkind = "glockd"\nnamespace = "n"\nflags = ["1", "ends"]\n')
