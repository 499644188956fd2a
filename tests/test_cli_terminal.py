"""`dlock run` and `dlock top` at a terminal: Ctrl-C, Ctrl-Z, who is waited for, a key that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cli_tools import DLOCK, environment
from mirror_tools import Service, until

from dlock.admin import Admin

SECONDS = 30.0
PROMPT = "your turn> "


class Terminal:
    """A command at a terminal of its own, of 80 columns and 24 lines."""

    def __init__(self, command: Sequence[str], address: str) -> None:
        self.seen = ""
        self.pid, self._end = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command,
                       environment(address, TERM="xterm", LC_ALL="C.UTF-8", PS1=PROMPT))
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.status: int | None = None

    def press(self, keys: bytes) -> None:
        os.write(self._end, keys)

    def read_until(self, *words: str) -> str:
        """Everything that it printed, once one of these is in it."""
        end = time.monotonic() + SECONDS
        while not any(one in self.seen for one in words):
            assert time.monotonic() < end, self.seen
            if select.select([self._end], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self._end, 65536).decode(errors="replace")
                except OSError:  # the last one has closed the terminal
                    assert words in self.seen, self.seen
        return self.seen

    def wait(self) -> int:
        """Its exit code."""
        end = time.monotonic() + SECONDS
        while self.status is None:
            assert time.monotonic() < end, self.seen
            if select.select([self._end], [], [], 0.02)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self._end, 65536).decode(errors="replace")
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.status = status
        return os.waitstatus_to_exitcode(self.status)

    def close(self) -> None:
        if self.status is None:
            for kill in (os.killpg, os.kill):  # the group is there once the child has made it
                with contextlib.suppress(ProcessLookupError):
                    kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._end)


@contextlib.contextmanager
def at_terminal(command: Sequence[str], address: str) -> Iterator[Terminal]:
    one = Terminal(command, address)
    try:
        yield one
    finally:
        one.close()


def terminal(*words: str, address: str) -> contextlib.AbstractContextManager[Terminal]:
    """`dlock` with these words."""
    return at_terminal([*DLOCK, *words], address)


def shell(address: str) -> contextlib.AbstractContextManager[Terminal]:
    """A shell with job control."""
    return at_terminal(["bash", "--norc", "--noprofile", "-i"], address)


@pytest.fixture
def where(service: Service) -> str:
    return f"127.0.0.1:{service.port}"


def test_ctrl_c_reaches_the_command_once(where: str, tmp_path: Path) -> None:
    """From the terminal (SI_KERNEL), and not a second time from `dlock run`."""
    script = tmp_path / "script"
    script.write_text(
        "import signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"
        "print('rea' 'dy', flush=True)\n"
        "first = signal.sigwaitinfo([signal.SIGINT])\n"
        "second = signal.sigtimedwait([signal.SIGINT], 0.5)\n"
        "print('codes', first.si_code, second)\n")
    with terminal("run", "a", "--", DLOCK[0], str(script), address=where) as one:
        one.read_until("ready")
        one.press(b"\x03")
        assert one.wait() == 0
        assert "codes 128 None" in one.seen


def test_ctrl_c_while_waiting(where: str) -> None:
    with terminal("run", "a", "--", "sleep", "60", address=where) as one, Admin(where) as admin:
        until(lambda: any(lock.holders for lock in admin.locks()))
        with terminal("run", "a", "--", "true", address=where) as other:
            until(lambda: any(lock.waiters for lock in admin.locks()))
            other.press(b"\x03")
            assert other.wait() == 130
            assert "Traceback" not in other.seen
        one.press(b"\x03")
        assert one.wait() == 130
        until(lambda: not any(lock.holders or lock.waiters for lock in admin.locks()))


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_ctrl_z_stops_both_and_fg_lets_both_go_on(where: str, tmp_path: Path) -> None:
    """In a shell with job control, as everywhere; the command may read from the terminal."""
    script = tmp_path / "script"
    script.write_text("echo read''y; read word; echo got $word")
    with shell(where) as one:
        one.press(f'dlock() {{ {DLOCK[0]} -c "{DLOCK[2]}" "$@"; }}\n'.encode())
        one.press(f"dlock run a -- sh {script}\n".encode())
        one.read_until("ready")
        one.seen = ""
        one.press(b"\x1a")
        one.read_until("Stopped")
        one.read_until(PROMPT)  # what is typed before the shell listens is dropped by it
        seen = "not found"
        while "not found" in seen:  # it listens a moment later, and had dropped the first letters
            one.seen = ""
            one.press(b"fg\n")
            seen = one.read_until('"$@"', "not found")  # the job, with which it goes on
        one.press(b"back\n")
        one.read_until("got back")
        one.read_until(PROMPT)
        one.press(b"echo code $?; exit\n")
        one.read_until("code 0")
        assert one.wait() == 0


def test_who_is_waited_for_is_told_at_a_terminal(where: str) -> None:
    with terminal("run", "a", "--", "sleep", "60", address=where) as one, Admin(where) as admin:
        until(lambda: any(lock.holders for lock in admin.locks()))
        with terminal("run", "a", "--", "echo", "ran", address=where) as other:
            seen = other.read_until("in line")
            assert re.search(rf"waits for a, held by \S+:{one.pid} \(dlock run sleep\) for ", seen)
            os.kill(one.pid, signal.SIGTERM)
            assert one.wait() == 143
            assert other.wait() == 0
            assert "ran" in other.seen


def test_top_draws_and_ends_with_q(where: str) -> None:
    with terminal("run", "reports/daily", "--", "sleep", "60", address=where), \
            Admin(where) as admin:
        until(lambda: any(lock.holders for lock in admin.locks()))
        with terminal("top", "--interval", "0.1", address=where) as one:
            one.read_until("dlock run sleep")
            seen = one.read_until("CLIENTS")
            assert "\x1b[?1049h" in seen  # a screen of its own
            for words in ("dlock top", "HOT LOCKS", "reports/daily", "grants/s"):
                assert words in seen
            one.press(b"q")
            assert one.wait() == 0
            assert "\x1b[?1049l" in one.seen  # and what was there before is back
            assert "\x1b[?25h" in one.seen
