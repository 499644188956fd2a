"""What `dlock serve` can be told: the table that its flags, its environment, its TOML file and
docs/operations.md are made from."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from dlock.cli.door_words import DOORS
from dlock.cli.settings import COUNT, PATH, SECONDS, TEXT, YES_OR_NO, Kind, Setting, one_of
from dlock.server import TRANSPORTS, WAIT_MODES, ServerConfig

DEFAULTS: Final = ServerConfig()
NO_STATE_DIR: Final = "none"
# Variables of the client and of `dlock run`, which a server may meet and does not read.
OTHER_VARIABLES: Final = ("DLOCK_ADDRESS", "DLOCK_NAME", "DLOCK_TOKEN", "DLOCK_KIND",
                          "DLOCK_VERBS")


def parse_listen(text: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT, [V6]:PORT or HOST; ValueError says what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(DEFAULTS.port)
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT with a port in 0..65535")
    return host, int(port)


def _unparse_listen(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parse_state_dir(text: str) -> Path | str:
    return text if text == NO_STATE_DIR else Path(text)


LISTEN: Final = Kind("HOST:PORT", parse_listen, unparse=_unparse_listen)
STATE_DIR: Final = Kind('a path, or "none"', _parse_state_dir)

SETTINGS: Final = (
    Setting("listen", "HOST:PORT", LISTEN, (DEFAULTS.host, DEFAULTS.port),
            "where the control plane listens; port 0: any; [::1]:PORT for IPv6"),
    Setting("data-port", "PORT", COUNT, DEFAULTS.data_port,
            "TCP port of the data plane, at the same host; clients are told; 0: any"),
    Setting("state-dir", "DIR", STATE_DIR, None,
            'what survives a restart; "none": nothing', "by address, see below"),
    Setting("take-over", "YES", YES_OR_NO, DEFAULTS.take_over,
            "take the state directory over from a primary that has it still: that one stops by "
            "itself"),
    Setting("accept-empty-state", "YES", YES_OR_NO, DEFAULTS.accept_empty_state,
            "serve durable locks and records although the state directory is not that of the last "
            "primary, or has lost them: what there is counts"),
    Setting("address-file", "FILE", PATH, None,
            "its first line is HOST:PORT; written when it serves, removed at a clean end", "none"),
    Setting("max-locks", "N", COUNT, DEFAULTS.max_locks,
            "names in use at a time, up to 4000000"),
    Setting("max-clients", "N", COUNT, DEFAULTS.max_clients,
            "sessions at a time, up to 100000"),
    Setting("max-objects", "N", COUNT, DEFAULTS.max_objects,
            "64-bit objects at a time, up to 4000000"),
    Setting("session-ttl", "SECONDS", SECONDS, DEFAULTS.session_ttl_ms,
            "how long a client may be silent before its session ends; at least 1"),
    Setting("max-lease", "SECONDS", SECONDS, DEFAULTS.max_lease_ms,
            "the longest lease that a client may ask for"),
    Setting("recovery-deadline", "SECONDS", SECONDS, DEFAULTS.recovery_deadline_ms,
            "how long a start waits at most for clients that stay away; not under session-ttl and "
            "a margin", "as long as they could believe in what they hold"),
    Setting("wait", "MODE", one_of(*WAIT_MODES), DEFAULTS.wait_mode,
            "how the data plane waits: block sleeps, adaptive spins for a while and then sleeps, "
            "poll never sleeps"),
    Setting("transport", "WORD", one_of(*TRANSPORTS), DEFAULTS.transport,
            "auto serves RDMA too where it can be had, verbs does not start where it cannot, tcp "
            "does not look for it; TCP is always served"),
    Setting("device", "NAME", TEXT, DEFAULTS.device,
            "the RDMA device to serve on; dlock rdma lists them",
            "the best: hardware before soft-RoCE"),
    Setting("gid", "ADDRESS", TEXT, DEFAULTS.gid,
            "the address of the RDMA device to serve on: IPv4, IPv6 or a GID", "the best"),
    Setting("control-cpus", "CPUS", TEXT, DEFAULTS.control_cpus,
            "pins the control thread, as in 0-3,8", "not pinned"),
    Setting("data-cpus", "CPUS", TEXT, DEFAULTS.data_cpus,
            "pins the data-plane thread; with poll, give it a CPU of its own", "not pinned"),
    Setting("door", "KIND=WORDS", DOORS, (),
            "a door beside the primary, with the original's words; may be given several times",
            "none"),
    Setting("log-level", "LEVEL", one_of("debug", "info", "warning", "error"), "info",
            "how much is logged on standard error"),
)
