"""The `dlock` command. Each subcommand is a module here with `register(subparsers)`, which sets a
function of the parsed arguments that returns the exit code."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dlock import __version__
from dlock.cli import bench, serve

SUBCOMMANDS = (serve, bench)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="dlock", description="A lock service for programs that run on many nodes.")
    parser.add_argument("--version", action="version", version=f"dlock {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for subcommand in SUBCOMMANDS:
        subcommand.register(subparsers)
    arguments = parser.parse_args(argv)
    return int(arguments.run(arguments))
