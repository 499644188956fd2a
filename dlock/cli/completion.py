"""`dlock completion`: prints what a shell needs to complete this command."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, Final

from dlock.cli.common import (
    EXIT_CLEAN,
    EXIT_MISSING,
    EXIT_NO_SERVER,
    add_parser,
    codes,
    guarded,
    require,
)

SHELLS: Final = ("bash", "zsh", "fish", "tcsh")
EXIT_CODES: Final = codes({
    EXIT_CLEAN: "printed", EXIT_MISSING: "the package shtab is not installed"}, EXIT_NO_SERVER)
EPILOG: Final = """\
Names of locks are completed as well, with those that the server knows, as far as they are plain
words. To have it in every shell:

  bash  dlock completion bash > ~/.local/share/bash-completion/completions/dlock
  zsh   dlock completion zsh > ~/.zfunc/_dlock    # with fpath+=~/.zfunc before compinit
  fish  dlock completion fish > ~/.config/fish/completions/dlock.fish
  tcsh  dlock completion tcsh > ~/.dlock.tcsh     # with: source ~/.dlock.tcsh in ~/.tcshrc"""
# What the shells run for names. It prints plain words only: bash expands $(...) in what it gets.
NAMES_COMMAND: Final = "dlock ls --words --connect-timeout 1"


def register(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_parser(
        subparsers, "completion", help="print a completion script for a shell",
        description="Prints a script that lets a shell complete dlock's commands, flags and names.",
        epilog=EPILOG, exit_codes=EXIT_CODES)
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints; returns the exit code."""
    if not require("completion", "shtab", ["shtab"]):
        return EXIT_MISSING
    return guarded("completion", lambda: _print(arguments.shell))


def _print(shell: str) -> int:
    import shtab

    from dlock.cli import parser_of_all

    parser = parser_of_all()
    for action in _actions(parser):
        completed = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY,
                     "NAME": shtab.cmd(NAMES_COMMAND),
                     "PREFIX": shtab.cmd(NAMES_COMMAND)}.get(str(action.metavar))
        if completed is not None:
            action.complete = completed  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell))
    return EXIT_CLEAN


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every flag and argument of a parser and of those below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
