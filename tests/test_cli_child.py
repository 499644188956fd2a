"""The command of `dlock run`: what it is started with, how it ends, that nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from control_client import eventually

from dlock.cli.child import CannotRunError, find

PROGRAM = """
import os, signal, sys, time
from dlock.cli.child import CannotRunError, Command
{body}
"""
START = """
command = Command({words!r}, signal_at_our_end={at_our_end}, adopt={adopt})
try:
    command.start(dict(os.environ, ADDED="yes"))
except CannotRunError as problem:
    sys.exit(problem.code)
"""
WAIT = """
while command.poll() is None:
    time.sleep(0.01)
sys.exit(command.exit_code)
"""


def program(body: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM.format(body=body)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def running(words: list[str], *, at_our_end: int = 0, adopt: bool = False,
            body: str = WAIT) -> subprocess.Popen[str]:
    return program(START.format(words=words, at_our_end=at_our_end, adopt=adopt) + body)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors, errors
    return process.returncode, output


def gone(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137),
     ("exit 255", 255)],
)
def test_it_ends_as_the_command_ends(script: str, code: int) -> None:
    assert ended(running(["sh", "-c", script]))[0] == code


def test_it_gets_the_environment_and_its_words() -> None:
    assert ended(running(["sh", "-c", 'echo "$ADDED $1"', "sh", "a b"])) == (0, "yes a b\n")


def test_signals_are_as_a_shell_leaves_them() -> None:
    """Python ignores SIGPIPE; a command that inherited that would not end with its pipe. Blocked,
    ignored and caught ones are compared with those of a command that a shell has started."""
    read = ["sh", "-c", "grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status"]
    plain = subprocess.run(read, capture_output=True, text=True, check=True).stdout
    assert ended(running(read)) == (0, plain)


def test_what_cannot_be_found_or_executed(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("echo plain")
    for words, code, text in (
        ("no-such-command-here", 127, "no-such-command-here: command not found"),
        (str(tmp_path / "missing"), 127, "missing: command not found"),
        (str(tmp_path), 126, "is a directory"),
        (str(plain), 126, "permission denied"),
    ):
        with pytest.raises(CannotRunError, match=text) as caught:
            find(words)
        assert caught.value.code == code


def test_a_script_without_a_first_line_is_run_by_the_shell(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('echo "$1"')
    script.chmod(0o755)
    assert ended(running([str(script), "x"])) == (0, "x\n")


def test_a_file_that_the_kernel_refuses_is_told(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    assert ended(running([str(script)]))[0] == 127


def test_it_ends_when_it_is_abandoned_and_when_we_die() -> None:
    body = """
command = Command(["sh", "-c", "echo began"], signal_at_our_end=0, adopt=False)
print(command.pid, flush=True)
{}
"""
    one = program(body.format("command.abandon()"))
    code, output = ended(one)
    assert (code, "began" in output) == (0, False)
    assert gone(int(output))
    other = program(body.format("os.kill(os.getpid(), signal.SIGKILL)"))
    code, output = ended(other)
    assert (code, "began" in output) == (-signal.SIGKILL, False)
    assert eventually(lambda: gone(int(output)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_command_gets_a_signal_when_we_are_killed(number: int, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = f'trap "echo TERM > {seen}; exit" TERM; echo $$; while :; do sleep 0.05; done'
    process = running(["sh", "-c", script], at_our_end=number)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert eventually(lambda: gone(pid))
    assert seen.exists() == (number == signal.SIGTERM)


def test_without_a_signal_it_goes_on_when_we_are_killed() -> None:
    process = running(["sh", "-c", "echo $$; exec sleep 60"])
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    time.sleep(0.2)
    assert not gone(pid)
    os.kill(pid, signal.SIGKILL)


def test_all_that_it_started_is_ended(tmp_path: Path) -> None:
    """A child, a grandchild in a session of its own that ignores SIGTERM, and an orphan."""
    pids = tmp_path / "pids"
    script = (
        f"echo $$ >> {pids}; sleep 60 & echo $! >> {pids};"
        f"setsid sh -c 'echo $$ >> {pids}; trap \"\" TERM; sleep 60; sleep 60' & "
        f"(sh -c 'echo $$ >> {pids}; exec sleep 60' &) ; wait")
    body = f"""
while len(open({str(pids)!r}).read().split() if os.path.exists({str(pids)!r}) else []) < 4:
    time.sleep(0.01)
command.ask_all_to_end()
while command.poll() is None:
    time.sleep(0.01)
left = command.end_all()
print(left, command.exit_code)
"""
    code, output = ended(running(["sh", "-c", script], adopt=True, body=body))
    assert (code, output) == (0, "[] 143\n")
    assert all(gone(int(pid)) for pid in pids.read_text().split())
