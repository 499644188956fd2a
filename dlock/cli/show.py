"""`dlock show`: who holds a lock, until when, and who waits for it."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, Final

from dlock.admin import Admin, Holder, LockDetails, Peer, Waiter
from dlock.cli.common import (
    EXIT_CLEAN,
    EXIT_FAILED,
    add_json_flag,
    add_parser,
    add_server_flags,
    codes,
    guarded,
    lock_name,
    print_json,
    say,
)
from dlock.cli.text import NOTHING, duration, name_fields, safe, table

EXIT_CODES: Final = codes({
    EXIT_CLEAN: "shown", EXIT_FAILED: "there is no such lock, so nobody holds it"})
EPILOG: Final = """\
SINCE is how long somebody has held the lock or waited for it. EXPIRES says when a hold ends unless
it is renewed: with its lease, or, without one, with the session of its client. Host, user, program
and job are what the client says of itself; jobs are those of Slurm, PBS and PMI."""
HOLDERS_HEAD: Final = ("HOLDER", "USER", "JOB", "MODE", "SINCE", "EXPIRES", "TOKEN")
WAITERS_HEAD: Final = ("WAITER", "USER", "JOB", "MODE", "SINCE", "")


def register(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_parser(
        subparsers, "show", help="show who holds a lock and who waits for it",
        description="Shows the holders of a lock, and those who wait for it in their order.",
        epilog=EPILOG, exit_codes=EXIT_CODES)
    parser.add_argument("name", metavar="NAME", type=lock_name)
    add_json_flag(parser)
    add_server_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Shows; returns the exit code."""
    return guarded("show", lambda: _show(arguments))


def _show(arguments: argparse.Namespace) -> int:
    with Admin(arguments.address, timeout=arguments.connect_timeout) as admin:
        lock = admin.show(arguments.name)
    if lock is None:
        if arguments.json:
            print_json({**name_fields(arguments.name), "kind": None, "holders": [], "waiters": []})
        else:
            say("show", f"there is no lock {safe(arguments.name)}, so nobody holds it")
        return EXIT_FAILED
    if arguments.json:
        print_json(as_fields(lock))
    else:
        print(as_text(lock))
    return EXIT_CLEAN


# ---- For people ----------------------------------------------------------------------------------


def as_text(lock: LockDetails) -> str:
    """One lock, some lines."""
    size = f" of size {lock.size}" if lock.kind == "semaphore" else ""
    parts = [f"{safe(lock.key)}: {lock.kind}{size}, {_some(len(lock.holders), 'holder')}, "
             f"{_some(len(lock.waiters), 'waiter')}"
             + (f", {lock.more} more that are not shown" if lock.more else "")]
    if lock.text:
        parts.append(f"the name stands for {safe(lock.text)}")
    if lock.holders:
        parts.append(table(HOLDERS_HEAD, map(_holder_row, lock.holders)))
    if lock.waiters:
        parts.append(table(WAITERS_HEAD, map(_waiter_row, lock.waiters)))
    return "\n\n".join(parts)


def _some(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _holder_row(one: Holder) -> tuple[str, ...]:
    return (party(one), *_described(one), one.mode, duration(one.since_s), expires(one),
            f"{one.token}{' (asked to give it up)' if one.breaking else ''}")


def _waiter_row(one: Waiter) -> tuple[str, ...]:
    return (party(one), *_described(one), one.mode, duration(one.since_s),
            "keeps a ticket" if one.ticket else "")


def _described(one: Peer) -> tuple[str, str]:
    return safe(one.user) or NOTHING, safe(one.job) or NOTHING


def who(one: Peer) -> str:
    """host:pid (program, role), as far as known."""
    where = f"{safe(one.host)}:{one.pid}" if one.host else f"client {one.client_id}"
    what = ", ".join(safe(part) for part in (one.program, one.role) if part)
    return f"{where} ({what})" if what else where


def party(one: Holder | Waiter) -> str:
    """The client, and what it says of this party of its."""
    return f"{who(one)}, {safe(one.label)}" if one.label else who(one)


def expires(one: Holder) -> str:
    """When the hold ends unless it is renewed."""
    if one.lease_left_s is not None:
        return f"{duration(one.lease_left_s)} (lease)"
    return f"{duration(one.session_left_s)} (session)"


# ---- For programs --------------------------------------------------------------------------------


def as_fields(lock: LockDetails) -> dict[str, object]:
    """The lock in JSON."""
    return {
        **name_fields(lock.key), "kind": lock.kind, "size": lock.size, "lock_id": lock.lock_id,
        "holders": [peer_fields(one) for one in lock.holders],
        "waiters": [peer_fields(one) for one in lock.waiters], "more": lock.more,
        **{f"text{key[4:]}": text for key, text in name_fields(lock.text).items() if lock.text}}


def peer_fields(one: Holder | Waiter) -> dict[str, object]:
    """A holder or a waiter in JSON."""
    return {**dataclasses.asdict(one), "role": one.role}
