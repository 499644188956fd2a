"""`dlock stats`: the counters and gauges of a server."""

from __future__ import annotations

import argparse
from typing import Any, Final

from dlock.admin import Admin
from dlock.cli.common import (
    EXIT_CLEAN,
    add_json_flag,
    add_parser,
    add_server_flags,
    codes,
    guarded,
    print_json,
)
from dlock.cli.text import safe, table

EXIT_CODES: Final = codes({EXIT_CLEAN: "shown"})


def register(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_parser(
        subparsers, "stats", help="show counters and gauges", exit_codes=EXIT_CODES,
        description="Shows what the server has counted since its start (capital names), and what "
                    "is so now (small names).")
    parser.add_argument("--all", action="store_true", help="also counters that are 0")
    add_json_flag(parser, "print JSON, with all of them")
    add_server_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Shows; returns the exit code."""
    return guarded("stats", lambda: _show(arguments))


def _show(arguments: argparse.Namespace) -> int:
    with Admin(arguments.address, timeout=arguments.connect_timeout) as admin:
        stats = admin.stats()
    if arguments.json:
        print_json(stats)
        return EXIT_CLEAN
    gauges = {name: value for name, value in stats.items() if not name.isupper()}
    counters = {name: value for name, value in stats.items()
                if name.isupper() and (value or arguments.all)}
    parts = [_table("NOW", gauges), _table("SINCE THE START", counters)]
    print("\n\n".join(part for part in parts if part))
    return EXIT_CLEAN


def _table(head: str, values: dict[str, int]) -> str:
    rows = [(safe(name), f"{value:,}") for name, value in sorted(values.items())]
    return table((head, "VALUE"), rows, ("VALUE",)) if rows else ""
