"""`dlock door KIND`: one door process, with the flags of the lock service whose clients it serves.

Our flags come first; from the first word that is none of them on, everything is the original's.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dlock.address import parse
from dlock.cli.common import (
    EXIT_CLEAN,
    EXIT_FAILED,
    EXIT_MISSING,
    EXIT_USAGE,
    add_parser,
    say,
)
from dlock.doors.door import Door, DoorError, Stream
from dlock.doors.names import KINDS, checked

# Tools of the originals that are no doors: a module with main(words, environ) -> exit code.
TOOLS: Final = {"ldlm-lock": "dlock.doors.ldlm.tool"}
LEVELS: Final = ("debug", "info", "warning", "error")
LEVEL_VARIABLE: Final = "DLOCK_LOG_LEVEL"
LOG_FORM: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_log = logging.getLogger("dlock.door")

EXIT_CODES: Final = {
    EXIT_CLEAN: "ended by a signal",
    EXIT_FAILED: "another door took its place (same kind, same namespace), or a fault (see log)",
    EXIT_USAGE: "a flag or value is wrong",
    EXIT_MISSING: "a package of the extra 'doors' is not installed",
}
EPILOG: Final = f"""\
kinds:
  {", ".join(KINDS)}: servers, with the original's flags (docs/doors.md)
  ldlm-lock: lists and unlocks the locks of an LDLM door of this machine; it takes no --connect

The first word that is not one of the flags above, and all that follow, are the original's, also
--help. Its own errors have its own exit codes. The door waits for its server as long as it takes.
SIGTERM and Ctrl-C end it, SIGUSR1 puts its counters into the log."""


def register(subparsers: Any) -> None:
    """Adds the subcommand. `dlock.cli.main` hands over the original's words as `rest`."""
    parser = add_parser(
        subparsers, "door", help="serve the clients of another lock service",
        description="Serves unmodified clients of another lock service from a dlock server.",
        exit_codes=EXIT_CODES, epilog=EPILOG,
        usage="dlock door [-h] KIND [--connect HOST:PORT] [--namespace NAME] [--ready-file FILE] "
              "[word of the original ...]")
    parser.add_argument("kind", metavar="KIND", choices=(*KINDS, *TOOLS),
                        help=f"one of {', '.join((*KINDS, *TOOLS))}")
    parser.add_argument("--connect", metavar="HOST:PORT", type=_address,
                        help="the dlock server, or the path of an address file (default: "
                             "DLOCK_ADDRESS, else 127.0.0.1:21616)")
    parser.add_argument("--namespace", metavar="NAME", type=_namespace,
                        help="doors with the same one share their locks (default: KIND)")
    parser.add_argument("--ready-file", metavar="FILE", type=Path,
                        help="written when all listeners accept: HOST:PORT, one a line")
    # Of `dlock serve`: only read the words; end with the process that has this number.
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def _address(text: str) -> str:
    try:
        return str(parse(text))
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def _namespace(text: str) -> str:
    try:
        return checked(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def run(arguments: argparse.Namespace) -> int:
    """Serves; returns the exit code."""
    words: list[str] = arguments.rest or []
    if arguments.parent is not None:
        from dlock.cli.serve_doors import end_with
        end_with(arguments.parent)
    try:
        if arguments.kind in TOOLS:
            return int(importlib.import_module(TOOLS[arguments.kind]).main(words, os.environ))
        return _serve(arguments, words, os.environ)
    except ModuleNotFoundError as problem:
        missing = (problem.name or "").partition(".")[0]
        if missing in ("", "dlock"):
            raise
        say("door", f"the package {missing}, which {arguments.kind} needs, is not installed: "
                    f"pip install 'dlock[doors]'")
        return EXIT_MISSING
    except DoorError as problem:
        _tell(problem.text, problem.stream)
        return problem.code or (EXIT_USAGE if arguments.check else EXIT_CLEAN)
    except ValueError as problem:  # DLOCK_ADDRESS is no address
        say("door", str(problem))
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_CLEAN


def _serve(arguments: argparse.Namespace, words: list[str], environ: Mapping[str, str]) -> int:
    door: Door = importlib.import_module(KINDS[arguments.kind]).make(words, environ)
    if arguments.check:
        return EXIT_CLEAN
    _configure_log(door, environ)
    from dlock.doors import frame
    place = frame.Place(arguments.connect, arguments.namespace or arguments.kind,
                        arguments.ready_file)
    return frame.run(door, place, _log)


def _configure_log(door: Door, environ: Mapping[str, str]) -> None:
    wanted = environ.get(LEVEL_VARIABLE) or "info"
    if wanted not in LEVELS:
        raise DoorError(f"dlock door: {LEVEL_VARIABLE}: {wanted!r} is not one of "
                        f"{', '.join(LEVELS)}\n", EXIT_USAGE)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(door.formatter or logging.Formatter(LOG_FORM))
    level = wanted.upper() if door.log_level is None else door.log_level
    logging.basicConfig(level=level, handlers=[handler])


def _tell(text: str, stream: Stream) -> None:
    out = sys.stdout if stream == "stdout" else sys.stderr
    if text:
        print(text, end="" if text.endswith("\n") else "\n", file=out, flush=True)
