"""`dlock run`: a command that runs while a lock is held.

The main thread asks for the lock, then starts the command and looks after both until the command
ends: it hands signals on, and does what --on-lost says when the hold is lost. It waits in
sigtimedwait, so no Python code runs in a signal handler once the lock is held.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, Final

import dlock
from dlock.admin import Admin
from dlock.cli.child import CannotRunError, Command
from dlock.cli.common import (
    EXIT_LOST,
    EXIT_SIGNAL,
    EXIT_TIMEOUT,
    add_parser,
    add_server_flags,
    codes,
    count,
    guarded,
    lock_name,
    positive_seconds,
    say,
    seconds,
)
from dlock.cli.guard import IGNORE, KILL, WARN, Guard
from dlock.cli.show import who
from dlock.cli.text import duration, safe
from dlock.errors import DlockError, LockLost

EXIT_CODES: Final = {
    **codes({
        EXIT_TIMEOUT: "the lock was not got within --timeout; the command was not started",
        EXIT_LOST: "the lock was lost while the command ran (with --on-lost warn only if the "
                   "command itself ended with 0)",
        126: "the command cannot be executed",
        127: "the command was not found",
    }, EXIT_SIGNAL + 2),
    EXIT_SIGNAL: "and n more: the command, or dlock while it waited, was ended by signal n",
}
USAGE: Final = "dlock run [FLAG ...] NAME [FLAG ...] -- COMMAND [ARGUMENT ...]"
EPILOG: Final = """\
Which lock: without a flag a plain one, as of `client.lock(NAME)` in Python. --exclusive and
--shared are the writing and the reading side of a readers-writer lock, --fair keeps the order of
arrival (also with --shared), --size N lets N in at a time. All who use a name must agree on this.

When the lock is lost: a command cannot be stopped by a server. With --on-lost warn a line says so
and the command goes on. With kill the command, and everything that it started, gets SIGTERM
--grace seconds before the hold could end, and SIGKILL when it could; if an operator breaks the
lock, SIGTERM at once and SIGKILL after --grace. With ignore nothing happens.

If dlock itself is killed (SIGKILL), the command gets SIGTERM with warn, SIGKILL with kill, and goes
on with ignore. Its lock is free when the session of dlock has ended (10 s unless the server was
told otherwise), or with --lease when the lease has.

Signals: SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are handed on to the command. Ctrl-C
and Ctrl-Z reach both, as in any job. A job that is stopped for longer than the session loses the
lock.

The command finds in its environment DLOCK_NAME, DLOCK_TOKEN (the fencing token; hand it to storage
that checks it), DLOCK_KIND (lock, write, read, fair, fair-read or semaphore) and, if --address was
given, DLOCK_ADDRESS.

exit code: that of the command, or"""
ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
HANDED_ON: Final = (*ENDING, signal.SIGUSR1, signal.SIGUSR2)
SI_KERNEL: Final = 0x80  # the terminal's: the whole process group has got it, the command too
OF_TERMINAL: Final = (signal.SIGINT, signal.SIGQUIT)
SIGNAL_AT_OUR_END: Final = {WARN: signal.SIGTERM, KILL: signal.SIGKILL, IGNORE: 0}
TELL_AFTER: Final = 1.0
GRACE: Final = 2.0
CONNECT_TIMEOUT: Final = 10.0


def register(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_parser(
        subparsers, "run", help="run a command while holding a lock", usage=USAGE,
        description="Waits for a lock, runs a command while holding it, and gives it back.",
        epilog=EPILOG, exit_codes=EXIT_CODES)
    parser.add_argument("name", metavar="NAME", type=lock_name, help="of the lock")
    parser.add_argument("--shared", action="store_true", help="share the lock with other readers")
    parser.add_argument("--exclusive", action="store_true",
                        help="the writing side of a lock that others take with --shared")
    parser.add_argument("--fair", action="store_true", help="first come, first served")
    parser.add_argument("--size", metavar="N", type=count, help="a semaphore that lets N in")
    parser.add_argument("--timeout", metavar="S", type=seconds,
                        help="how long to wait for the lock; 0: only try (default: for ever)")
    parser.add_argument("--lease", metavar="S", type=positive_seconds,
                        help="hold with a lease of S seconds, renewed while dlock lives; it holds "
                             "on for as long when dlock is killed (default: none)")
    parser.add_argument("--on-lost", choices=(WARN, KILL, IGNORE), default=WARN,
                        help="what to do when the lock is lost; see below (default %(default)s)")
    parser.add_argument("--grace", metavar="S", type=seconds, default=GRACE,
                        help="between SIGTERM and SIGKILL (default %(default)g)")
    parser.add_argument("-q", "--quiet", action="store_true",
                        help="do not say who holds the lock while waiting at a terminal")
    add_server_flags(parser, timeout=CONNECT_TIMEOUT)
    parser.set_defaults(run=lambda arguments: run(arguments, parser))


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Runs the command under the lock; returns the exit code."""
    _check(arguments, parser)
    try:
        command = Command(arguments.rest, signal_at_our_end=SIGNAL_AT_OUR_END[arguments.on_lost],
                          adopt=arguments.on_lost == KILL)
    except CannotRunError as problem:
        say("run", str(problem))
        return problem.code
    interrupts = Interrupts()
    try:
        code = guarded("run", lambda: _under_lock(arguments, command))
    finally:
        command.abandon()
    return EXIT_SIGNAL + interrupts.caught if interrupts.caught else code


def _check(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """parser.error ends the program with the usage."""
    if not arguments.rest:
        parser.error("the command is missing: dlock run NAME -- COMMAND")
    if arguments.shared and arguments.exclusive:
        parser.error("--shared and --exclusive exclude each other")
    if arguments.size is not None and (arguments.shared or arguments.exclusive or arguments.fair):
        parser.error("--size stands alone: a semaphore is neither shared nor fair")
    if arguments.lease is not None and not arguments.fair \
            and (arguments.shared or arguments.exclusive):
        parser.error("a readers-writer lock has no leases; leave --lease out, or add --fair")


class Interrupts:
    """Until the lock is held, a signal that would end us ends the wait instead, as Ctrl-C does in
    Python. What was ignored when we were started (nohup) stays so."""

    def __init__(self) -> None:
        self.caught = 0
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        self.caught = number
        raise KeyboardInterrupt


# ---- The lock ------------------------------------------------------------------------------------


def _under_lock(arguments: argparse.Namespace, command: Command) -> int:
    with dlock.connect(arguments.address, timeout=arguments.connect_timeout,
                       name=_program(arguments.rest)) as client:
        guard = Guard(arguments.name, arguments.on_lost, arguments.grace)
        lock, kind = _lock(client, arguments, guard)
        teller = Teller(arguments)
        try:
            got = lock.acquire(timeout=-1 if arguments.timeout is None else arguments.timeout)
        finally:
            teller.end()
        if not got:
            say("run", f"{safe(arguments.name)} was not free within "
                       f"{duration(arguments.timeout)}")
            return EXIT_TIMEOUT
        return _hold(arguments, command, lock, kind, guard)


def _program(words: list[str]) -> str:
    """How operators see the client."""
    return f"dlock run {os.path.basename(words[0])}"


def _lock(client: dlock.Client, arguments: argparse.Namespace, guard: Guard) -> tuple[Any, str]:
    """The lock that the flags mean, and what it is called in the environment of the command. One
    lock cannot close a cycle of waits, so none is looked for."""
    name = arguments.name
    told: dict[str, Any] = {
        "deadlock": False, "on_lost": guard.on_lost, "on_suspended": guard.on_suspended}
    if arguments.size is not None:
        return client.semaphore(name, arguments.size, lease=arguments.lease, **told), "semaphore"
    if arguments.fair:
        lock = client.fair_lock(name, shared=arguments.shared, lease=arguments.lease, **told)
        return lock, "fair-read" if arguments.shared else "fair"
    if arguments.shared:
        return client.rwlock(name, **told).read(), "read"
    if arguments.exclusive:
        return client.rwlock(name, **told).write(), "write"
    return client.lock(name, lease=arguments.lease, **told), "lock"


class Teller:
    """Says once who holds the lock, if somebody sits at a terminal and waits."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._ended = threading.Event()
        if not arguments.quiet and sys.stderr.isatty():
            # Signals are for the main thread, so this one is born with all of them blocked.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            threading.Thread(target=self._tell, daemon=True).start()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _tell(self) -> None:
        if self._ended.wait(TELL_AFTER):
            return
        try:
            with Admin(self._arguments.address) as admin:
                found = admin.show(self._arguments.name)
        except DlockError:
            return
        if found and found.holders and not self._ended.is_set():
            holder = found.holders[0]
            more = f" and {len(found.holders) - 1} more" if len(found.holders) > 1 else ""
            say("run", f"waits for {safe(self._arguments.name)}, held by {who(holder)}{more} for "
                       f"{duration(holder.since_s)}; {len(found.waiters)} in line")

    def end(self) -> None:
        """Nothing is said from now on."""
        self._ended.set()


# ---- The command ---------------------------------------------------------------------------------


def _hold(arguments: argparse.Namespace, command: Command, lock: Any, kind: str,
          guard: Guard) -> int:
    """The lock is held: runs the command, gives the lock back."""
    waited_for = {signal.SIGCHLD, signal.SIGCONT} | {
        number for number in HANDED_ON if signal.getsignal(number) is not signal.SIG_IGN}
    signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    guard.begin(lock, command)
    try:
        command.start(_environment(arguments, lock, kind))
    except CannotRunError as problem:
        say("run", f"{arguments.rest[0]}: {problem}")
        lock.release()
        return problem.code
    while (code := command.poll()) is None:
        _wait(waited_for, guard.pause(), command)
        guard.look()
    try:
        lock.release()
    except LockLost as problem:
        guard.lost_at_release(problem)
    except DlockError as problem:
        say("run", str(problem))
    return guard.judge(code)


def _wait(waited_for: set[signal.Signals], pause: float | None, command: Command) -> None:
    """Until a signal, which it hands on, or for so long."""
    found = signal.sigwaitinfo(waited_for) if pause is None \
        else signal.sigtimedwait(waited_for, pause)
    # Interrupted when its time is just over, sigtimedwait of CPython 3.11 returns what was never
    # filled in: any number may stand there.
    if found is None or found.si_signo not in waited_for - {signal.SIGCHLD, signal.SIGCONT}:
        return
    if found.si_code == SI_KERNEL and found.si_signo in OF_TERMINAL:
        return
    command.send(found.si_signo)


def _environment(arguments: argparse.Namespace, lock: Any, kind: str) -> dict[str, str]:
    added = {"DLOCK_NAME": os.fsdecode(arguments.name), "DLOCK_TOKEN": str(lock.token),
             "DLOCK_KIND": kind}
    if arguments.address:
        added["DLOCK_ADDRESS"] = arguments.address
    return {**os.environ, **added}
