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
from pathlib import Path
from typing import Any, Final

from dlock.cli.door_words import twice
from dlock.cli.serve_doors import Doors, problem_of
from dlock.cli.serve_settings import NO_STATE_DIR, OTHER_VARIABLES, SETTINGS
from dlock.cli.settings import SettingError, add_flags, as_toml, resolve, stray_variables
from dlock.server import AddressError, Server, ServerConfig, ServerError, StateError

EXIT_CLEAN, EXIT_FAILED, EXIT_USAGE, EXIT_ADDRESS, EXIT_STATE, EXIT_MEMORY = range(6)
WILDCARDS: Final = ("0.0.0.0", "::")
ADDRESS_FILE_BYTES_MAX: Final = 4096
DESCRIPTORS_PER_CLIENT: Final = 4  # two connections, and two more while it re-initialises
DESCRIPTORS_EXTRA: Final = 1024
_log = logging.getLogger("dlock.serve")

EPILOG: Final = f"""\
settings:
  Every setting may also stand in the environment (--max-locks: DLOCK_MAX_LOCKS) and in the TOML
  file that --config or DLOCK_CONFIG names (max-locks = 1000). A flag stands over the environment,
  the environment over the file. A key that is not known is refused. Paths in the file are seen
  from its own folder.

doors:
  --door glockd='-port 9999 -pidfile /run/glockd.pid' runs `dlock door glockd` with these words
  beside this primary for as long as it serves: started again when it ends by itself, ended with
  it. DLOCK_DOOR has one a line, TOML has [[door]] tables: kind, namespace, ready-file, flags.

state directory:
  It holds the epoch and who the clients are, so that a restart takes their locks over and grants
  nothing that one of them could still believe to hold. A directory whose primary runs is refused;
  with --take-over that primary stops by itself, and nothing is granted before it has. Default: with
  a fixed port
  $XDG_STATE_HOME/dlock/HOST-PORT (~/.local/state without XDG_STATE_HOME); with port 0 and
  --address-file FILE: FILE.state; with port 0 and no address file nothing is kept, since nobody
  can know a former one. "none": nothing is kept, and nothing is granted for session-ttl and a
  margin after the start.

exit codes:
  {EXIT_CLEAN}  ended by SIGTERM or SIGINT
  {EXIT_FAILED}  stopped by itself: another primary took the state directory, or a fault (see log)
  {EXIT_USAGE}  a flag, variable, key or value is wrong, a CPU set or the words of a door included;
     or RDMA is asked for (--transport verbs) and cannot be had
  {EXIT_ADDRESS}  the address or port cannot be listened on
  {EXIT_STATE}  the state directory or the address file is in use, damaged or cannot be written
  {EXIT_MEMORY}  not enough memory for tables of these sizes
"""


def register(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "serve", help="run a primary", description="Runs a primary until SIGTERM or SIGINT.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, SETTINGS)
    parser.add_argument("--print-config", action="store_true",
                        help="print the settings as TOML, each with its source, and end")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serves; returns the exit code."""
    try:
        values = resolve(SETTINGS, arguments, os.environ)
    except SettingError as problem:
        print(f"dlock serve: {problem}", file=sys.stderr)
        return EXIT_USAGE
    if arguments.print_config:
        print(as_toml(SETTINGS, values), end="")
        return EXIT_CLEAN
    settings = argparse.Namespace(**{name: one.value for name, one in values.items()})
    logging.basicConfig(
        level=settings.log_level.upper(), stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for hint in stray_variables(SETTINGS, OTHER_VARIABLES, os.environ):
        _log.warning("%s", hint)
    wrong = _doors_problem(settings)
    if wrong:
        print(f"dlock serve: {wrong}", file=sys.stderr)
        return EXIT_USAGE
    _allow_descriptors(settings.max_clients)
    return _serve(settings)


def _doors_problem(settings: argparse.Namespace) -> str | None:
    """What is wrong with the doors, before anything is served."""
    again = twice(settings.door)
    if again is not None:
        return (f"--door {again}: another one of this kind has the namespace {again.namespace}, "
                f"and each would end the other; give one of them a --namespace")
    return problem_of(settings.door)


def _serve(settings: argparse.Namespace) -> int:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    counters_wanted = threading.Event()
    signal.signal(signal.SIGUSR1, lambda _number, _frame: counters_wanted.set())
    try:
        server = Server(_config(settings))
    except (ServerError, MemoryError) as problem:
        print(f"dlock serve: {problem}", file=sys.stderr)
        return _exit_code(problem)
    address_file = None
    doors = Doors(settings.door, _own_address(server), settings.log_level)
    try:
        if settings.address_file:
            address_file = AddressFile(settings.address_file, server)
        _greet(server)
        while not stop.is_set() and not server.wait(0.2):
            doors.look()
            if counters_wanted.is_set():
                counters_wanted.clear()
                doors.tell_counters()
            if address_file:
                address_file.keep_up()
    except OSError as problem:
        print(f"dlock serve: the address file {settings.address_file} cannot be written: "
              f"{problem}. Choose another place for it", file=sys.stderr)
        return EXIT_STATE
    finally:
        doors.end()
        server.stop()
        if address_file:
            address_file.remove()
    if server.failure is not None:
        print(f"dlock serve: stopped serving: {server.failure}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_CLEAN


def _own_address(server: Server) -> str:
    """Where this machine reaches the server."""
    loopback = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(server.host)
    return f"{loopback}:{server.port}" if loopback else server.address


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


def _config(settings: argparse.Namespace) -> ServerConfig:
    host, port = settings.listen
    return ServerConfig(
        host=host,
        port=port,
        data_port=settings.data_port,
        max_locks=settings.max_locks,
        max_clients=settings.max_clients,
        max_objects=settings.max_objects,
        session_ttl_ms=settings.session_ttl,
        max_lease_ms=settings.max_lease,
        wait_mode=settings.wait,
        control_cpus=settings.control_cpus,
        data_cpus=settings.data_cpus,
        state_dir=_state_dir(settings),
        epoch_above=_epoch_shown(settings.address_file) if settings.address_file else 0,
        settle_blindly=settings.state_dir == NO_STATE_DIR,
        take_over=settings.take_over,
        accept_empty_state=settings.accept_empty_state,
        recovery_deadline_ms=settings.recovery_deadline,
        transport=settings.transport,
        device=settings.device,
        gid=settings.gid,
    )


def _state_dir(settings: argparse.Namespace) -> Path | None:
    """See EPILOG."""
    host, port = settings.listen
    if settings.state_dir == NO_STATE_DIR:
        return None
    given: Path | None = settings.state_dir
    if given:
        return given
    if port == 0:
        file: Path | None = settings.address_file
        return file.with_name(file.name + ".state") if file else None
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    name = f"{host}-{port}".replace("/", "_")
    return Path(home).expanduser() / "dlock" / name


def _greet(server: Server) -> None:
    """The one line on standard output; whoever started us may have closed it."""
    state = server.state_path or "none"
    greeting = (f"dlock serves on {server.address} (data port {server.data_port}, epoch "
                f"{server.epoch}, state directory {state}, waiting {server.config.wait_mode})")
    if server.rdma is not None:
        greeting += f"; RDMA at {server.rdma}"
    recovery = server.recovery
    if recovery is not None and recovery.roster:
        count = len(recovery.roster)
        greeting += f"; waits for {count} client{'s'[:count > 1]} of the former primary"
    if recovery is not None and recovery.not_before_ns > recovery.started_ns:
        seconds = (recovery.not_before_ns - recovery.started_ns) / 1e9
        greeting += f"; grants nothing for the next {seconds:.1f} s"
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
        self._server = server
        self._write()

    def _write(self) -> None:
        server = self._server
        self._epoch = server.epoch
        address = server.address
        if server.host in WILDCARDS:
            address = f"{socket.gethostname()}:{server.port}"
        self._content = f"{address}\nepoch {self._epoch} pid {os.getpid()}\n".encode()
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            fresh.write_bytes(self._content)
            fresh.replace(self._path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise

    def keep_up(self) -> None:
        """The server may have begun anew at a higher epoch."""
        if self._server.epoch != self._epoch and self._is_ours():
            self._write()

    def _is_ours(self) -> bool:
        try:
            return self._path.read_bytes() == self._content
        except OSError:
            return False

    def remove(self) -> None:
        """At a clean end."""
        if self._is_ours():
            with contextlib.suppress(OSError):
                self._path.unlink()
