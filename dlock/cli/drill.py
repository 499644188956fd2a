"""`dlock drill`: faults on purpose, under a load, and a verdict on what came of them."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

from dlock.cli.common import (
    EXIT_CLEAN,
    EXIT_FAILED,
    EXIT_MISSING,
    EXIT_USAGE,
    add_parser,
    count,
    guarded,
    positive_seconds,
    say,
)
from dlock.cli.common import (
    EXIT_SIGNAL as SIGNALLED,
)
from dlock.cli.text import as_json

CLIENTS_MAX: Final = 64
SESSIONS_MAX: Final = 16
STORM_MAX: Final = 20_000
KEPT: Final = "kept"  # a file that says so
STANDARD_OUTPUT: Final = "-"
EXIT_CODES: Final = {
    EXIT_CLEAN: "no violation",
    EXIT_FAILED: "a violation; the report names it, and the records are kept",
    EXIT_USAGE: "the drill could not be carried out, or a flag is wrong; the message says why",
    EXIT_MISSING: "a package is missing (--picture); the message says how to install it",
    SIGNALLED + 2: "ended by Ctrl-C; what had happened until then is reported",
}
DESCRIPTION: Final = """\
Starts a primary and client processes on this machine, lets them work, injects faults and says what
came of them: no two may have believed in what excludes each other, tokens must only grow, no hold
may be lost that its client was not told of, and everything must be served again. Without flags: one
round of each fault that is possible here, about a minute."""
EPILOG: Final = """\
Everything listens on loopback addresses, or in network namespaces that the drill makes, and ends
with it, however it ends. With --address the load runs against a primary of yours, under names that
begin with dlock-drill/; its other users meet the faults too."""
ADDRESS_HELP: Final = "join this primary (HOST:PORT) instead of starting one"
COMMAND_HELP: Final = "how your primary is {}; run by the shell, must return soon"


def register(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_parser(
        subparsers, "drill", help="inject faults under load and say what came of it",
        description=DESCRIPTION, epilog=EPILOG, exit_codes=EXIT_CODES)
    parser.add_argument("--list", action="store_true",
                        help="explain every fault: what is done, what must happen, what it needs")
    parser.add_argument("--faults", metavar="A,B", type=_names, default=(),
                        help="only these (default: all that are possible here)")
    parser.add_argument("--rounds", metavar="N", type=count, default=0,
                        help="how many faults one after another (default: each once)")
    parser.add_argument("--seconds", metavar="S", type=positive_seconds, default=0.0,
                        help="go on for so long")
    parser.add_argument("--seed", metavar="N", type=_seed,
                        help="repeat a drill: the same faults at the same moments (default: a new "
                             "one, which is printed)")
    parser.add_argument("--clients", metavar="N", type=_at_most(CLIENTS_MAX),
                        help="client processes (default 6): synchronous, asyncio, mirror in turn")
    parser.add_argument("--sessions", metavar="N", type=_at_most(SESSIONS_MAX),
                        help="sessions of each (default 1)")
    parser.add_argument("--storm-clients", metavar="N", type=_at_most(STORM_MAX),
                        help="clients of reconnect-storm (default 1000)")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON; - is standard "
                                                       "output, in the place of the text")
    parser.add_argument("--picture", metavar="FILE",
                        help="draw the timeline, as .png, .svg or .pdf (needs dlock[picture])")
    parser.add_argument("--keep", metavar="DIR", type=Path,
                        help="keep the records and logs in this folder, which must be empty")
    parser.add_argument("--set-clock", action="store_true",
                        help="allow to step the wall clock of this machine (wall-clock)")
    joined = parser.add_argument_group("a primary of yours")
    joined.add_argument("--address", metavar="HOST:PORT", default="", help=ADDRESS_HELP)
    joined.add_argument("--data-port", metavar="PORT", type=_at_most(65535), default=0,
                        help="its data port, which cut and lost-replies must know")
    for flag, what in (("kill", "killed"), ("start", "started again"),
                       ("stop", "stopped (SIGSTOP)"), ("continue", "continued (SIGCONT)")):
        joined.add_argument(f"--{flag}-command", metavar="COMMAND", default="",
                            help=COMMAND_HELP.format(what))
    parser.set_defaults(run=run)


# ---- Types of arguments --------------------------------------------------------------------------


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.strip() for one in text.split(",") if one.strip()))


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 19:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: a whole number, not below 0")
    return int(text)


def _at_most(most: int) -> Any:
    def parse(text: str) -> int:
        value = count(text)
        if value > most:
            raise argparse.ArgumentTypeError(f"{text!r} is more than {most}")
        return value

    return parse


# ---- Running -------------------------------------------------------------------------------------


class Signalled(BaseException):
    """A signal that ends the drill."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(arguments: argparse.Namespace) -> int:
    """Drills; returns the exit code."""
    return guarded("drill", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from dlock.drill.faults import MENU
    from dlock.drill.run import CannotError, choose

    if arguments.list:
        print("\n\n".join(fault.told() for fault in MENU))
        return EXIT_CLEAN
    try:
        plan = _plan(arguments)
        choose(plan)
        if not _check_files(arguments):
            return EXIT_MISSING
        with _folder(arguments.keep) as folder:
            return _drill(plan, folder, arguments)
    except CannotError as problem:
        say("drill", str(problem))
        return EXIT_USAGE


def _plan(arguments: argparse.Namespace) -> Any:
    from dlock.drill import run as drills
    from dlock.drill.ground import Ground

    ground = Ground(
        arguments.address, arguments.kill_command, arguments.start_command,
        arguments.stop_command, arguments.continue_command, arguments.data_port,
        arguments.set_clock)
    if not ground.joined and any((ground.kill, ground.start, ground.stop, ground.go_on,
                                  ground.data_port)):
        raise drills.CannotError("the commands and --data-port are for a primary of yours: "
                                 "--address says where it is")
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    return drills.Plan(
        seed, arguments.faults, arguments.rounds, arguments.seconds,
        arguments.clients or drills.CLIENTS, arguments.sessions or drills.SESSIONS,
        arguments.storm_clients or drills.STORM_CLIENTS, ground)


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Where the records go. One that nobody asked for is removed, unless something is wrong."""
    from dlock.drill.run import CannotError

    if keep is not None:
        try:
            keep.mkdir(parents=True, exist_ok=True)
            if any(keep.iterdir()):
                raise CannotError(f"the folder {keep} is not empty")
        except OSError as problem:
            raise CannotError(f"the folder {keep} cannot be used: {problem}") from None
        yield keep.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="dlock-drill-"))
    try:
        yield folder
    finally:
        if not (folder / KEPT).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _drill(plan: Any, folder: Path, arguments: argparse.Namespace) -> int:
    from dlock.drill.run import drill, repeat

    say("drill", f"seed {plan.seed}; again: {repeat(plan)}")
    ended_by = 0
    with _signals():
        try:
            drill(plan, folder, lambda line: say("drill", line))
        except Signalled as signalled:
            ended_by = signalled.number
            say("drill", f"ended by {signal.Signals(ended_by).name}; all that it had started has "
                         "ended")
    code = _report(folder, arguments)
    if arguments.keep is not None or code == EXIT_FAILED or (code and not ended_by):
        (folder / KEPT).touch()
        say("drill", f"records and logs are in {folder}")
    return SIGNALLED + ended_by if ended_by and code != EXIT_FAILED else code


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """The signals that end a program end the drill, which then ends what it has started."""

    def end(number: int, _frame: object) -> NoReturn:
        raise Signalled(number)

    former = {number: signal.signal(number, end)
              for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


# ---- What came of it -----------------------------------------------------------------------------


def _report(folder: Path, arguments: argparse.Namespace) -> int:
    """Says it; the exit code."""
    from dlock.drill import records, report
    from dlock.drill.judge import judge

    found = records.read(folder)
    verdict = judge(found)
    if arguments.json != STANDARD_OUTPUT:
        print(report.text(verdict, found), flush=True)
    if arguments.json:
        line = as_json(report.as_json(verdict, found)) + "\n"
        if arguments.json == STANDARD_OUTPUT:
            sys.stdout.write(line)
            sys.stdout.flush()
        else:
            Path(arguments.json).write_text(line, encoding="utf-8")
    if arguments.picture:
        _draw(found, verdict, Path(arguments.picture))
    return verdict.status


def _draw(found: Any, verdict: Any, path: Path) -> None:
    """A picture that cannot be drawn changes no verdict."""
    from dlock.drill.picture import PictureError, draw

    try:
        draw(found, verdict, path)
    except PictureError as problem:
        say("drill", f"no picture: {problem}")


def _check_files(arguments: argparse.Namespace) -> bool:
    """Before a drill that may take long: can what it comes to be written? False: matplotlib is
    missing, which was said. CannotError."""
    from dlock.drill.run import CannotError

    for flag, name in (("--json", arguments.json), ("--picture", arguments.picture)):
        if name in (None, STANDARD_OUTPUT):
            continue
        if not os.access(Path(name).absolute().parent, os.W_OK):
            raise CannotError(f"{flag} {name}: there is no such folder, or it cannot be written to")
    if not arguments.picture:
        return True
    from dlock.drill.picture import MISSING, SUFFIXES

    if Path(arguments.picture).suffix.lower() not in SUFFIXES:
        raise CannotError(f"--picture {arguments.picture}: a picture ends with "
                          f"{', '.join(SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        say("drill", MISSING)
        return False
    return True
