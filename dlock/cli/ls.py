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
from dlock.cli.show import who
from dlock.cli.text import NOTHING, duration, name_fields, safe, table

EXIT_CODES: Final = codes({EXIT_CLEAN: "listed, also if there are none"})
HEAD: Final = ("NAME", "KIND", "HOLDERS", "WAITERS", "DOOR", "CLIENT", "AGE")
RIGHT: Final = ("HOLDERS", "WAITERS", "AGE")
DOOR_ROLE: Final = "door:"
EPILOG: Final = """\
DOOR, CLIENT and AGE are those of the newest holder: through which door it came, who it is, and for
how long it has held the lock. A name that was too long for the server stands there as its hash, and
in brackets what it stands for, if its client has told it."""
PLAIN_WORD: Final = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_./:@%+=,-]*")  # no shell sees more in it


def register(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_parser(
        subparsers, "ls", help="list locks", exit_codes=EXIT_CODES,
        description="Lists the locks that the server knows, sorted by name.", epilog=EPILOG)
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
    return table(HEAD, [(title(lock.key, lock.text), lock.kind, holders(lock), str(lock.waiters),
                         *held_by(lock)) for lock in locks], RIGHT, width)


def title(key: bytes, text: bytes) -> str:
    """The name, and what it stands for."""
    return f"{safe(key)} ({safe(text)})" if text else safe(key)


def held_by(lock: LockSummary) -> tuple[str, str, str]:
    """Door, client and age of the newest holder."""
    holder = lock.holder
    if holder is None:
        return NOTHING, NOTHING, NOTHING
    role = safe(holder.role)
    door = role.removeprefix(DOOR_ROLE) if role.startswith(DOOR_ROLE) else NOTHING
    return door, safe(lock.label) or who(holder), duration(lock.since_s)


def holders(lock: LockSummary) -> str:
    """How many hold it; of how many, if it is a semaphore."""
    return f"{lock.holders}/{lock.size}" if lock.kind == "semaphore" else str(lock.holders)


def as_fields(lock: LockSummary) -> dict[str, object]:
    """The lock in JSON."""
    fields = dataclasses.asdict(lock)
    for left_out in "key", "text":
        del fields[left_out]
    if lock.text:
        fields.update({f"text{key[4:]}": text for key, text in name_fields(lock.text).items()})
    if lock.holder is not None:
        fields["role"] = lock.holder.role
    return {**name_fields(lock.key), **fields}


def terminal_width() -> int | None:
    """The columns of the terminal on standard output; None if it is none."""
    return shutil.get_terminal_size().columns if os.isatty(sys.stdout.fileno()) else None
