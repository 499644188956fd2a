"""The data plane of one server as Python sees it, thin like `dlock._core`: it decides nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol

from dlock import _verbs
from dlock._core import Command, Event, Limits, command_struct, ffi, layout, lib

_EVENT: Final = layout("dlk_event", Event._fields)


class PlaneConfig(NamedTuple):
    """struct dlk_plane_config; 0 in spin_us and stall_ms means the default, 0 in confirm_ms that it
    needs no CONFIRMED, -1 in listen_fd that it listens itself."""

    limits: Limits
    epoch: int
    wait_mode: int = lib.DLK_WAIT_ADAPTIVE
    ready: int = 1
    spin_us: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    stall_ms: int = 0
    confirm_ms: int = 0
    listen_fd: int = -1


class Pairs(Protocol):
    """What makes queue pairs in the place of the C core: they are connections to the data port of
    their own (`dlock.rdma.server`)."""

    @property
    def counters(self) -> Mapping[str, int]: ...
    def verbs_pair(self, peer: _verbs.Address) -> _verbs.Made: ...
    def verbs_pair_free(self, pair: int) -> None: ...
    def close(self) -> None: ...


class Plane:
    """The data plane of one server. `run` belongs to a thread of its own (or instead of it `turn`,
    and `engine`, to whoever has no thread for it); `send_command`, `take_event` and the event
    descriptor to the control thread; `stop` to anybody."""

    def __init__(self, config: PlaneConfig) -> None:
        """OSError if the port cannot be had, MemoryError if the tables cannot. A `listen_fd` is the
        plane's from now on, whatever happens."""
        self._pid = os.getpid()
        self._pointer: Any = None
        self._pairs: Pairs | None = None
        fields = {
            **config._asdict(),
            "limits": config.limits._asdict(),
            "host": config.host.encode("ascii"),
        }
        error = ffi.new("int *")
        pointer = lib.dlk_plane_new(ffi.new("struct dlk_plane_config *", fields), error)
        if pointer == ffi.NULL:
            if error[0] in (0, errno.ENOMEM):
                raise MemoryError("no memory for a data plane of these limits")
            raise OSError(error[0], os.strerror(error[0]), f"{config.host}:{config.port}")
        self._pointer = pointer
        self._event = ffi.new("struct dlk_event *")
        self._event_bytes = ffi.buffer(self._event)

    def __del__(self) -> None:
        if getattr(self, "_pointer", None) is not None:
            self.free()

    def free(self) -> None:
        """Closes every connection and gives the tables back; only after `run` has returned."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None and self._pid == os.getpid():
            lib.dlk_plane_free(pointer)
            if self._pairs is not None:  # which tell their clients what the plane said at last
                self._pairs.close()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(lib.dlk_plane_port(self._pointer))

    def run(self) -> int:
        """Serves until `stop`; stays in C without the interpreter lock. 0, or an errno."""
        return int(lib.dlk_plane_run(self._pointer))

    def turn(self) -> int:
        """Does what there is to do and never waits; the caller has one thread for everything.
        Returns when, by `now_ns`, it wants to be called again at the latest (0: at once), or sooner
        if there are commands or bytes for it; 2**64-1: it has ended (`error` says why)."""
        return int(lib.dlk_plane_turn(self._pointer))

    @property
    def engine(self) -> Any:
        """Its struct dlk_engine *, to be looked at between turns; not after `free`."""
        return lib.dlk_plane_engine(self._pointer)

    @property
    def error(self) -> int:
        """The errno that made it end by itself, or 0."""
        return int(lib.dlk_plane_error(self._pointer))

    def stop(self) -> None:
        """Makes `run` return soon; waiters are woken with STOPPING."""
        lib.dlk_plane_stop(self._pointer)

    def send_command(self, command: Command) -> bool:
        """False: the ring is full, try again after an event."""
        return bool(lib.dlk_plane_send_command(self._pointer, command_struct(command)))

    def take_event(self) -> Event | None:
        """The next event, if there is one."""
        if not lib.dlk_plane_take_event(self._pointer, self._event):
            return None
        return Event(*_EVENT.unpack_from(self._event_bytes))

    @property
    def event_fd(self) -> int:
        """Readable while events wait; call `event_fd_clear` before taking them."""
        return int(lib.dlk_plane_event_fd(self._pointer))

    def event_fd_clear(self) -> None:
        """Takes the readiness away."""
        lib.dlk_plane_event_fd_clear(self._pointer)

    def counters(self) -> list[int]:
        """In the order of `counter_names`; any thread."""
        out = ffi.new("uint64_t[]", lib.DLK_COUNT_MAX)
        lib.dlk_plane_counters(self._pointer, out, lib.DLK_COUNT_MAX)
        return list(out)

    def verbs_open(self, port: _verbs.Port) -> tuple[bool, str]:
        """Before its first turn: it serves verbs too, at this port. Does it, and with what; or why
        not."""
        reason = _verbs.new_reason()
        opened = lib.dlk_plane_verbs_open(self._pointer, _verbs.port_struct(port), reason)
        return bool(opened), _verbs.text_from(reason)

    def verbs_instead(self, pairs: Pairs) -> None:
        """Before its first turn: these serve verbs, and end with it."""
        self._pairs = pairs

    @property
    def pair_counters(self) -> Mapping[str, int]:
        """What those have counted, by the names of Stats; any thread."""
        return {} if self._pairs is None else self._pairs.counters

    def verbs_pair(self, peer: _verbs.Address) -> _verbs.Made:
        """A queue pair for that end; until a LINK_OPEN with it is done, it is to be given back with
        `verbs_pair_free`."""
        if self._pairs is not None:
            return self._pairs.verbs_pair(peer)
        own, pair = ffi.new("struct dlk_verbs_address *"), ffi.new("uint64_t *")
        reason = _verbs.new_reason()
        status = lib.dlk_plane_verbs_pair(
            self._pointer, _verbs.address_struct(peer), own, pair, reason)
        return _verbs.Made(
            int(status), _verbs.address_from(own), int(pair[0]), _verbs.text_from(reason))

    def verbs_pair_free(self, pair: int) -> None:
        """The plane has not taken this one, and never will."""
        if self._pairs is not None:
            self._pairs.verbs_pair_free(pair)
        else:
            lib.dlk_plane_verbs_pair_free(self._pointer, pair)
