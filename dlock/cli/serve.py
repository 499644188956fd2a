"""`dlock serve`: one primary in the foreground, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from dlock.server import WAIT_MODES, AddressError, Server, ServerConfig, ServerError, StateError

DEFAULTS: Final = ServerConfig()
EXIT_CLEAN, EXIT_FAILED, EXIT_USAGE, EXIT_ADDRESS, EXIT_STATE, EXIT_MEMORY = range(6)
WILDCARDS: Final = ("0.0.0.0", "::")
ADDRESS_FILE_BYTES_MAX: Final = 4096
DESCRIPTORS_PER_CLIENT: Final = 4  # two connections, and two more while it re-initialises
DESCRIPTORS_EXTRA: Final = 1024
_log = logging.getLogger("dlock.serve")

EPILOG: Final = f"""\
state directory:
  It holds the epoch and what was promised to clients, so that a restart grants nothing that a
  client of the former primary could still believe to hold. Default: with a fixed port
  $XDG_STATE_HOME/dlock/HOST-PORT (~/.local/state without XDG_STATE_HOME); with port 0 and
  --address-file FILE: FILE.state; with port 0 and no address file nothing is kept, since nobody
  can know a former one. "none": nothing is kept, and nothing is granted for session-ttl and a
  margin after the start.

exit codes:
  {EXIT_CLEAN}  ended by SIGTERM or SIGINT
  {EXIT_FAILED}  stopped by itself: another primary took the state directory, or a fault (see log)
  {EXIT_USAGE}  a flag or value is wrong, a CPU set included
  {EXIT_ADDRESS}  the address or port cannot be listened on
  {EXIT_STATE}  the state directory or the address file is in use, damaged or cannot be written
  {EXIT_MEMORY}  not enough memory for tables of these sizes
"""


def register(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "serve", help="run a primary", description="Runs a primary until SIGTERM or SIGINT.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", metavar="HOST:PORT", type=_address,
                        default=(DEFAULTS.host, DEFAULTS.port),
                        help=f"port 0: any (default {DEFAULTS.host}:{DEFAULTS.port})")
    parser.add_argument("--data-port", metavar="PORT", type=int, default=0,
                        help="TCP port of the data plane (default: any)")
    parser.add_argument("--state-dir", metavar="DIR", help='or "none"; default: see below')
    parser.add_argument("--address-file", metavar="FILE", type=Path,
                        help="its first line is HOST:PORT; written when it serves, removed when "
                             "it ends")
    parser.add_argument("--max-locks", metavar="N", type=int, default=DEFAULTS.max_locks)
    parser.add_argument("--max-clients", metavar="N", type=int, default=DEFAULTS.max_clients)
    parser.add_argument("--max-objects", metavar="N", type=int, default=DEFAULTS.max_objects)
    parser.add_argument("--session-ttl", metavar="SECONDS", type=_milliseconds,
                        default=DEFAULTS.session_ttl_ms, dest="session_ttl_ms",
                        help=f"how long a client may be silent, at least 1 "
                             f"(default {DEFAULTS.session_ttl_ms // 1000})")
    parser.add_argument("--max-lease", metavar="SECONDS", type=_milliseconds,
                        default=DEFAULTS.max_lease_ms, dest="max_lease_ms",
                        help=f"the longest lease (default {DEFAULTS.max_lease_ms // 1000})")
    parser.add_argument("--wait", choices=tuple(WAIT_MODES),
                        default=os.environ.get("DLOCK_WAIT") or DEFAULTS.wait_mode,
                        help="how the data plane waits for messages; also DLOCK_WAIT "
                             f"(default {DEFAULTS.wait_mode})")
    parser.add_argument("--control-cpus", metavar="CPUS", help="pins the control thread: 0-1,3")
    parser.add_argument("--data-cpus", metavar="CPUS", help="pins the data-plane thread")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"),
                        default="info", help="of the log on standard error (default info)")
    parser.set_defaults(run=run)


def _address(text: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT, [V6]:PORT or HOST."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(DEFAULTS.port)
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT with a port in 0..65535")
    return host, int(port)


def _milliseconds(text: str) -> int:
    try:
        return round(float(text) * 1000)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None


def run(arguments: argparse.Namespace) -> int:
    """Serves; returns the exit code."""
    logging.basicConfig(
        level=arguments.log_level.upper(), stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _allow_descriptors(arguments.max_clients)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    try:
        server = Server(_config(arguments))
    except (ServerError, MemoryError) as problem:
        print(f"dlock serve: {problem}", file=sys.stderr)
        return _exit_code(problem)
    address_file = None
    try:
        if arguments.address_file:
            address_file = AddressFile(arguments.address_file, server)
        _greet(server)
        while not stop.is_set() and not server.wait(0.2):
            pass
    except OSError as problem:
        print(f"dlock serve: the address file {arguments.address_file} cannot be written: "
              f"{problem}. Choose another place for it", file=sys.stderr)
        return EXIT_STATE
    finally:
        server.stop()
        if address_file:
            address_file.remove()
    if server.failure is not None:
        print(f"dlock serve: stopped serving: {server.failure}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_CLEAN


def _allow_descriptors(max_clients: int) -> None:
    """Two connections a client and some more need descriptors: takes what the hard limit gives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_PER_CLIENT * max(max_clients, 0) + DESCRIPTORS_EXTRA
    if hard != resource.RLIM_INFINITY and wanted > hard:
        _log.warning("at most %d files may be open, %d clients may need %d: raise the hard limit "
                     "(ulimit -Hn) or lower --max-clients", hard, max_clients, wanted)
        wanted = hard
    if soft != resource.RLIM_INFINITY and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _exit_code(problem: Exception) -> int:
    for kind, code in ((AddressError, EXIT_ADDRESS), (StateError, EXIT_STATE),
                       (MemoryError, EXIT_MEMORY)):
        if isinstance(problem, kind):
            return code
    return EXIT_USAGE


def _config(arguments: argparse.Namespace) -> ServerConfig:
    host, port = arguments.listen
    return ServerConfig(
        host=host,
        port=port,
        data_port=arguments.data_port,
        max_locks=arguments.max_locks,
        max_clients=arguments.max_clients,
        max_objects=arguments.max_objects,
        session_ttl_ms=arguments.session_ttl_ms,
        max_lease_ms=arguments.max_lease_ms,
        wait_mode=arguments.wait,
        control_cpus=arguments.control_cpus,
        data_cpus=arguments.data_cpus,
        state_dir=_state_dir(arguments),
        epoch_above=_epoch_shown(arguments.address_file) if arguments.address_file else 0,
        settle_blindly=arguments.state_dir == "none",
    )


def _state_dir(arguments: argparse.Namespace) -> Path | Callable[[int], Path] | None:
    """See EPILOG."""
    host, port = arguments.listen
    if arguments.state_dir == "none":
        return None
    if arguments.state_dir:
        return Path(arguments.state_dir)
    if port == 0:
        file: Path | None = arguments.address_file
        return file.with_name(file.name + ".state") if file else None
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    name = f"{host}-{port}".replace("/", "_")
    return Path(home).expanduser() / "dlock" / name


def _greet(server: Server) -> None:
    """The one line on standard output; whoever started us may have closed it."""
    state = server.state_path or "none"
    greeting = (f"dlock serves on {server.address} (data port {server.data_port}, epoch "
                f"{server.epoch}, state directory {state}, waiting {server.config.wait_mode})")
    if server.settle_ms:
        greeting += f"; grants nothing for the next {server.settle_ms / 1000:.1f} s"
    try:
        print(greeting, flush=True)
    except BrokenPipeError:
        with open(os.devnull, "wb") as nowhere:  # else the flush at exit fails again
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _epoch_shown(path: Path) -> int:
    """The epoch that an address file left by a former primary shows; 0 without one."""
    try:
        lines = path.read_bytes()[:ADDRESS_FILE_BYTES_MAX].decode().splitlines()
        word, number = lines[1].split()[:2]
        return int(number) if word == "epoch" and number.isdecimal() else 0
    except (OSError, ValueError, IndexError):
        return 0


class AddressFile:
    """Where clients find the server: "HOST:PORT", then "epoch N pid P". Written whole, by rename;
    removed only while it still says so, since another primary may have written its own."""

    def __init__(self, path: Path, server: Server) -> None:
        self._path = path
        address = server.address
        if server.host in WILDCARDS:
            address = f"{socket.gethostname()}:{server.port}"
        self._content = f"{address}\nepoch {server.epoch} pid {os.getpid()}\n".encode()
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            fresh.write_bytes(self._content)
            fresh.replace(path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise

    def remove(self) -> None:
        """At a clean end."""
        with contextlib.suppress(OSError):
            if self._path.read_bytes() == self._content:
                self._path.unlink()
