"""`dlock top`: a live screen of what a server is busy with. dlock/cli/activity.py decides what is
shown, dlock/cli/screen.py how; this file looks at the server and at the keyboard."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import os
import select
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from dlock.admin import Admin, ClientSummary
from dlock.cli import ls, plain
from dlock.cli.activity import Activity, HotLock, Sample, compare
from dlock.cli.common import (
    EXIT_CLEAN,
    EXIT_MISSING,
    EXIT_USAGE,
    add_json_flag,
    add_parser,
    add_server_flags,
    codes,
    guarded,
    positive_seconds,
    print_json,
    require,
    say,
)
from dlock.cli.show import peer_fields
from dlock.errors import ConnectError

EXIT_CODES: Final = codes({
    EXIT_CLEAN: "ended by the key q, or printed with --once",
    EXIT_MISSING: "the package rich is not installed; --once and --json do not need it"})
EPILOG: Final = """\
HOT LOCKS are those that served the most requests a second, WAITS the longest lines and who is first
in each, CLIENTS those that have got the most names. q or Ctrl-C ends it."""
LOCKS_MOST: Final = 20_000  # more would be a long look: then only busy ones, and not all of them
CLIENTS_MOST: Final = 5_000
ROWS_MOST: Final = 20
HISTORY: Final = 60
SLICE: Final = 0.25  # how soon a resized terminal is drawn anew


def register(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_parser(
        subparsers, "top", help="a live screen: rates, hot locks, waits, clients",
        description="Shows what the server is busy with, until q is pressed.",
        epilog=EPILOG, exit_codes=EXIT_CODES)
    parser.add_argument("--interval", metavar="S", type=positive_seconds, default=1.0,
                        help="between two looks (default %(default)g)")
    parser.add_argument("--once", action="store_true", help="print one interval as text and end")
    add_json_flag(parser, "print one JSON object an interval; with --once only one")
    add_server_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Shows; returns the exit code."""
    if arguments.once or arguments.json:
        return guarded("top", lambda: _print(arguments))
    if not (sys.stdout.isatty() and sys.stdin.isatty()):
        say("top", "this is no terminal; use --once or --json")
        return EXIT_USAGE
    if not require("top", "rich", ["rich.live"]):
        return EXIT_MISSING
    return guarded("top", lambda: _live(arguments))


# ---- Looking -------------------------------------------------------------------------------------


def _look(admin: Admin) -> Sample:
    stats = admin.stats()
    many = stats.get("locks", 0) > LOCKS_MOST
    locks = list(itertools.islice(admin.locks(busy_only=many), LOCKS_MOST))
    clients = tuple(itertools.islice(admin.clients(), CLIENTS_MOST))
    return Sample(time.monotonic(), stats, {one.key: one for one in locks}, clients, many)


def _detailed(admin: Admin, activity: Activity, rows: int) -> Activity:
    """With who holds and who waits, for as many locks as will be shown."""
    seen: dict[bytes, HotLock] = {}

    def look(one: HotLock) -> HotLock:
        key = one.summary.key
        if key not in seen and (one.summary.holders or one.summary.waiters):
            seen[key] = dataclasses.replace(one, details=admin.show(key))
        return seen.get(key, one)

    return dataclasses.replace(
        activity, hot=tuple(map(look, activity.hot[:rows])),
        crowded=tuple(map(look, activity.crowded[:rows])))


def _print(arguments: argparse.Namespace) -> int:
    with Admin(arguments.address, timeout=arguments.connect_timeout) as admin:
        before = _look(admin)
        while True:
            time.sleep(arguments.interval)
            now = _look(admin)
            activity = _detailed(admin, compare(before, now, ROWS_MOST), ROWS_MOST)
            before = now
            if arguments.json:
                print_json(as_fields(activity))
            else:
                print(plain.text(activity))
            if arguments.once:
                return EXIT_CLEAN


def as_fields(activity: Activity) -> dict[str, object]:
    """One interval in JSON."""
    return {
        "time": time.time(), "rates": dict(activity.rates), "gauges": dict(activity.gauges),
        "faults": dict(activity.faults), "epoch": activity.epoch, "ready": activity.ready,
        "partial": activity.partial,
        "hot": [_lock_fields(one) for one in activity.hot],
        "waits": [_lock_fields(one) for one in activity.crowded],
        "clients": [_client_fields(one) for one in activity.clients],
    }


def _lock_fields(one: HotLock) -> dict[str, object]:
    found: dict[str, object] = {**ls.as_fields(one.summary), "rate": one.rate}
    if one.details is not None:
        found["first_holder"] = next(map(peer_fields, one.details.holders), None)
        found["first_waiter"] = next(map(peer_fields, one.details.waiters), None)
    return found


def _client_fields(one: ClientSummary) -> dict[str, object]:
    return {**dataclasses.asdict(one), "role": one.role}


# ---- The screen ----------------------------------------------------------------------------------


def _live(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.live import Live

    from dlock.cli.screen import frame

    console = Console()
    history: deque[float] = deque(maxlen=HISTORY)
    activity: Activity | None = None
    problem = ""
    with Admin(arguments.address, timeout=arguments.connect_timeout) as admin:
        where = arguments.address or os.environ.get("DLOCK_ADDRESS") or "the local server"
        before = _look(admin)
        with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:

            def draw() -> None:
                live.update(frame(activity, where, problem, console.size), refresh=True)

            draw()
            while True:
                if _pressed_q(arguments.interval, console, draw):
                    return EXIT_CLEAN
                try:
                    now = _look(admin)
                    activity = _detailed(admin, compare(before, now, ROWS_MOST), ROWS_MOST)
                    history.append(activity.rates["grants"])
                    activity = dataclasses.replace(activity, history=tuple(history))
                    before, problem = now, ""
                except ConnectError as lost:
                    problem = str(lost)
                draw()


def _pressed_q(span: float, console: Any, draw: Any) -> bool:
    """Waits so long; True as soon as q is pressed."""
    end = time.monotonic() + span
    size = console.size
    while (left := end - time.monotonic()) > 0:
        ready, _, _ = select.select([sys.stdin], [], [], min(left, SLICE))
        if ready and os.read(sys.stdin.fileno(), 64).lower()[:1] in (b"q", b""):
            return True
        if console.size != size:
            size = console.size
            draw()
    return False


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Keys arrive at once and are not shown; as it was afterwards."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
