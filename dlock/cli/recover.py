"""`dlock recover`: whom a server waits for after its start, and going on without them."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from typing import Any, Final

from dlock.admin import Admin, RecoveryStatus
from dlock.cli.common import (
    EXIT_CLEAN,
    EXIT_FAILED,
    EXIT_TIMEOUT,
    EXIT_USAGE,
    add_json_flag,
    add_parser,
    add_server_flags,
    codes,
    count,
    guarded,
    print_json,
    say,
    seconds,
)
from dlock.cli.text import duration, safe, table

EXIT_CODES: Final = codes({
    EXIT_CLEAN: "shown, or evicted; with --wait: the server is ready",
    EXIT_FAILED: "nobody was evicted, or one of those named is not waited for",
    EXIT_TIMEOUT: "not ready within --wait",
})
EPILOG: Final = """\
After a restart a server grants nothing until the clients of its predecessor are back, or could no
longer believe in what they held. Whoever knows that they do not run any more can say so: what they
held is then free at once. One that runs all the same, and is only cut off, believes in its holds
beside the next holder: then only storage that checks fencing tokens is safe."""
WARNING: Final = "what they hold is given to others; if one of them still runs, it does not know"
WAIT_SLICE_S: Final = 1.0
LATER: Final = "recovering: {back} of {expected} back, {evicted} evicted, {absent} waited for; "


def register(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_parser(
        subparsers, "recover", help="show or end the waiting after a restart",
        description="Shows how far a server is after its start, and whom it waits for.",
        epilog=EPILOG, exit_codes=EXIT_CODES)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--evict", action="store_true",
                       help="wait for nobody any more who is absent; asks first")
    which.add_argument("--evict-client", metavar="ID", type=count, nargs="+", default=[],
                       help="do not wait for these any more")
    parser.add_argument("--yes", action="store_true", help="with --evict: do not ask")
    parser.add_argument("--wait", metavar="S", type=seconds,
                        help="then wait until the server is ready, so long at most")
    add_json_flag(parser)
    add_server_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Shows and evicts; returns the exit code."""
    return guarded("recover", lambda: _recover(arguments))


def _recover(arguments: argparse.Namespace) -> int:
    with Admin(arguments.address, timeout=arguments.connect_timeout) as admin:
        status = admin.recovery()
        code = EXIT_CLEAN
        if arguments.evict:
            if status.absent_total and not arguments.yes:
                _print(status, arguments.json)
                if not (sys.stdin.isatty() and sys.stderr.isatty()):
                    say("recover", "--evict asks first, and there is no terminal to ask on: with "
                                   "--yes it does not")
                    return EXIT_USAGE
                if not _agreed(status):
                    return EXIT_FAILED
            status = admin.evict() if status.absent_total else status
        elif arguments.evict_client:
            status = admin.evict(arguments.evict_client)
            if not status.all_met:
                say("recover", "not all of these are waited for; the others were evicted")
                code = EXIT_FAILED
        if arguments.wait is not None:
            status = _wait(admin, arguments.wait)
            code = code or (EXIT_CLEAN if status.ready else EXIT_TIMEOUT)
    _print(status, arguments.json)
    return code


def _agreed(status: RecoveryStatus) -> bool:
    print(f"Evict these {status.absent_total} clients? {WARNING.capitalize()}. [y/N] ",
          end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _wait(admin: Admin, timeout: float) -> RecoveryStatus:
    end = time.monotonic() + timeout
    while not admin.await_ready(min(WAIT_SLICE_S, max(end - time.monotonic(), 0.0))):
        if time.monotonic() >= end:
            break
    return admin.recovery()


def _print(status: RecoveryStatus, as_json: bool) -> None:
    if as_json:
        fields = dataclasses.asdict(status)
        del fields["all_met"]
        print_json(fields)
        return
    if status.ready:
        print(f"ready: {status.back} of {status.expected} clients came back, "
              f"{status.evicted} were evicted" if status.expected else "ready")
        return
    print(LATER.format(back=status.back, expected=status.expected, evicted=status.evicted,
                       absent=status.absent_total)
          + f"ready in {duration(status.left_s)} at the latest")
    rows = [(str(one.client_id), safe(one.who), "came" if one.came else "away",
             duration(one.lease_s or None), duration(one.left_s)) for one in status.absent]
    if rows:
        print("\n" + table(("CLIENT", "WHO", "STATE", "LEASE", "WAITED FOR"), rows,
                           ("LEASE", "WAITED FOR")))
    if len(rows) < status.absent_total:
        print(f"... and {status.absent_total - len(rows)} more")
