"""`dlock serve` as a process: its one line, its files, its signals, its exit codes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from control_client import TIMEOUT, Client, eventually, raw

from dlock.control import messages as m
from dlock.control.state_dir import decode_state
from dlock.server import listen
from dlock.types import DlockStatus as S

COMMAND = [sys.executable, "-c", "import sys; from dlock.cli import main; sys.exit(main())"]


class Serve:
    """One `dlock serve`, killed at the end if need be."""

    def __init__(
        self, folder: Path, *arguments: str, prefix: Sequence[str] = (), **environment: str
    ) -> None:
        self.process = subprocess.Popen(
            [*prefix, *COMMAND, "serve", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
            env={**os.environ, "XDG_STATE_HOME": str(folder / "home"), **environment})
        assert self.process.stdout is not None
        self.greeting = self.process.stdout.readline()
        found = re.search(r"^dlock serves on (\S+):(\d+) \(", self.greeting)
        self.host, self.port = (found[1], int(found[2])) if found else ("", 0)

    def client(self, *, init: bool = True) -> Client:
        return Client(self.host, self.port, init=init)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """(exit code, what stood on standard error)."""
        self.process.send_signal(number)
        return self.result()

    def result(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, errors


@pytest.fixture
def serves() -> Iterator[list[Serve]]:
    started: list[Serve] = []
    yield started
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


def start(
    serves: list[Serve], folder: Path, *arguments: str, prefix: Sequence[str] = (),
    **environment: str,
) -> Serve:
    serves.append(Serve(folder, *arguments, prefix=prefix, **environment))
    return serves[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_clean_life(tmp_path: Path, serves: list[Serve], number: int) -> None:
    file = tmp_path / "address"
    one = start(serves, tmp_path, "--listen", "127.0.0.1:0", "--address-file", str(file))
    assert eventually(file.exists)
    assert file.read_text().splitlines()[0] == f"{one.host}:{one.port}"
    assert re.search(r"data port \d+, epoch 1, state directory \S+address.state, "
                     r"waiting adaptive\)\n", one.greeting)
    with one.client() as client:
        assert client.get(b"a")[0].status is S.SUCCESS
        assert client.ask(m.ClientDeinit()).status is S.SUCCESS
    assert one.end(number)[0] == 0
    assert not file.exists()
    assert not decode_state((tmp_path / "address.state" / "state").read_bytes()).sessions_open


def test_flags_reach_the_server(tmp_path: Path, serves: list[Serve]) -> None:
    one = start(
        serves, tmp_path, "--listen", "localhost:0", "--state-dir", "here", "--max-locks", "1",
        "--max-clients", "1", "--max-objects", "1", "--session-ttl", "2.5", "--max-lease", "7",
        "--wait", "block", "--control-cpus", str(min(os.sched_getaffinity(0))),
        "--data-cpus", str(min(os.sched_getaffinity(0))))
    assert "state directory here, waiting block)" in one.greeting
    with one.client() as client:
        assert client.welcome is not None
        assert (client.welcome.session_ttl_ms, client.welcome.max_lease_ms) == (2500, 7000)
        assert client.get(b"a", b"b")[1].status is S.SERVER_NO_RESOURCE
    assert (tmp_path / "here" / "state").exists()


def test_a_file_reaches_the_server(tmp_path: Path, serves: list[Serve]) -> None:
    (tmp_path / "c.toml").write_text('listen = "127.0.0.1:0"\nsession-ttl = 2.5\nwait = "poll"\n')
    one = start(serves, tmp_path, "--config", "c.toml", DLOCK_WAIT="block")
    assert "state directory none, waiting block)" in one.greeting
    with one.client() as client:
        assert client.welcome is not None
        assert client.welcome.session_ttl_ms == 2500
    (tmp_path / "c.toml").write_text("session_ttl = 2.5\n")
    code, errors = start(serves, tmp_path, DLOCK_CONFIG="c.toml").result()
    assert code == 2
    assert "c.toml: there is no setting 'session_ttl'; did you mean session-ttl?" in errors


def test_the_waiting_mode_from_the_environment(tmp_path: Path, serves: list[Serve]) -> None:
    one = start(serves, tmp_path, "--listen", "127.0.0.1:0", DLOCK_WAIT="block")
    assert "state directory none, waiting block)" in one.greeting
    wrong = start(serves, tmp_path, "--listen", "127.0.0.1:0", DLOCK_WAIT="hope")
    code, errors = wrong.result()
    assert code == 2
    assert "hope" in errors


def test_the_default_state_directory_is_named_by_the_address(
    tmp_path: Path, serves: list[Serve]
) -> None:
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    one = start(serves, tmp_path, "--listen", f"127.0.0.1:{port}")
    assert one.port == port
    path = tmp_path / "home" / "dlock" / f"127.0.0.1-{port}"
    assert decode_state((path / "state").read_bytes()).epoch == 1
    assert one.end()[0] == 0
    again = start(serves, tmp_path, "--listen", f"127.0.0.1:{port}")
    assert "epoch 2" in again.greeting
    assert "grants nothing" not in again.greeting, "nobody was there"


def test_a_second_primary_on_the_same_directory_is_refused(
    tmp_path: Path, serves: list[Serve]
) -> None:
    one = start(serves, tmp_path, "--listen", "127.0.0.1:0", "--state-dir", "d")
    two = start(serves, tmp_path, "--listen", "127.0.0.1:0", "--state-dir", "d")
    code, errors = two.result()
    assert code == 4
    assert f"in use by another primary (process {one.process.pid})" in errors
    with one.client() as client:
        assert client.ask(m.Heartbeat()).status is S.SUCCESS


def test_after_a_kill_it_waits_and_then_serves(tmp_path: Path, serves: list[Serve]) -> None:
    flags = ("--state-dir", "d", "--session-ttl", "3", "--address-file", "a")
    one = start(serves, tmp_path, "--listen", "127.0.0.1:0", *flags)
    with one.client():
        assert one.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert (tmp_path / "a").exists()
    two = start(serves, tmp_path, "--listen", f"127.0.0.1:{one.port}", *flags)
    assert two.port == one.port, "it can be taken again at once"
    assert re.search(r"epoch 2.*grants nothing for the next 3\.9 s", two.greeting)
    with two.client() as early:
        assert early.welcome == m.Welcome(S.NOT_READY)
        assert eventually(lambda: early.stats()["ready"] == 1)
    with two.client() as client:
        assert client.welcome is not None
        assert client.welcome.status is S.SUCCESS
        assert client.welcome.epoch == 2
    code, errors = two.end()
    assert code == 0
    assert "recovery begins" in errors
    assert "recovery ends" in errors


def test_without_a_state_directory_it_waits_a_session_ttl(
    tmp_path: Path, serves: list[Serve]
) -> None:
    (tmp_path / "a").write_text("old:1\nepoch 41 pid 1\n")
    one = start(serves, tmp_path, "--listen", "127.0.0.1:0", "--state-dir", "none",
                "--session-ttl", "3", "--address-file", "a")
    assert re.search(r"epoch 42, state directory none.*for the next 3\.1 s", one.greeting)
    with one.client() as early:
        assert early.welcome == m.Welcome(S.NOT_READY)
        assert eventually(lambda: early.stats()["ready"] == 1)
    with one.client() as client:
        assert client.welcome is not None
        assert client.welcome.declared_lease_ms == 3_600_000


def test_an_address_file_of_another_primary_is_left_alone(
    tmp_path: Path, serves: list[Serve]
) -> None:
    one = start(serves, tmp_path, "--listen", "127.0.0.1:0", "--address-file", "a",
                "--state-dir", "d")
    assert eventually((tmp_path / "a").exists)
    (tmp_path / "a").write_text("other:1\n")
    assert one.end()[0] == 0
    assert (tmp_path / "a").read_text() == "other:1\n"


def test_it_stops_when_it_was_replaced(tmp_path: Path, serves: list[Serve]) -> None:
    one = start(serves, tmp_path, "--listen", "127.0.0.1:0", "--state-dir", "d",
                "--session-ttl", "1")
    (tmp_path / "d" / "state").unlink()
    code, errors = one.result()
    assert code == 1
    assert "stopped serving: the state directory d cannot be confirmed" in errors


def test_errors_say_what_and_what_to_do(tmp_path: Path, serves: list[Serve]) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "state").write_bytes(b"garbage")
        any_port = ("--listen", "127.0.0.1:0")
        for arguments, code, words in (
            (("--listen", f"127.0.0.1:{port}"), 3, f"cannot listen on 127.0.0.1:{port}"),
            ((*any_port, "--data-port", str(port)), 3, "for data"),
            (("--listen", "no.such.host.invalid:1"), 3, "no address to listen on"),
            ((*any_port, "--control-cpus", "4000"), 2, "CPU 4000"),
            ((*any_port, "--data-cpus", "x"), 2, "no list of CPUs"),
            ((*any_port, "--max-locks", "0"), 2, "max_locks is 0"),
            ((*any_port, "--session-ttl", "0.5"), 2, "session_ttl"),
            ((*any_port, "--session-ttl", "nan"), 2, "no number of seconds"),
            (("--listen", "here:99999"), 2, "HOST:PORT"),
            ((*any_port, "--state-dir", "bad"), 4, "damaged"),
            ((*any_port, "--state-dir", "d", "--address-file", "no/where"), 4, "no/where cannot"),
        ):
            one = start(serves, tmp_path, *arguments)
            got, errors = one.result()
            assert (got, words in errors) == (code, True), (arguments, got, errors)
            assert "Traceback" not in errors


def test_it_outlives_a_lack_of_descriptors(tmp_path: Path, serves: list[Serve]) -> None:
    one = start(serves, tmp_path, "--listen", "127.0.0.1:0",
                prefix=("sh", "-c", 'ulimit -n 40; exec "$@"', "sh"))
    with one.client() as client:
        idle = [raw(one.host, one.port) for _ in range(80)]
        assert client.ask(m.Heartbeat()).status is S.SUCCESS
        for connection in idle:
            connection.close()
        with one.client() as later:
            assert later.get(b"a")[0].status is S.SUCCESS
    code, errors = one.end()
    assert code == 0
    assert "at most 40 files may be open, 1000 clients may need 5024" in errors
    assert "cannot accept" in errors


def test_help_lists_the_exit_codes() -> None:
    done = subprocess.run([*COMMAND, "serve", "--help"], capture_output=True, text=True,
                          timeout=60, check=True)
    for code in range(6):
        assert re.search(rf"^  {code}  \w", done.stdout, re.M)
