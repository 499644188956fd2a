"""DLock's server API (specification, section 4): the same names, argument order and statuses.

Every call returns a DlockStatus or (DlockStatus, value) and raises nothing but TypeError, for an
argument of the wrong Python type. Any thread may call; a forked child starts with no servers.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from dlock import _core
from dlock.server import Server, ServerConfig, ServerError
from dlock.types import (
    DebugStats,
    DlockStatus,
    PrimaryCfg,
    ServerCfg,
    ServerType,
    SslCfg,
    TransMode,
)

__all__ = [
    "clear_server_debug_stats", "dserver_lib_deinit", "dserver_lib_init", "get_server_debug_stats",
    "server_start", "server_stop",
]

_log = logging.getLogger("dlock.server")
STATS_NAMES: Final = tuple(one.name for one in fields(DebugStats))


class _Library:
    """What dserver_lib_init sets up: the servers of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pid = os.getpid()
        self.max_servers = 0  # 0: not initialised
        self.servers: dict[int, Server] = {}
        self.starting = 0
        self.baselines: dict[int, Counter[str]] = {}
        self.last_id = 0

    def new_id(self) -> int:
        """1..DLK_SERVER_ID_MAX, one that no running server has."""
        while True:
            self.last_id = self.last_id % _core.DLK_SERVER_ID_MAX + 1
            if self.last_id not in self.servers:
                return self.last_id


_library = _Library()


def _here() -> _Library:
    """The library of this process; a forked child has none of its parent's servers."""
    global _library
    if _library.pid != os.getpid():
        _library = _Library()
    return _library


def _integer(value: object, name: str) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    return int(value)


def dserver_lib_init(max_server_num: int) -> DlockStatus:
    """Allows 1..32 servers. ERROR: outside of that, or initialised before."""
    if max_server_num is None:
        return DlockStatus.EINVAL
    number = _integer(max_server_num, "max_server_num")
    library = _here()
    with library.lock:
        if library.max_servers or not 1 <= number <= _core.DLK_SERVERS_PER_PROCESS_MAX:
            return DlockStatus.ERROR
        library.max_servers = number
        return DlockStatus.SUCCESS


def dserver_lib_deinit() -> DlockStatus:
    """Stops every server and joins its threads."""
    library = _here()
    with library.lock:
        servers = list(library.servers.values())
        library.servers.clear()
        library.baselines.clear()
        library.max_servers = 0
    for server in servers:
        server.stop()
    return DlockStatus.SUCCESS


def server_start(cfg: ServerCfg) -> tuple[DlockStatus, int | None]:
    """(status, server id). SERVER_NO_RESOURCE: max_server_num run already, or no memory; ERROR:
    a taken port, a bad configuration (the log says what), or not initialised. With
    `recovery_client_num`, or a `state_dir` that names clients of a former primary, it first gets
    everything back from them (specification, section 7)."""
    if cfg is None:
        return DlockStatus.EINVAL, None
    if not isinstance(cfg, ServerCfg):
        raise TypeError(f"cfg must be a ServerCfg, not {type(cfg).__name__}")
    _check_types(cfg)
    library = _here()
    with library.lock:
        if not library.max_servers:
            return DlockStatus.ERROR, None
        if len(library.servers) + library.starting >= library.max_servers:
            return DlockStatus.SERVER_NO_RESOURCE, None
        library.starting += 1
    server = None
    try:
        server = Server(_config_of(cfg))
    except ServerError as problem:
        _log.error("server_start: %s", problem)
        return DlockStatus.ERROR, None
    except MemoryError as problem:
        _log.error("server_start: %s", problem)
        return DlockStatus.SERVER_NO_RESOURCE, None
    finally:
        with library.lock:
            library.starting -= 1
            wanted = library.max_servers > 0
            if server is not None and wanted:
                server_id = library.new_id()
                library.servers[server_id] = server
    if not wanted:
        server.stop()
        return DlockStatus.ERROR, None
    return DlockStatus.SUCCESS, server_id


def server_stop(server_id: int) -> DlockStatus:
    """ERROR: no such server. To its clients it is like a crash."""
    if server_id is None:
        return DlockStatus.EINVAL
    number = _integer(server_id, "server_id")
    library = _here()
    with library.lock:
        server = library.servers.pop(number, None)
        library.baselines.pop(number, None)
    if server is None:
        return DlockStatus.ERROR
    server.stop()
    return DlockStatus.SUCCESS


def get_server_debug_stats(server_id: int) -> tuple[DlockStatus, DebugStats | None]:
    """What the server refused, and what went wrong on its connections."""
    if server_id is None:
        return DlockStatus.EINVAL, None
    number = _integer(server_id, "server_id")
    library = _here()
    with library.lock:
        server = library.servers.get(number)
        baseline = library.baselines.get(number, Counter())
    if server is None:
        return DlockStatus.ERROR, None
    counted = _counted(server)
    return DlockStatus.SUCCESS, DebugStats(**{
        name: counted.get(name, 0) - baseline[name] for name in STATS_NAMES})


def clear_server_debug_stats(server_id: int) -> DlockStatus:
    """Counts from 0 again. ERROR: no such server."""
    if server_id is None:
        return DlockStatus.EINVAL
    number = _integer(server_id, "server_id")
    library = _here()
    with library.lock:
        server = library.servers.get(number)
        if server is None:
            return DlockStatus.ERROR
        library.baselines[number] = _counted(server)
    return DlockStatus.SUCCESS


def _counted(server: Server) -> Counter[str]:
    """Under the names of DebugStats, too: what DLock runs out of are buffers for messages."""
    counted = Counter(server.stats())
    counted["NO_URMA_BUF"] = counted["VERBS_NO_ROOM"]
    return counted


# ---- ServerCfg -> ServerConfig -------------------------------------------------------------------

_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "type": (int,), "dev_name": (str,), "eid": (str, bytes), "log_level": (int,),
    "sleep_mode_enable": (int,), "tp_mode": (int,), "ub_token_disable": (int,),
    "max_locks": (int,), "max_clients": (int,), "max_objects": (int,),
    "session_ttl": (int, float), "max_lease": (int, float), "recovery_deadline": (int, float),
    "state_dir": (str, os.PathLike),
    "num_of_replica": (int,), "recovery_client_num": (int,), "ctrl_cpuset": (str,),
    "cmd_cpuset": (str,), "server_ip_str": (str,), "server_port": (int,), "replica_port": (int,),
    "replica_enable": (int,), "ssl_enable": (int,),
}
_OPTIONAL: Final = {
    "dev_name", "eid", "sleep_mode_enable", "recovery_deadline", "state_dir", "ctrl_cpuset",
    "cmd_cpuset",
}


def _check_types(cfg: ServerCfg) -> None:
    """TypeError for a field of the wrong type; None is judged later, as a missing value."""
    for name, expected in (("primary", PrimaryCfg), ("ssl", SslCfg)):
        if not isinstance(getattr(cfg, name), expected | None):
            raise TypeError(f"{name} must be a {expected.__name__}")
    for part in (cfg, cfg.primary, cfg.ssl):
        for one in fields(part) if part is not None else ():
            value, types = getattr(part, one.name), _TYPES.get(one.name)
            if value is not None and types and not isinstance(value, types):
                raise TypeError(f"{one.name} must be {types[0].__name__}, "
                                f"not {type(value).__name__}")


def _config_of(cfg: ServerCfg) -> ServerConfig:
    """ServerError: what it asks for cannot be had."""
    if cfg.primary is None or cfg.ssl is None:
        raise ServerError("primary or ssl is missing")
    for part in (cfg, cfg.primary, cfg.ssl):
        for one in fields(part):
            required = one.name in _TYPES and one.name not in _OPTIONAL
            if required and getattr(part, one.name) is None:
                raise ServerError(f"{one.name} is missing")
    _refuse_unsupported(cfg)
    primary = cfg.primary
    deadline_s = cfg.recovery_deadline
    return ServerConfig(
        host=primary.server_ip_str or "",
        port=primary.server_port if primary.server_port > 0 else _core.DLK_CONTROL_PORT_DEFAULT,
        max_locks=cfg.max_locks,
        max_clients=cfg.max_clients,
        max_objects=cfg.max_objects,
        session_ttl_ms=_milliseconds(cfg.session_ttl, "session_ttl"),
        max_lease_ms=_milliseconds(cfg.max_lease, "max_lease"),
        wait_mode=_wait_mode(cfg.sleep_mode_enable),
        control_cpus=primary.ctrl_cpuset,
        data_cpus=primary.cmd_cpuset,
        state_dir=Path(cfg.state_dir) if cfg.state_dir is not None else None,
        recovery_client_num=primary.recovery_client_num,
        trusted=cfg.state_dir is None,
        recovery_deadline_ms=(
            None if deadline_s is None else _milliseconds(deadline_s, "recovery_deadline")),
        **_transport(cfg),
    )


def _transport(cfg: ServerCfg) -> dict[str, Any]:
    """A device that is named is what DLock serves on; without one the environment may ask for
    it."""
    environment = os.environ
    named = bool(cfg.dev_name or cfg.eid)
    return {
        "transport": "verbs" if named else environment.get("DLOCK_TRANSPORT") or "tcp",
        "device": cfg.dev_name or (None if named else environment.get("DLOCK_DEVICE")),
        "gid": cfg.eid or (None if named else environment.get("DLOCK_GID")),
    }


def _refuse_unsupported(cfg: ServerCfg) -> None:
    if cfg.type != ServerType.PRIMARY:
        raise ServerError(f"a server of type {cfg.type} is not supported, only PRIMARY is")
    if cfg.tp_mode not in (TransMode.SEPERATE_CONN, TransMode.UNI_CONN):
        raise ServerError(f"tp_mode is {cfg.tp_mode}; it must be a TransMode")
    if cfg.ssl.ssl_enable:
        raise ServerError(
            "ssl_enable is set, but TLS is not supported yet: nothing is served rather than "
            "served in the clear. Set ssl_enable to False on a network that you trust")
    if not cfg.primary.server_ip_str:
        raise ServerError("server_ip_str is empty; give the address to listen on")


def _milliseconds(seconds: float, name: str) -> int:
    try:
        return round(seconds * 1000)
    except (ValueError, OverflowError):
        raise ServerError(f"{name} is {seconds}, which is no duration") from None


def _wait_mode(sleep_mode_enable: bool | None) -> str:
    if sleep_mode_enable is None:
        return os.environ.get("DLOCK_WAIT") or "adaptive"
    return "block" if sleep_mode_enable else "poll"
