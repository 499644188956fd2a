"""What the subcommands share: exit codes, the flags that reach a server, how failures are told."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from dlock.address import ENVIRONMENT
from dlock.cli.text import as_json, safe
from dlock.errors import ConnectError, DlockError

# A command that `dlock run` starts gives its own exit code, so what dlock itself has to say stands
# above the usual ones, on the numbers of sysexits.h where one fits.
EXIT_CLEAN, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
EXIT_NO_SERVER, EXIT_INTERNAL, EXIT_MISSING, EXIT_TIMEOUT, EXIT_LOST = 69, 70, 72, 75, 76
EXIT_SIGNAL: Final = 128
COMMON_CODES: Final = {
    EXIT_USAGE: "a flag or value is wrong",
    EXIT_NO_SERVER: "no server answers at the address",
    EXIT_INTERNAL: "dlock failed in another way; the message says how",
    EXIT_SIGNAL + 2: "ended by Ctrl-C",
}
NAME_BYTES_MAX: Final = 512
TIMEOUT: Final = 5.0
SECONDS_MAX: Final = 1e9
MISSING: Final = ("the package {package}, which it needs, is not installed: "
                  "pip install 'dlock[cli]'")


def add_parser(subparsers: Any, name: str, *, help: str, description: str,
               exit_codes: Mapping[int, str], epilog: str = "",
               usage: str | None = None) -> argparse.ArgumentParser:
    """A subcommand whose --help ends with its exit codes."""
    codes = "\n".join(f"  {code:<3}  {text}" for code, text in sorted(exit_codes.items()))
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=help, description=description, usage=usage,
        epilog=f"{epilog}\n\nexit codes:\n{codes}".lstrip("\n"),
        formatter_class=argparse.RawDescriptionHelpFormatter)
    return parser


def add_server_flags(parser: argparse.ArgumentParser, *, timeout: float = TIMEOUT) -> None:
    """Where the server is, and how long to wait for it."""
    parser.add_argument("--address", metavar="ADDRESS",
                        help="HOST:PORT, or the path of an address file; several with commas "
                             "between them (default: DLOCK_ADDRESS, else 127.0.0.1:21616)")
    parser.add_argument("--connect-timeout", metavar="S", type=seconds, default=timeout,
                        help="how long to wait for a server to answer (default %(default)g)")


def add_json_flag(parser: argparse.ArgumentParser, what: str = "print JSON") -> None:
    """--json"""
    parser.add_argument("--json", action="store_true", help=what)


# ---- Types of arguments --------------------------------------------------------------------------


def seconds(text: str) -> float:
    """A time that is not negative."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def positive_seconds(text: str) -> float:
    """A time above 0."""
    value = seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def count(text: str) -> int:
    """A whole number from 1 to 2^31 - 1."""
    if not text.isascii() or not text.isdecimal() or not 0 < len(text) < 11 \
            or not 0 < int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def lock_name(text: str) -> bytes:
    """A name as the shell gave it, byte for byte."""
    name = os.fsencode(text)
    if not 0 < len(name) <= NAME_BYTES_MAX:
        raise argparse.ArgumentTypeError(f"a name has 1 to {NAME_BYTES_MAX} bytes, not {len(name)}")
    return name


def lock_prefix(text: str) -> bytes:
    """The beginning of names; may be empty."""
    return lock_name(text) if text else b""


# ---- Saying --------------------------------------------------------------------------------------


def say(command: str, text: str) -> None:
    """A line on standard error, whatever it quotes made safe; lost if nobody reads it."""
    with contextlib.suppress(OSError, ValueError):
        print(f"dlock {command}: {safe_text(text)}", file=sys.stderr, flush=True)


def safe_text(text: str) -> str:
    """A message in which only what is printable is left as it is; it has no names to tell apart,
    so a backslash stays one."""
    return safe(text).replace("\\\\", "\\")


def print_json(value: object) -> None:
    """One line of JSON."""
    print(as_json(value), flush=True)


def guarded(command: str, body: Callable[[], int]) -> int:
    """The exit code of `body`; failures are told on standard error and become theirs."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:  # a terminal that cannot show a letter gets \u instead of a crash
        reconfigure(errors="backslashreplace")
    try:
        code = body()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return EXIT_SIGNAL + 2
    except BrokenPipeError:
        with open(os.devnull, "wb") as nowhere:  # else the flush at exit fails again
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return EXIT_SIGNAL + 13
    except ConnectError as problem:
        hint = "" if ENVIRONMENT in str(problem) else (
            f"; --address or {ENVIRONMENT} says where the server is")
        say(command, f"{problem}{hint}")
        return EXIT_NO_SERVER
    except DlockError as problem:
        say(command, str(problem))
        return EXIT_INTERNAL
    except ValueError as problem:  # an address that is none
        say(command, str(problem))
        return EXIT_USAGE


def codes(own: Mapping[int, str], *without: int) -> dict[int, str]:
    """The exit codes of a subcommand: its own and the common ones."""
    return {code: text for code, text in {**COMMON_CODES, **own}.items() if code not in without}


def require(command: str, package: str, modules: Sequence[str]) -> bool:
    """Can these be imported? If not, says what to install."""
    try:
        for module in modules:
            __import__(module)
    except ImportError:
        say(command, MISSING.format(package=package))
        return False
    return True
