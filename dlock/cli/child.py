"""The command of `dlock run`: a process that is made at once and begins when the lock is held.

It is forked while this process has one thread, which is the only time at which a child may safely
run Python before it begins the command. It then waits on a pipe; when this process ends without
starting it, it ends as well. This file knows nothing of locks.

The command stays in the process group of `dlock run`: Ctrl-C, Ctrl-Z, `fg` and pipelines work as
if the command had been started alone. What must end with the lock is found as descendants instead,
in whatever group or terminal session they may have put themselves: while a Command with `adopt`
lives, orphans below this process become its children (PR_SET_CHILD_SUBREAPER).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NoReturn

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
EXIT_CANNOT_EXECUTE, EXIT_NOT_FOUND, EXIT_SIGNAL = 126, 127, 128
SHELL: Final = "/bin/sh"  # runs a script without #!, as execvp(3) and shells do
KILL_SECONDS: Final = 5.0
KILL_PAUSE: Final = 0.01
# Python ignores these; a command expects them as they are elsewhere.
RESTORED: Final = (signal.SIGPIPE, signal.SIGXFSZ)


class CannotRunError(Exception):
    """The command cannot be begun; `code` is what a shell would exit with."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def find(command: str) -> str:
    """The path of a command; CannotRunError as a shell would say it."""
    path = shutil.which(command)
    if path is not None:
        return path
    found = command if os.sep in command else shutil.which(command, os.F_OK)
    if found is None or not os.path.exists(found):
        raise CannotRunError(EXIT_NOT_FOUND, f"{command}: command not found")
    reason = "is a directory" if os.path.isdir(found) else "permission denied"
    raise CannotRunError(EXIT_CANNOT_EXECUTE, f"{found}: {reason}")


class Command:
    """One command. To be made before any thread is started."""

    def __init__(self, words: Sequence[str], *, signal_at_our_end: int, adopt: bool) -> None:
        """`signal_at_our_end` is what it gets when this process dies (0: nothing). CannotRunError:
        there is no such command."""
        path = find(words[0])
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else it could end without being waited for
        if adopt:
            _prctl(PR_SET_CHILD_SUBREAPER, 1)
        go_read, self._go = os.pipe()
        self._failed, failed_write = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._go)
            os.close(self._failed)
            _wait_and_begin(path, words, go_read, failed_write, parent, signal_at_our_end)
        os.close(go_read)
        os.close(failed_write)
        self._adopt = adopt
        self._started = False
        self.exit_code: int | None = None

    def start(self, environment: Mapping[str, str]) -> None:
        """Begins the command with this environment. CannotRunError: the kernel would not."""
        self._started = True
        content = json.dumps(dict(environment)).encode()
        with contextlib.suppress(BrokenPipeError), open(self._go, "wb") as pipe:
            pipe.write(content)
        with open(self._failed, "rb") as pipe:
            failure = pipe.read()
        if failure:
            self._reap(os.waitpid(self.pid, 0))
            number = int(failure)
            code = EXIT_NOT_FOUND if number == errno.ENOENT else EXIT_CANNOT_EXECUTE
            raise CannotRunError(code, os.strerror(number))

    def abandon(self) -> None:
        """Ends it without having begun; does nothing once it has."""
        if not self._started:
            self._started = True
            with contextlib.suppress(OSError):
                os.close(self._go)
            with contextlib.suppress(OSError):
                os.close(self._failed)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._reap(os.waitpid(self.pid, 0))

    # ---- While it runs ---------------------------------------------------------------------------

    def poll(self) -> int | None:
        """Its exit code once it has ended, 128 + n if signal n ended it."""
        while self.exit_code is None:
            try:
                found = os.waitpid(-1 if self._adopt else self.pid, os.WNOHANG)
            except ChildProcessError:
                break
            if found[0] == 0:
                break
            self._reap(found)
        return self.exit_code

    def _reap(self, found: tuple[int, int]) -> None:
        pid, status = found
        if pid == self.pid:
            code = os.waitstatus_to_exitcode(status)
            self.exit_code = code if code >= 0 else EXIT_SIGNAL - code

    def send(self, number: int) -> None:
        """Sends a signal to the command itself."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def ask_all_to_end(self) -> None:
        """SIGTERM to it and all that it has started; what is stopped is continued to see it."""
        for pid in descendants():
            for number in (signal.SIGTERM, signal.SIGCONT):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)

    def end_all(self) -> list[int]:
        """SIGKILL to it and all that it has started, until none is left; those that are left after
        all (they belong to somebody else)."""
        deadline = time.monotonic() + KILL_SECONDS
        while (left := descendants()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            self._reap_all()
            time.sleep(KILL_PAUSE)
        return left

    def _reap_all(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                self._reap(found)


def descendants() -> list[int]:
    """All living processes below this one, nearest first."""
    children: dict[int, list[int]] = defaultdict(list)
    for pid, parent, state in _processes():
        if state != "Z":
            children[parent].append(pid)
    found: list[int] = []
    level = children[os.getpid()]
    while level:
        found += level
        level = [child for pid in level for child in children[pid]]
    return found


def _processes() -> Iterator[tuple[int, int, str]]:
    """(pid, parent, state) of each process."""
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
                # The name in parentheses may hold anything, so what follows the last one counts.
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                yield int(entry), int(parent), state.decode()


# ---- In the child --------------------------------------------------------------------------------


def _wait_and_begin(path: str, words: Sequence[str], go: int, failed: int, parent: int,
                    signal_at_our_end: int) -> NoReturn:
    """Never returns: it becomes the command or ends."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        for number in RESTORED:
            signal.signal(number, signal.SIG_DFL)
        if signal_at_our_end:
            _prctl(PR_SET_PDEATHSIG, signal_at_our_end)
        with open(go, "rb") as pipe:
            content = pipe.read()
        if content and os.getppid() == parent:
            _become(path, words, json.loads(content), failed)
    except BaseException:  # whatever it is, this process must not go on as a second `dlock run`
        os._exit(EXIT_CANNOT_EXECUTE)
    os._exit(EXIT_SIGNAL)


def _become(path: str, words: Sequence[str], environment: dict[str, str], failed: int) -> None:
    try:
        os.execve(path, list(words), environment)
    except OSError as problem:
        failure = problem.errno
    if failure == errno.ENOEXEC:
        try:
            os.execve(SHELL, [SHELL, path, *words[1:]], environment)
        except OSError as problem:
            failure = problem.errno
    os.write(failed, str(failure).encode())


def _prctl(option: int, argument: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0)
