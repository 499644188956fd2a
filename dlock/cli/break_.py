"""`dlock break`: takes a lock away from those who hold it."""

from __future__ import annotations

import argparse
import time
from typing import Any, Final

from dlock.admin import Admin, Holder, LockDetails
from dlock.cli.common import (
    EXIT_CLEAN,
    EXIT_FAILED,
    EXIT_TIMEOUT,
    add_json_flag,
    add_parser,
    add_server_flags,
    codes,
    guarded,
    lock_name,
    print_json,
    say,
    seconds,
)
from dlock.cli.show import expires, who
from dlock.cli.text import duration, name_fields, safe

EXIT_CODES: Final = codes({
    EXIT_CLEAN: "broken, and passed on",
    EXIT_FAILED: "there was nothing to break",
    EXIT_TIMEOUT: "broken, but not passed on within --timeout; it will be",
})
PAUSE_FIRST, PAUSE_MOST = 0.02, 0.5
EPILOG: Final = """\
The holder is told, and cannot extend its hold any more. The lock passes on when the holder has
answered, or can no longer believe in its hold: when its lease or session has ended. This command
waits for that. With --now the lock passes on at once, and until the former holder hears of it two
believe that they hold the lock: then only storage that checks fencing tokens is safe.

The tokens that were broken are printed on standard output, one a line."""
NOW_WARNING: Final = (
    "passed on at once: until the former holder hears of it, it believes that it holds the lock. "
    "Only storage that checks tokens, and refuses {token}, is safe")


def register(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_parser(
        subparsers, "break", help="take a lock away from its holders",
        description="Takes a lock away from its holders and passes it on.",
        epilog=EPILOG, exit_codes=EXIT_CODES)
    parser.add_argument("name", metavar="NAME", type=lock_name)
    parser.add_argument("--token", metavar="T", type=_token,
                        help="only the hold with this token (default: all holds)")
    parser.add_argument("--now", action="store_true", help="do not wait for the holder; see below")
    parser.add_argument("--timeout", metavar="S", type=seconds,
                        help="how long to wait until it has passed on (default: until it has)")
    add_json_flag(parser)
    add_server_flags(parser)
    parser.set_defaults(run=run)


def _token(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < len(text) < 20 \
            or not 0 < int(text) < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is no token; `dlock show` prints them")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Breaks; returns the exit code."""
    return guarded("break", lambda: _break(arguments))


def _break(arguments: argparse.Namespace) -> int:
    name: bytes = arguments.name
    with Admin(arguments.address, timeout=arguments.connect_timeout) as admin:
        before = admin.show(name)
        tokens = admin.break_lock(name, token=arguments.token, now=arguments.now)
        if not tokens:
            say("break", f"nobody holds {safe(name)}"
                + (f" with token {arguments.token}" if arguments.token else ""))
            if arguments.json:
                print_json(_fields(name, tokens, False))
            return EXIT_FAILED
        if not arguments.json:
            print("\n".join(map(str, tokens)), flush=True)
            _tell(before, tokens, arguments.now)
        passed = arguments.now or _wait(admin, name, tokens, arguments.timeout, arguments.json)
    if arguments.json:
        print_json(_fields(name, tokens, passed))
    return EXIT_CLEAN if passed else EXIT_TIMEOUT


def _fields(name: bytes, tokens: tuple[int, ...], passed: bool) -> dict[str, object]:
    return {**name_fields(name), "tokens": list(tokens), "passed_on": passed}


def _tell(before: LockDetails | None, tokens: tuple[int, ...], now: bool) -> None:
    if now:
        say("break", NOW_WARNING.format(token=max(tokens)))
        return
    for one in _held(before, tokens):
        say("break", f"asked {who(one)} to give it up; it ends by itself in {expires(one)}")


def _wait(admin: Admin, name: bytes, tokens: tuple[int, ...], timeout: float | None,
          quiet: bool) -> bool:
    """Waits until none of these tokens is held; False when the time is over."""
    begin = time.monotonic()
    pause = PAUSE_FIRST
    while left := _held(admin.show(name), tokens):
        waited = time.monotonic() - begin
        if timeout is not None and waited >= timeout:
            if not quiet:
                say("break", f"not passed on within {duration(timeout)}: {who(left[0])} has not "
                             f"answered, its hold ends in {expires(left[0])}")
            return False
        time.sleep(pause if timeout is None else min(pause, timeout - waited))
        pause = min(2 * pause, PAUSE_MOST)
    if not quiet:
        say("break", f"passed on after {duration(time.monotonic() - begin)}")
    return True


def _held(lock: LockDetails | None, tokens: tuple[int, ...]) -> list[Holder]:
    return [one for one in lock.holders if one.token in tokens] if lock else []
