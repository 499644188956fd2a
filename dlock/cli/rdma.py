"""`dlock rdma`: what RDMA this machine has, what dlock would use of it, and what is missing."""

from __future__ import annotations

import argparse
import os
from typing import Any, Final

from dlock import rdma
from dlock.cli.common import (
    EXIT_CLEAN,
    EXIT_FAILED,
    EXIT_NO_SERVER,
    add_json_flag,
    add_parser,
    codes,
    count,
    guarded,
    print_json,
)
from dlock.cli.text import NOTHING, number, safe, table

EXIT_CODES: Final = codes(
    {EXIT_CLEAN: "RDMA can be used here", EXIT_FAILED: "it cannot; what is missing is shown"},
    EXIT_NO_SERVER)
EPILOG: Final = """\
It asks no server and changes nothing. The commands that it names are not run: most need root. Run
it as the user that is to use RDMA, in its service or job: permissions and limits are theirs."""
LABEL: Final = 16
COMMAND_INDENT: Final = "     "


def register(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_parser(
        subparsers, "rdma", help="show RDMA devices and what is missing", exit_codes=EXIT_CODES,
        epilog=EPILOG,
        description="Shows devices, ports and addresses (GIDs) for RDMA, which of them dlock would "
                    "use and why, and what is missing, with the commands that mend it.")
    parser.add_argument("--device", default=os.environ.get("DLOCK_DEVICE", ""), metavar="NAME",
                        help="as if this device were asked for (default: DLOCK_DEVICE)")
    parser.add_argument("--gid", default=os.environ.get("DLOCK_GID", ""), metavar="ADDRESS",
                        help="as if this address of a port were (default: DLOCK_GID)")
    parser.add_argument("--clients", type=count, metavar="N", default=1000,
                        help="reckon a server's memory for so many (default %(default)s)")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Shows; returns the exit code."""
    return guarded("rdma", lambda: _show(arguments))


def _show(arguments: argparse.Namespace) -> int:
    report = rdma.look(arguments.device, arguments.gid, arguments.clients)
    if arguments.json:
        print_json(_plain(report))
    else:
        print(text(report))
    return EXIT_CLEAN if report.usable else EXIT_FAILED


def _plain(value: Any) -> Any:
    """What JSON has: objects of the fields, lists, names in order."""
    fields = getattr(value, "_fields", None)
    if fields is not None:
        return {name: _plain(getattr(value, name)) for name in fields}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value


# ---- As text -------------------------------------------------------------------------------------


def text(report: rdma.Report) -> str:
    """The whole report, for people."""
    parts = [_verdict(report), _surroundings(report), _devices(report), _gids(report),
             _limits(report), _missing(report)]
    return "\n\n".join(part for part in parts if part)


def _line(label: str, words: str) -> str:
    return f"{label:<{LABEL}}{words}"


def _verdict(report: rdma.Report) -> str:
    use = report.use
    if use is None or not report.usable:
        return f"RDMA cannot be used here: {safe(report.why_not)}"
    lines = [
        f"RDMA can be used: {safe(use.device)} port {use.port}, GID index {use.gid_index} "
        f"({use.gid}, {use.gid_type})",
        _line("why", use.why),
        _line("by", "the C core" if use.by == "core" else "pyverbs: the C core has no verbs"),
        _line("a server", use.server),
        _line("a client", use.client),
    ]
    return "\n".join(lines)


def _surroundings(report: rdma.Report) -> str:
    machine = report.machine
    container = ", in a container" if machine.container else ""
    loaded = ", ".join(sorted(machine.modules)) or "none of RDMA"
    lines = [
        _line("host", f"{safe(machine.host)}, {machine.system} {machine.kernel}{container}, "
                      f"dlock {report.version}"),
        _line("modules", loaded),
        _line("libibverbs", _part(report.library)),
        _line("C core", _part(report.core)),
        _line("pyverbs", _part(report.pyverbs)),
        _line("locked memory", _memory(report)),
    ]
    return "\n".join(lines)


def _part(part: rdma.Part) -> str:
    return safe(part.text) if part.works else f"no: {safe(part.text)}"


def _memory(report: rdma.Report) -> str:
    machine = report.machine
    if machine.memlock is None:
        limit = "no limit"
    elif machine.privileged:
        limit = "no limit for this process (CAP_IPC_LOCK)"
    else:
        limit = f"at most {_bytes(machine.memlock)}"
    return (f"{limit}; a server for {report.clients:,} clients needs about "
            f"{_bytes(report.locked_bytes)}, a client {_bytes(report.locked_by_client)}")


def _bytes(size: int) -> str:
    return f"{size / 1024:,.0f} KiB" if size < 1 << 20 else f"{size / (1 << 20):,.1f} MiB"


def _devices(report: rdma.Report) -> str:
    rows = [
        (safe(one.name), str(port.number), port.state.lower(),
         f"{one.kind}{' (software)' if one.soft else ''}", port.link,
         safe(port.rate) or NOTHING, NOTHING if port.mtu is None else str(port.mtu),
         one.interface or NOTHING, one.node or NOTHING,
         "yes" if one.opens else f"no: {one.mode} {one.group}" if one.mode else "no")
        for one in report.machine.devices for port in one.ports
    ]
    head = ("DEVICE", "PORT", "STATE", "KIND", "LINK", "RATE", "MTU", "INTERFACE", "FILE", "OPENS")
    return table(head, rows, ("PORT", "MTU")) if rows else ""


def _gids(report: rdma.Report) -> str:
    rows = [
        (safe(one.name), str(port.number), str(gid.index), gid.text, gid.address or NOTHING,
         gid.type, safe(gid.interface) or NOTHING, "would be used" if gid.used else "")
        for one in report.machine.devices for port in one.ports for gid in port.gids
    ]
    head = ("DEVICE", "PORT", "INDEX", "GID", "ADDRESS", "TYPE", "INTERFACE", "")
    return table(head, rows, ("PORT", "INDEX")) if rows else ""


def _limits(report: rdma.Report) -> str:
    rows = [
        (safe(one.name), one.atomics or NOTHING, *(
            NOTHING if value is None else number(value)
            for value in (one.windows_max, one.completions_max, one.receives_max,
                          one.queue_pairs_max, one.reads_max, one.inline_max)))
        for one in report.machine.devices
    ]
    head = ("DEVICE", "ATOMICS", "WINDOWS", "COMPLETIONS", "RECEIVES", "QUEUE PAIRS", "READS",
            "INLINE")
    return table(head, rows, head[2:]) if rows else ""


def _missing(report: rdma.Report) -> str:
    if not report.missing:
        return ""
    lines = ["MISSING" if not report.usable else "COULD BE BETTER"]
    for place, one in enumerate(report.missing, 1):
        lines.append(f"{place:>3}. {safe(one.what)}")
        lines += [f"{COMMAND_INDENT}{line}" for line in one.mend]
    return "\n".join(lines)
