"""`dlock drill` as an operator runs it: the menu, refusals, rounds with real processes, its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_tools import Done, dlock, finish, start

from dlock.client import connect as dlock_connect
from dlock.drill import records
from dlock.drill.fault import Fault
from dlock.drill.faults import BY_NAME, MENU
from dlock.drill.ground import Ground
from dlock.drill.places import free_ports
from dlock.drill.primary import ASK_S, JoinedPrimaries, OwnPrimaries
from dlock.drill.records import Record

PATIENCE_S = 150.0
DRILL_S = 900.0  # by when a drill has come to its end, on any machine

pytestmark = pytest.mark.timeout(1000)


def drilled(folder: Path, *words: str) -> tuple[Done, list[Record]]:
    """A drill to its end, and what it wrote down."""
    keep = folder / "drill"
    process = start("drill", "--keep", str(keep), *words)
    try:
        out, err = process.communicate(timeout=DRILL_S)
    finally:
        process.kill()
    done = Done(process.returncode, out, err)
    return done, records.read(keep) if keep.exists() else []


def some(found: list[Record], kind: type[Record]) -> list[Record]:
    return [one for one in found if isinstance(one, kind)]


# ---- The menu ------------------------------------------------------------------------------------


def test_the_list_explains_every_fault() -> None:
    done = dlock("drill", "--list")
    assert done.code == 0
    blocks = done.out.strip().split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == list(BY_NAME)
    for block in blocks:
        for word in ("done: ", "must: ", "needs: "):
            assert f"\n    {word}" in block
    assert max(map(len, done.out.splitlines())) <= 80


def test_names_of_faults_are_those_of_the_issue() -> None:
    assert len(BY_NAME) == len(MENU)
    assert set(BY_NAME) == {
        "kill-primary", "kill-in-batch", "kill-in-recovery", "stop-primary", "stop-client",
        "client-never-back", "cut", "lost-replies", "partition", "clock-step", "wall-clock",
        "reconnect-storm"}


@pytest.mark.parametrize(("words", "text"), [
    (("--faults", "nonsense"), "there is no fault 'nonsense'; there are kill-primary, "),
    (("--faults", "wall-clock"), "wall-clock cannot be done here: it steps the wall clock of the "),
    (("--kill-command", "true"), "--address says where it is"),
    (("--faults", "kill-primary", "--address", "127.0.0.1:9"), "it needs --kill-command and "),
    (("--faults", "stop-primary", "--address", "127.0.0.1:9"), "it needs --stop-command and "),
    (("--faults", "cut", "--address", "127.0.0.1:9"), "--data-port says it"),
    (("--faults", "partition", "--address", "127.0.0.1:9"), "it needs a primary that the drill "),
    (("--faults", "stop-client", "--address", "127.0.0.1:9"), "no primary can be joined at "),
    (("--rounds", "0"), "no whole number above 0"),
    (("--clients", "65"), "'65' is more than 64"),
    (("--seed", "x"), "'x' is no seed"),
    (("--keep", "/proc"), "the folder /proc is not empty"),
    (("--keep", "/dev/null/x"), "cannot be used"),
    (("--json", "/nowhere/x"), "--json /nowhere/x: there is no such folder"),
    (("--picture", "/tmp/x.doc"), "a picture ends with .png, "),
])
def test_what_cannot_be_done_is_refused_with_a_reason(
    words: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    done = dlock("drill", *words, added={"TMPDIR": str(tmp_path)})
    assert done.code == 2
    assert text in done.err
    assert done.out == ""
    assert not list(tmp_path.iterdir())


def test_without_root_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert BY_NAME["partition"].missing(Ground()) == "network namespaces need root"
    assert BY_NAME["clock-step"].missing(Ground()) == "time namespaces need root"
    for fault in MENU:
        if fault.name not in ("partition", "clock-step", "wall-clock"):
            assert not fault.missing(Ground()), fault.name


def possible(fault: Fault) -> bool:
    return not fault.missing(Ground())


# ---- Rounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", MENU, ids=lambda fault: fault.name)
def test_every_fault_once(fault: Fault, tmp_path: Path) -> None:
    why = fault.missing(Ground())
    if why:
        pytest.skip(why)
    done, found = drilled(
        tmp_path, "--faults", fault.name, "--rounds", "1", "--clients", "4",
        "--storm-clients", "60")
    assert done.code == 0, done
    assert [one.fault for one in some(found, records.RoundEnded)] == [fault.name]
    assert some(found, records.FaultBegun)
    assert some(found, records.FaultEnded)
    assert not some(found, records.Problem)
    assert {one.flavour for one in some(found, records.ClientStarted)} >= {"sync", "aio", "mirror"}


def test_twenty_kills_of_the_primary(tmp_path: Path) -> None:
    done, found = drilled(tmp_path, "--faults", "kill-primary", "--rounds", "20", "--seed", "7")
    assert done.code == 0, done
    assert len(some(found, records.PrimaryKilled)) == 20
    assert len(some(found, records.RoundEnded)) == 20
    tokens = [one.token for one in some(found, records.Hold)]
    assert {records.epoch_of(token) for token in tokens} >= set(range(1, 21))
    assert not [one for one in some(found, records.Hold) if one.ended == records.UNTOLD]


def test_what_is_not_possible_here_is_said(tmp_path: Path) -> None:
    done, found = drilled(tmp_path, "--rounds", "1", "--clients", "1", "--seed", "3")
    assert "skipped: wall-clock: " in done.err
    assert [one.fault for one in some(found, records.Skipped)].count("wall-clock") == 1


def test_a_seed_draws_the_same_faults(tmp_path: Path) -> None:
    told = []
    for number in range(2):
        folder = tmp_path / str(number)
        done, found = drilled(folder, "--faults", "cut,lost-replies", "--rounds", "3", "--seed",
                              "11", "--clients", "2")
        assert done.code == 0, done
        told.append([(one.fault, one.detail.split(" after ")[0])
                     for one in some(found, records.FaultBegun)])
    assert told[0] == told[1]


def test_a_primary_that_is_slow_to_answer_is_waited_for(tmp_path: Path) -> None:
    writer = records.Writer(tmp_path / f"drill{records.SUFFIX}")
    primaries = OwnPrimaries(tmp_path, writer, free_ports(), session_ttl_s=60.0)
    try:
        primaries.start()
        primaries.stop()
        timer = threading.Timer(3 * ASK_S, primaries.go_on)
        timer.start()
        assert primaries.asked(lambda admin: admin.stats())["epoch"] == 1
        timer.join()
    finally:
        primaries.close()
        writer.close()


def test_a_drill_that_is_ended_while_it_kills_a_primary_has_seen_no_violation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EndedError(Exception):
        pass

    def wait(*_: object) -> int:
        monkeypatch.undo()
        raise EndedError

    writer = records.Writer(tmp_path / f"drill{records.SUFFIX}")
    primaries = OwnPrimaries(tmp_path, writer, free_ports(), session_ttl_s=60.0)
    try:
        primaries.start()
        monkeypatch.setattr(subprocess.Popen, "wait", wait)
        with pytest.raises(EndedError):
            primaries.kill()
    finally:
        primaries.close()
        writer.close()
    found = records.read(tmp_path)
    assert some(found, records.PrimaryKilled)
    assert [one.expected for one in some(found, records.PrimaryExited)] == [True]


# ---- Joined --------------------------------------------------------------------------------------


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """A primary that is not the drill's: the flags that join it."""
    port, data_port = free_ports(("127.0.0.1", "127.0.0.2"))
    script = tmp_path / "primary.sh"
    script.write_text(f"""
        {sys.executable} -c 'import sys; from dlock.cli import main; sys.exit(main())' serve \
            --listen 127.0.0.1:{port} --data-port {data_port} --state-dir {tmp_path}/state \
            --session-ttl 1 > /dev/null 2> {tmp_path}/serve.log &
        echo $! > {tmp_path}/pid
        echo $! >> {tmp_path}/pids
    """)
    pid = f"$(cat {tmp_path}/pid)"
    subprocess.run(["sh", str(script)], check=True)
    yield (
        "--address", f"127.0.0.1:{port}", "--data-port", str(data_port),
        "--kill-command", f"kill -9 {pid}", "--start-command", f"sh {script}",
        "--stop-command", f"kill -STOP {pid}", "--continue-command", f"kill -CONT {pid}")
    # One that was started while another served has ended by itself.
    for started in (tmp_path / "pids").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(started), signal.SIGKILL)


def test_a_primary_that_is_joined(joined: tuple[str, ...], tmp_path: Path) -> None:
    done, found = drilled(
        tmp_path, *joined, "--faults", "kill-primary,stop-primary,cut,stop-client",
        "--rounds", "4")
    assert done.code == 0, done
    assert len(some(found, records.PrimaryKilled)) == 1
    assert len(some(found, records.RoundEnded)) == 4
    assert [one.pid for one in some(found, records.PrimaryStarted)] == [0]


@pytest.mark.parametrize("fault", ["kill-primary", "stop-primary"])
def test_a_joined_primary_is_brought_back_when_the_drill_is_ended(
    fault: str, joined: tuple[str, ...], tmp_path: Path
) -> None:
    keep = tmp_path / "drill"
    process = start("drill", "--keep", str(keep), *joined, "--faults", fault, "--clients", "1")
    try:
        await_fault(process, keep)
        process.send_signal(signal.SIGINT)
        done = finish(process, PATIENCE_S)
    finally:
        process.kill()
    assert done.code in (0, 130), done  # 0: it had come to its end before
    with dlock_connect(joined[1], timeout=PATIENCE_S) as client, client.lock("free"):
        pass


def test_what_brings_a_joined_primary_back_comes_after_what_broke_it(tmp_path: Path) -> None:
    """Also when the drill is ended while the command that breaks it runs."""

    class EndedError(Exception):
        pass

    def end(_number: int, _frame: object) -> None:
        raise EndedError

    def end_in_the_middle() -> None:
        while "begun" not in log.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    log = tmp_path / "log"
    log.touch()
    writer = records.Writer(tmp_path / f"drill{records.SUFFIX}")
    primaries = JoinedPrimaries(
        "127.0.0.1:9", writer, kill="", start="", go_on=f"echo continued >> {log}",
        stop=f"echo begun >> {log}; sleep 1; echo stopped >> {log}")
    former = signal.signal(signal.SIGUSR1, end)
    try:
        threading.Thread(target=end_in_the_middle).start()
        with pytest.raises(EndedError):
            primaries.stop()
        primaries.close()
    finally:
        signal.signal(signal.SIGUSR1, former)
        writer.close()
    assert log.read_text().split() == ["begun", "stopped", "continued"]


def await_fault(process: subprocess.Popen[str], keep: Path) -> None:
    """Until something is broken."""
    deadline = time.monotonic() + PATIENCE_S
    while not some(records.read(keep) if keep.exists() else [], records.FaultBegun):
        assert time.monotonic() < deadline, "no fault in time"
        assert process.poll() is None
        time.sleep(0.005)


# ---- Its end -------------------------------------------------------------------------------------


def processes_of(folder: Path) -> list[int]:
    """Those that name this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(folder) in words and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def until_none(folder: Path) -> list[int]:
    deadline = time.monotonic() + PATIENCE_S
    while (left := processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("fault", ["kill-primary", "stop-primary"])
def test_nothing_is_left_when_the_drill_is_ended(
    fault: str, number: signal.Signals, tmp_path: Path
) -> None:
    keep = tmp_path / "drill"
    process = start("drill", "--faults", fault, "--seconds", "600", "--keep", str(keep))
    try:
        await_fault(process, keep)
        assert len(processes_of(keep)) > 2
        process.send_signal(number)
        if number is signal.SIGKILL:
            process.communicate(timeout=PATIENCE_S)
        else:
            done = finish(process, PATIENCE_S)
            assert done.code == 128 + number, done
            assert some(records.read(keep), records.DrillEnded)
    finally:
        process.kill()
        process.wait()
    assert not until_none(keep)


def test_the_report_as_json(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    words = ("--faults", "cut", "--rounds", "1", "--clients", "3", "--seed", "4")
    done, found = drilled(tmp_path, *words, "--json", str(file))
    assert done.code == 0, done
    assert "verdict: no violation" in done.out
    report = json.loads(file.read_text())
    assert report["status"] == 0
    assert report["drill"]["seed"] == 4
    assert report["records"] == len(found)
    again = finish(start("drill", *words, "--json", "-"), DRILL_S)
    assert again.json["status"] == 0


def test_without_keep_no_folder_is_left(tmp_path: Path) -> None:
    done = finish(start("drill", "--faults", "cut", "--rounds", "1", "--clients", "2",
                        added={"TMPDIR": str(tmp_path)}), DRILL_S)
    assert done.code == 0, done
    assert not list(tmp_path.iterdir())
