"""`dlock serve` as a process: its one line, its files, its signals, its exit codes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from control_client import TIMEOUT, Client, encode, eventually, raw
from state_dir_children import ids, on_disk

from dlock import _core
from dlock.control import messages as m
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
    assert ids(tmp_path / "address.state") == set()


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
    assert (tmp_path / "here" / "state-1").exists()


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
    assert on_disk(path).epoch == 1
    assert one.end()[0] == 0
    again = start(serves, tmp_path, "--listen", f"127.0.0.1:{port}")
    assert "epoch 2" in again.greeting
    assert "waits" not in again.greeting, "nobody was there"


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
    assert re.search(r"epoch 2.*; waits for 1 client of the former primary$", two.greeting)
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
    (tmp_path / "d" / "state-1").unlink()
    code, errors = one.result()
    assert code == 1
    assert "stopped serving: the state directory d cannot be confirmed" in errors


def test_taking_over_is_said(tmp_path: Path, serves: list[Serve]) -> None:
    flags = ("--listen", "127.0.0.1:0", "--state-dir", "d", "--session-ttl", "1")
    one = start(serves, tmp_path, *flags)
    two = start(serves, tmp_path, *flags, DLOCK_TAKE_OVER="yes")
    assert re.search(r"epoch 2.*; grants nothing for the next 0\.4 s", two.greeting)
    code, errors = one.result()
    assert code == 1
    assert "stopped serving: another primary took over the state directory d" in errors
    with two.client(init=False) as client:
        assert eventually(lambda: client.stats()["ready"] == 1)
    assert two.end()[0] == 0


STOPPED_S = 2.2  # more than a quarter of the session_ttl, 8 s: its last confirmation is over


def data_frame(op: int, client_id: int, request_id: int) -> bytes:
    """A request of this client on its data connection."""
    request = _core.ffi.new("struct dlk_request *", {
        "request_id": request_id, "op": op, "session": client_id, "entry": _core.DLK_NONE})
    return bytes(_core.ffi.buffer(request))


def attached(one: Serve, client: Client) -> socket.socket:
    """A data connection of this client, attached."""
    welcome = client.welcome
    assert welcome is not None
    data = raw(one.host, welcome.data_port)
    attach = _core.ffi.new("struct dlk_attach *", {
        "request_id": 1, "op": _core.DLK_OP_ATTACH, "version": 1,
        "client_id": welcome.client_id, "attach": welcome.attach,
        "session_slot": welcome.session_slot, "magic": _core.DLK_ATTACH_MAGIC,
        "secret": welcome.secret})
    data.sendall(bytes(_core.ffi.buffer(attach)))
    assert len(data.recv(_core.DLK_FRAME_BYTES, socket.MSG_WAITALL)) == _core.DLK_FRAME_BYTES
    return data


def asked_while_stopped(one: Serve, client: Client, data: socket.socket) -> None:
    """Stops it for longer than it may serve unconfirmed, with a request on either plane."""
    assert client.welcome is not None
    one.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, one.process.pid, os.WSTOPPED | os.WNOWAIT)
    data.sendall(data_frame(_core.DLK_OP_PING, client.welcome.client_id, 2))
    time.sleep(STOPPED_S)


def test_one_that_was_stopped_and_replaced_answers_nothing(
    tmp_path: Path, serves: list[Serve]
) -> None:
    """Neither a request that it had before, nor one of after, on either plane."""
    flags = ("--listen", "127.0.0.1:0", "--state-dir", "d", "--session-ttl", "8")
    one = start(serves, tmp_path, *flags)
    with one.client() as client, attached(one, client) as data, raw(one.host, one.port) as other:
        asked_while_stopped(one, client, data)
        other.sendall(encode(1, m.Stats()))
        two = start(serves, tmp_path, *flags, "--take-over")
        assert "epoch 2" in two.greeting
        one.process.send_signal(signal.SIGCONT)
        code, errors = one.result()
        assert (data_of(data), data_of(other)) == (b"", b"")
    assert code == 1
    assert ("stopped serving: another primary took over the state directory d: it has epoch 2, "
            "this one has 1") in errors


def data_of(connection: socket.socket) -> bytes:
    """All that comes until the end."""
    connection.settimeout(TIMEOUT)
    found = b""
    while True:
        try:
            received = connection.recv(65536)
        except ConnectionResetError:
            return found
        if not received:
            return found
        found += received


def test_one_that_was_only_stopped_confirms_and_goes_on(
    tmp_path: Path, serves: list[Serve]
) -> None:
    one = start(serves, tmp_path, "--listen", "127.0.0.1:0", "--state-dir", "d",
                "--session-ttl", "8")
    with one.client() as client, attached(one, client) as data:
        asked_while_stopped(one, client, data)
        one.process.send_signal(signal.SIGCONT)
        data.settimeout(TIMEOUT)
        assert len(data.recv(64, socket.MSG_WAITALL)) == 64
    with one.client(init=False) as after:
        assert after.stats()["ready"] == 1
    assert one.end()[0] == 0


def test_the_address_file_shows_the_epoch_of_a_new_beginning(
    tmp_path: Path, serves: list[Serve]
) -> None:
    """Without a state directory: also the next start is above it."""
    flags = ("--listen", "127.0.0.1:0", "--state-dir", "none", "--address-file", "a",
             "--session-ttl", "1")
    one = start(serves, tmp_path, *flags)
    assert eventually((tmp_path / "a").exists)
    assert (tmp_path / "a").read_text().splitlines()[1].startswith("epoch 1 ")
    with one.client(init=False) as stranger:
        assert stranger.ask(m.ClientReinit(1, 1, 7, b"s" * 16, 41, 5, 0, {})).status is S.NOT_READY
    assert eventually(lambda: "epoch 42 " in (tmp_path / "a").read_text())
    one.end(signal.SIGKILL)
    assert "epoch 43," in start(serves, tmp_path, *flags).greeting


def test_errors_say_what_and_what_to_do(tmp_path: Path, serves: list[Serve]) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "state-3").write_bytes(b"garbage")
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
            ((*any_port, "--recovery-deadline", "10"), 2, "the recovery deadline is 10000 ms"),
            ((*any_port, "--take-over", "perhaps"), 2, "'perhaps' is neither yes nor no"),
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
