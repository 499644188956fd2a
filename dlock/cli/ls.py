"""`dlock ls`: the locks that a server knows."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import shutil
import sys
from collections.abc import Iterable
from typing import Any, Final

from dlock.admin import Admin, LockSummary
from dlock.cli.common import (
    EXIT_CLEAN,
    add_parser,
    add_server_flags,
    codes,
    guarded,
    lock_prefix,
    print_json,
)
from dlock.cli.text import name_fields, safe, table

EXIT_CODES: Final = codes({EXIT_CLEAN: "listed, also if there are none"})
HEAD: Final = ("NAME", "KIND", "HOLDERS", "WAITERS")
RIGHT: Final = ("HOLDERS", "WAITERS")
PLAIN_WORD: Final = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_./:@%+=,-]*")  # no shell sees more in it


def register(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_parser(
        subparsers, "ls", help="list locks", exit_codes=EXIT_CODES,
        description="Lists the locks that the server knows, sorted by name.")
    parser.add_argument("prefix", metavar="PREFIX", nargs="?", default=b"", type=lock_prefix,
                        help="only names that begin so")
    parser.add_argument("--busy", action="store_true",
                        help="only locks that somebody holds or waits for")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true",
                      help="print one JSON object a line, in no order")
    form.add_argument("--names", action="store_true", help="print names only")
    form.add_argument("--words", action="store_true",
                      help="print names only that are plain words, for completion; no errors")
    form.add_argument("-0", "--null", action="store_true",
                      help="print names only, byte for byte, with a zero byte after each")
    add_server_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Lists; returns the exit code."""
    if arguments.words:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            return guarded("ls", lambda: _list(arguments))
    return guarded("ls", lambda: _list(arguments))


def _list(arguments: argparse.Namespace) -> int:
    with Admin(arguments.address, timeout=arguments.connect_timeout) as admin:
        found = admin.locks(arguments.prefix, busy_only=arguments.busy)
        if arguments.json:
            for lock in found:
                print_json(as_fields(lock))
            return EXIT_CLEAN
        locks = sorted(found, key=lambda lock: lock.key)
    if arguments.null:
        sys.stdout.buffer.write(b"".join(lock.key + b"\0" for lock in locks))
    elif arguments.words:
        sys.stdout.write("".join(f"{lock.key.decode()}\n" for lock in locks
                                 if PLAIN_WORD.fullmatch(lock.key)))
    elif arguments.names:
        sys.stdout.write("".join(safe(lock.key) + "\n" for lock in locks))
    elif locks:
        print(as_table(locks, terminal_width()))
    return EXIT_CLEAN


def as_table(locks: Iterable[LockSummary], width: int | None) -> str:
    """The list for people."""
    return table(HEAD, [(safe(lock.key), lock.kind, holders(lock), str(lock.waiters))
                        for lock in locks], RIGHT, width)


def holders(lock: LockSummary) -> str:
    """How many hold it; of how many, if it is a semaphore."""
    return f"{lock.holders}/{lock.size}" if lock.kind == "semaphore" else str(lock.holders)


def as_fields(lock: LockSummary) -> dict[str, object]:
    """The lock in JSON."""
    fields = dataclasses.asdict(lock)
    del fields["key"]
    return {**name_fields(lock.key), **fields}


def terminal_width() -> int | None:
    """The columns of the terminal on standard output; None if it is none."""
    return shutil.get_terminal_size().columns if os.isatty(sys.stdout.fileno()) else None
