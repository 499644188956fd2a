"""What a server remembers over its own death: one small file in a directory of its own.

    state   one line of JSON: the epoch, the incarnation of the start that wrote it, and what was
            promised to clients: the longest session_ttl, the longest lease, whether any session
            may still be open. Replaced by write, fsync, rename, fsync of the directory, so that a
            crash leaves either the old or the new one.
    lock    flock(2)ed while a primary runs, so that a second one on this machine is refused.

A promise is on disk before it is made, an epoch before its first grant. A start takes over the
promises of its predecessor until it has waited for them to end (`settled`), so that a start that
dies while it waits loses nothing. Used by the control thread only, once opened.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from dlock.control.fields import U32_MAX, U64_MAX
from dlock.control.messages import EPOCH_MAX

FORMAT: Final = 1
STATE_BYTES_MAX: Final = 4096
MARGIN_MS: Final = 100  # and DRIFT_DIVISOR: what clocks may differ by, see docs/operations.md
DRIFT_DIVISOR: Final = 500


class StateDirError(Exception):
    """The directory cannot be used; the text says why and what to do."""


class StateDirLostError(StateDirError):
    """The directory does not hold our own epoch any more: another primary took over."""


@dataclass(frozen=True, slots=True)
class State:
    """The content of the file."""

    epoch: int
    incarnation: int
    session_ttl_ms: int = 0
    longest_lease_ms: int = 0
    sessions_open: bool = False


def settle_ms(session_ttl_ms: int, longest_lease_ms: int) -> int:
    """How long clients of a primary that is gone could still believe in what it granted: the
    longest of session and lease, the time that it may have served on without noticing that it had
    been replaced (session_ttl / 4), and a margin for clocks."""
    base_ms = max(session_ttl_ms, longest_lease_ms) + -(-session_ttl_ms // 4)
    return with_margin_ms(base_ms)


def with_margin_ms(base_ms: int) -> int:
    """A duration by another machine's clock, for certain: 0.1 s and 0.2 % more."""
    return base_ms + MARGIN_MS + -(-base_ms // DRIFT_DIVISOR)


def encode_state(state: State) -> bytes:
    """The file's bytes."""
    body = json.dumps({"format": FORMAT, **asdict(state)}, sort_keys=True)
    return f"{zlib.crc32(body.encode()):08x} {body}\n".encode()


def decode_state(data: bytes) -> State:
    """ValueError says what is wrong."""
    if len(data) > STATE_BYTES_MAX:
        raise ValueError(f"it has more than {STATE_BYTES_MAX} bytes")
    checksum, space, body = data.rstrip(b"\n").partition(b" ")
    if not space or checksum != f"{zlib.crc32(body):08x}".encode():
        raise ValueError("its checksum is wrong")
    fields = json.loads(body)
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise ValueError(f"it is not of format {FORMAT}")
    limits = {"epoch": EPOCH_MAX, "incarnation": U64_MAX, "session_ttl_ms": U32_MAX,
              "longest_lease_ms": U32_MAX}
    if fields.keys() != {*limits, "sessions_open"}:
        raise ValueError("its fields are not the known ones")
    for name, high in limits.items():
        if type(fields[name]) is not int or not 0 <= fields[name] <= high:
            raise ValueError(f"{name} is not in 0..{high}")
    if type(fields["sessions_open"]) is not bool:
        raise ValueError("sessions_open is neither true nor false")
    return State(**fields)


class StateDir:
    """An open state directory of a running primary; use `open_state_dir`."""

    def __init__(self, path: Path, lock_fd: int, state: State, former: State | None) -> None:
        self._path = path
        self._lock_fd: int | None = lock_fd
        self._state = state
        self._former = former

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._path

    @property
    def state(self) -> State:
        """What is on disk now."""
        return self._state

    @property
    def settle_ms(self) -> int:
        """How long this start must not grant anything; 0: no former client can believe in
        anything."""
        if self._former is None or not self._former.sessions_open:
            return 0
        return settle_ms(self._former.session_ttl_ms, self._former.longest_lease_ms)

    def sessions_open(self, session_ttl_ms: int) -> None:
        """Before the first session is opened."""
        self._replace(
            sessions_open=True, session_ttl_ms=max(session_ttl_ms, self._state.session_ttl_ms))

    def lease_promised(self, lease_ms: int) -> None:
        """Before a lease of this length may be asked for."""
        self._replace(longest_lease_ms=max(lease_ms, self._state.longest_lease_ms))

    def epoch_taken(self, epoch: int) -> None:
        """Before a token of this epoch is given out."""
        self._replace(epoch=epoch)

    def settled(self) -> None:
        """Nobody believes in anything that was promised up to now."""
        self._replace(sessions_open=False, session_ttl_ms=0, longest_lease_ms=0)

    def confirm(self) -> None:
        """StateDirLostError unless the directory still holds what this primary wrote."""
        try:
            found = decode_state((self._path / "state").read_bytes())
        except (OSError, ValueError) as problem:
            raise StateDirLostError(
                f"the state directory {self._path} cannot be confirmed: {problem}") from None
        if (found.epoch, found.incarnation) != (self._state.epoch, self._state.incarnation):
            raise StateDirLostError(
                f"another primary took over the state directory {self._path}: it holds epoch "
                f"{found.epoch}, this one has {self._state.epoch}")

    def close(self) -> None:
        """Lets another primary have it."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _replace(self, **changes: int | bool) -> None:
        changed = replace(self._state, **changes)  # type: ignore[arg-type]
        if changed != self._state:
            self.confirm()
            _write(self._path, changed)
            self._state = changed


def open_state_dir(path: Path, incarnation: int, epoch_above: int = 0) -> StateDir:
    """Takes the directory, creates it if need be, and writes this start's epoch: one above that
    of the last start and above `epoch_above`. StateDirError says what to do."""
    try:
        _create(path)
        lock_fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        raise StateDirError(
            f"the state directory {path} cannot be used: {problem}. Choose another one, or make "
            f"it readable and writable for this user") from None
    try:
        _lock(path, lock_fd)
        former = _read(path)
        epoch = max(former.epoch if former else 0, epoch_above) + 1
        if epoch > EPOCH_MAX:
            raise StateDirError(
                f"the state directory {path} has used up all {EPOCH_MAX} epochs. Stop every "
                f"client, wait for the longest lease to end, and start with an empty directory")
        state = replace(former or State(0, 0), epoch=epoch, incarnation=incarnation)
        _write(path, state)
    except BaseException:
        os.close(lock_fd)
        raise
    return StateDir(path, lock_fd, state, former)


def _create(path: Path) -> None:
    """Makes the directory and what is missing above it, to stay: an empty or missing directory
    says that there never was a primary, so it must not vanish with the power."""
    if path.is_dir():
        return
    if not path.parent.exists():
        _create(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    _sync_directory(path.parent)


def _lock(path: Path, lock_fd: int) -> None:
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock_fd, 64, 0).decode("ascii", "replace").strip()
        raise StateDirError(
            f"the state directory {path} is in use by another primary"
            f"{f' (process {holder})' if holder else ''}. Stop that one first, or choose another "
            f"directory") from None
    except OSError as problem:
        raise StateDirError(
            f"the state directory {path} cannot be locked: {problem}. Choose one on a file system "
            f"with flock") from None
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)


def _read(path: Path) -> State | None:
    """None: there never was a primary here."""
    file = path / "state"
    try:
        return decode_state(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise StateDirError(
            f"{file} cannot be read: {problem}. Make it readable for this user") from None
    except ValueError as problem:
        raise StateDirError(
            f"{file} is damaged: {problem}. What the former primary promised is not known. Put "
            f"back a good copy; or stop every client, wait for the longest lease to end, and "
            f"remove the file") from None


def _write(path: Path, state: State) -> None:
    """Write, fsync, rename, fsync of the directory; StateDirError if any of it fails."""
    fresh = path / "state.new"
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            data = encode_state(state)
            while data:
                data = data[os.write(fd, data):]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(fresh, path / "state")
        _sync_directory(path)
    except OSError as problem:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise StateDirError(
            f"the state directory {path} cannot be written: {problem}. The server must not "
            f"promise what it cannot write down") from None


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
