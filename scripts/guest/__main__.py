"""The command line of the guest: prepare, run, devices. `--help` of each says more."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path

if not __package__:  # started as a folder: python3 scripts/guest
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from guest import devices, machine, prepare

UNAVAILABLE = 3  # of `prepare`: this machine cannot have a guest


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/guest", description="a small virtual machine with soft-RoCE")
    parser.add_argument(
        "--cache", type=Path, default=prepare.default_cache(), metavar="FOLDER",
        help="where the kernel is kept (default: %(default)s; or set DLOCK_GUEST_CACHE)")
    commands = parser.add_subparsers(dest="action", required=True)
    commands.add_parser(
        "prepare", help=f"fetch what it needs; status {UNAVAILABLE}: it cannot be had here")
    run = commands.add_parser(
        "run", help="boot it, run a command in it, bring its output and exit status back",
        description=f"Status {machine.NO_STATUS}: the guest gave none; its log is on stderr.")
    run.add_argument("--devices", action="append", default=[], choices=("dummy", "veth"),
                     help="make these RDMA devices first; may be given for both kinds")
    run.add_argument("--cpus", type=int, default=2)
    run.add_argument("--memory", default="1G")
    run.add_argument("--limit", type=float, default=600.0, metavar="SECONDS")
    run.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    run.add_argument("--shared", type=Path, metavar="FOLDER", help="the guest may write in it")
    run.add_argument("--kvm", action="store_true",
                     help="let the processor run it; where that does not work, it hangs")
    run.add_argument("command", nargs="+", help="one word: for the shell; more: as they are")
    make = commands.add_parser("devices", help="inside the guest: make RDMA devices")
    make.add_argument("kind", nargs="+", choices=("dummy", "veth"))
    return parser.parse_args(words)


def run_guest(asked: argparse.Namespace) -> int:
    prepared = prepare.ready(asked.cache)
    environment = {"PYTHONPATH": str(prepared.pyverbs), "DLOCK_GUEST": "1"}
    environment.update(word.partition("=")[::2] for word in asked.env)
    command = asked.command[0] if len(asked.command) == 1 else shlex.join(asked.command)
    if asked.devices:
        # The virtual environment of the caller may not be there yet; this Python is.
        made = [sys.executable, str(Path(__file__).parent), "devices", *asked.devices]
        command = f"{shlex.join(made)} || exit\n{command}"
    guest = machine.Guest(
        prepared, asked.cpus, asked.memory, asked.kvm, asked.limit, environment,
        shared=asked.shared)
    return guest.run(command)


def main(words: list[str]) -> int:
    # As for Ctrl-C: what has been started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    asked = parsed(words)
    try:
        if asked.action == "prepare":
            prepared = prepare.prepare(asked.cache)
            print(f"ready: Linux {prepared.release} in {asked.cache}")
            return 0
        if asked.action == "run":
            return run_guest(asked)
    except prepare.Unavailable as problem:
        print(f"no guest on this machine: {problem}", file=sys.stderr)
        return UNAVAILABLE
    for kind in asked.kind:
        devices.make(kind)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
