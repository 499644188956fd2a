"""`dlock watch`: what happens to locks, a line each."""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any, Final

from dlock.admin import Admin, Holder
from dlock.cli.changes import Change, History
from dlock.cli.common import (
    EXIT_CLEAN,
    add_json_flag,
    add_parser,
    add_server_flags,
    codes,
    guarded,
    lock_prefix,
    positive_seconds,
    print_json,
    say,
)
from dlock.cli.show import expires, who
from dlock.cli.text import duration, name_fields, safe
from dlock.errors import ConnectError

EXIT_CODES: Final = codes({EXIT_CLEAN: "the time of --for is over"})
DETAILS_MOST: Final = 500  # locks that are looked at closely in one round
EPILOG: Final = """\
First what is held and waited for now, then every change. The server is looked at once in
--interval; what came and went between two looks is counted, not listed ("3 more came and went").
Where the server goes away it is waited for. With --json one object a line: time (seconds since
1970), event (held, freed, waits, left, breaking, served, new, gone, no-server, server), name, and
for who it was what `dlock show --json` says of one."""


def register(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_parser(
        subparsers, "watch", help="print what happens to locks, as it happens",
        description="Prints who gets, frees and waits for locks, until Ctrl-C.",
        epilog=EPILOG, exit_codes=EXIT_CODES)
    parser.add_argument("prefix", metavar="PREFIX", nargs="?", default=b"", type=lock_prefix,
                        help="a name, or what names begin with (default: all)")
    parser.add_argument("--exact", action="store_true", help="only the lock of just this name")
    parser.add_argument("--interval", metavar="S", type=positive_seconds, default=1.0,
                        help="between two looks (default %(default)g)")
    parser.add_argument("--for", metavar="S", dest="span", type=positive_seconds,
                        help="end after so long (default: at Ctrl-C)")
    add_json_flag(parser, "print one JSON object a line")
    add_server_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Watches; returns the exit code."""
    return guarded("watch", lambda: _watch(arguments))


def _watch(arguments: argparse.Namespace) -> int:
    end = None if arguments.span is None else time.monotonic() + arguments.span
    printer = Printer(arguments.json)
    history = History()
    lost = False
    with Admin(arguments.address, timeout=arguments.connect_timeout) as admin:
        first = True
        while True:
            try:
                printer.changes(_look(admin, arguments, history, first))
                if lost:
                    printer.server("server", "the server answers again")
                first, lost = False, False
            except ConnectError as problem:
                if first:
                    raise
                if not lost:
                    printer.server("no-server", f"no answer, trying again: {problem}")
                lost = True
            pause = arguments.interval
            if end is not None:
                pause = min(pause, end - time.monotonic())
                if pause <= 0:
                    return EXIT_CLEAN
            time.sleep(pause)


def _look(admin: Admin, arguments: argparse.Namespace, history: History,
          first: bool) -> list[Change]:
    """One look."""
    summaries = {one.key: one for one in admin.locks(arguments.prefix)
                 if not arguments.exact or one.key == arguments.prefix}
    details = {one.key: admin.show(one.key) if one.holders or one.waiters else None
               for one in history.worth_a_look(summaries.values(), DETAILS_MOST)}
    return history.look(summaries, details, first)


class Printer:
    """Lines for people or for programs."""

    def __init__(self, json: bool) -> None:
        self._json = json

    def changes(self, changes: list[Change]) -> None:
        """Prints what happened in one look."""
        for one in changes:
            if self._json:
                print_json(_fields(one))
            else:
                print(f"{time.strftime('%H:%M:%S')}  {safe(one.key)}  {_words(one)}", flush=True)

    def server(self, event: str, text: str) -> None:
        """The server went or came."""
        if self._json:
            print_json({"time": time.time(), "event": event, "text": text})
        else:
            say("watch", text)


def _words(change: Change) -> str:
    one = change.who
    if one is None:
        return {"new": "is new", "gone": "is not known any more",
                "served": f"{change.count} more came and went"}[change.what]
    mode = "" if one.mode == "exclusive" else f" {one.mode}"
    if isinstance(one, Holder):
        return {
            "held": f"held{mode} by {who(one)}, {_until(one)}, token {one.token}",
            "freed": f"freed by {who(one)} after {duration(one.since_s)}, token {one.token}",
            "breaking": f"is being broken: {who(one)} was asked to give token {one.token} up",
        }[change.what]
    return {
        "waits": f"waited for{mode} by {who(one)}" + (", with a ticket" if one.ticket else ""),
        "left": f"not waited for any more by {who(one)}",
    }[change.what]


def _until(one: Holder) -> str:
    return f"for {expires(one)}" if one.lease_left_s is not None else "without a lease"


def _fields(change: Change) -> dict[str, object]:
    fields: dict[str, object] = {
        "time": time.time(), "event": change.what, **name_fields(change.key)}
    if change.what == "served":
        fields["count"] = change.count
    if change.who is not None:
        fields.update(dataclasses.asdict(change.who))
    return fields
