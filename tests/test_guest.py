"""scripts/guest: what it boots from, how qemu is called, and what comes back from a real one."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from guest import image, machine, prepare  # noqa: E402

PROGRAM = [sys.executable, str(ROOT / "scripts" / "guest")]


def prepared_in(folder: Path) -> prepare.Prepared:
    return prepare.Prepared(folder / "vmlinux", folder / "kernel", "6.1.0", folder / "python")


# ---- what it is made of --------------------------------------------------------------------------


def test_the_archive_is_one_that_cpio_reads(tmp_path: Path) -> None:
    packed = image.archive([
        ("folder", 0o40755, b""), ("folder/file", 0o100640, b"12345"), ("link", 0o120777, b"x")])
    with contextlib.suppress(FileNotFoundError):
        done = subprocess.run(
            ["busybox", "cpio", "-i", "-m"], input=packed, cwd=tmp_path, check=True,
            capture_output=True)
        assert b"TRAILER" not in done.stderr
        assert (tmp_path / "folder" / "file").read_bytes() == b"12345"
        assert (tmp_path / "folder" / "file").stat().st_mode & 0o777 == 0o640
        assert os.readlink(tmp_path / "link") == "x"
        return
    pytest.skip("there is no busybox")


def test_the_command_keeps_its_words(tmp_path: Path) -> None:
    image.fill_share(
        tmp_path, prepared_in(tmp_path), "echo 'a b'", {"NAME": "it's \"so\""},
        Path("/a folder"), None)
    shown = subprocess.run(
        ["sh", "-c", f". {tmp_path}/environment; printf %s \"$NAME\""], capture_output=True,
        check=True, text=True).stdout
    assert shown == "it's \"so\""
    assert (tmp_path / "command").read_text() == "echo 'a b'\n"
    assert "cd '/a folder'" in (tmp_path / "init").read_text()


def test_kvm_is_never_tried_by_itself() -> None:
    place = Path("/place")
    guest = machine.Guest(prepared_in(place))
    assert "tcg,thread=multi" in guest.words(place, None)
    assert not any("kvm" in word for word in guest.words(place, None))
    asked = machine.Guest(prepared_in(place), kvm=True)
    assert "kvm" in asked.words(place, None)


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "PACKAGES", {"a-package": "/nowhere/at/all"})
    with pytest.raises(prepare.Unavailable, match="missing: a-package"):
        prepare.ready(tmp_path)
    monkeypatch.setattr(prepare, "PACKAGES", {})
    with pytest.raises(prepare.Unavailable, match=f"no kernel in {tmp_path}"):
        prepare.ready(tmp_path)
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(prepare.Unavailable, match="x86-64"):
        prepare.prepare(tmp_path)


def test_a_cache_of_another_form_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "prepared.json").write_text('{"form": 0, "release": "1", "kernel": "k"}')
    assert prepare.found(tmp_path) is None
    (tmp_path / "prepared.json").write_text("half a rec")
    assert prepare.found(tmp_path) is None


def test_of_a_process_that_gives_no_status_the_log_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert image.status_from(tmp_path) is None
    (tmp_path / "serial").write_text("Kernel panic - not syncing")
    machine.tell_why("qemu ended with status 0", tmp_path / "serial")
    assert "Kernel panic" in capsys.readouterr().err


def test_output_and_end_of_a_process_come_back() -> None:
    output = io.BytesIO()
    why = machine.run_qemu(["sh", "-c", "echo some words; exit 3"], 60, output)
    assert why == "qemu ended with status 3"
    assert output.getvalue() == b"some words\n"


def test_what_does_not_end_is_ended() -> None:
    assert machine.run_qemu(["sleep", "1000"], 0.2, io.BytesIO()) == "it had not ended after 0.2 s"


# ---- a real one ----------------------------------------------------------------------------------


@pytest.fixture
def prepared() -> prepare.Prepared:
    try:
        return prepare.ready(prepare.default_cache())
    except prepare.Unavailable as problem:
        pytest.skip(f"no guest on this machine: {problem}")


@pytest.mark.usefixtures("prepared")
def test_a_command_runs_in_the_guest(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    done = subprocess.run(
        [*PROGRAM, "run", "--devices", "dummy", "--devices", "veth", "--limit", "250",
         "--env", "WORD=it's", "--shared", str(shared),
         f"ls /sys/class/infiniband; pwd; echo $WORD; id -u > {shared}/id; touch {ROOT}/x; exit 7"],
        capture_output=True, text=True, check=False, cwd=ROOT, stdin=subprocess.DEVNULL)
    assert done.returncode == 7, done.stderr
    assert done.stdout.split() == ["rxe0", "rxe1", "rxe2", str(ROOT), "it's"]
    assert (shared / "id").read_text() == "0\n"
    assert not (ROOT / "x").exists()


@pytest.mark.usefixtures("prepared")
def test_a_guest_that_gives_no_status_is_125() -> None:
    done = subprocess.run(
        [*PROGRAM, "run", "--limit", "250", "echo c > /proc/sysrq-trigger"],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == machine.NO_STATUS
    assert "Kernel panic" in done.stderr


def state_of(pid: int) -> tuple[str, str]:
    """The name of a process, and its state: Z when it has ended and nobody has asked how."""
    try:
        name, state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)
    except OSError:
        return "", "Z"
    return name.partition("(")[2], state.split()[0]


def qemus_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    children = [int(word) for task in tasks.iterdir()
                for word in (task / "children").read_text().split()]
    return [child for child in children if state_of(child)[0].startswith("qemu")]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


@pytest.mark.usefixtures("prepared")
def test_a_guest_dies_with_its_caller(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*PROGRAM, "run", "--limit", "250", "sleep 1000"], stdin=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)}) as caller:
        until(lambda: qemus_of(caller.pid))
        (qemu,) = qemus_of(caller.pid)
        caller.send_signal(signal.SIGKILL)
    until(lambda: state_of(qemu)[1] == "Z")
