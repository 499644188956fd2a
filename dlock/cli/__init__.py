"""The `dlock` command. Each subcommand is a module here with `register(subparsers)`, which sets a
function of the parsed arguments that returns the exit code."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final

from dlock import __version__

# Modules by subcommand, in the order of --help. Only what is asked for is imported: `dlock run`
# stands before every line of some job scripts.
SUBCOMMANDS: Final = {
    "run": "run", "ls": "ls", "show": "show", "watch": "watch", "break": "break_",
    "recover": "recover", "stats": "stats", "top": "top", "serve": "serve", "door": "door",
    "bench": "bench",
    "drill": "drill", "rdma": "rdma",
    "completion": "completion",
}
DASHES: Final = "--"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    rest: list[str] | None = None
    if words[:1] == ["run"] and DASHES in words:  # what follows is another program's to parse
        rest = words[words.index(DASHES) + 1:]
        words = words[:words.index(DASHES)]
    if words[:1] == ["door"]:
        ours, rest = importlib.import_module("dlock.cli.door_words").split(words[1:])
        words = ["door", *ours]
    wanted = [words[0]] if words and words[0] in SUBCOMMANDS else list(SUBCOMMANDS)
    arguments = _parser(wanted).parse_args(words)
    arguments.rest = rest
    return int(arguments.run(arguments))


def parser_of_all() -> argparse.ArgumentParser:
    """The whole parser, for those who walk through it."""
    return _parser(list(SUBCOMMANDS))


def _parser(names: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dlock", description="A lock service for programs that run on many nodes.",
        epilog="`dlock COMMAND --help` says more, with the exit codes of each.")
    parser.add_argument("--version", action="version", version=f"dlock {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in names:
        importlib.import_module(f"dlock.cli.{SUBCOMMANDS[name]}").register(subparsers)
    return parser
