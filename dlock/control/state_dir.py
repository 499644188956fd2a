"""What a server remembers over its own death: a directory with one small file a primary.

    state-E    what the primary of epoch E has promised: its incarnation, the longest session_ttl,
               and the roster, one line a session. Only that primary writes it: by write, fsync,
               rename, fsync of the directory, so that a crash leaves the old or the new one. It is
               made by link(2), which lets only one have an epoch.
    lock-E     flock(2)ed while that primary lives.

The highest epoch is the primary. One that finds a higher one than its own was replaced, and stops
(`confirm`); nothing that it still writes reaches its successor's file. A new start copies the
roster of the former primary into its own file, so that a start that dies before its recovery is
over loses nothing, and removes older files only then (`forget_former`). A former primary of which
it is not known that it is dead, because it has its lock still or ran on another machine, may go on
for a while and enter sessions: its file is read once more when it has stopped for certain
(`read_former_again`), and until then ours says so (`late`), for the one that comes after us.

Used by the control thread only, once opened.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from dlock import _core
from dlock._frozen import Frozen
from dlock.control.messages_base import EPOCH_MAX
from dlock.control.registry_effects import Persist, PersistEpoch
from dlock.control.roster import RosterEntry, with_margin_ms
from dlock.control.state_file import (
    HEADER_BYTES_MAX,
    Format1,
    Roster,
    State,
    changed,
    decode_format_1,
    decode_header,
    decode_state,
    encode_state,
)

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
STATE_NAME: Final = re.compile(r"state-([1-9][0-9]{0,6})")
DAMAGED_NAME: Final = re.compile(r"state-([1-9][0-9]{0,6})\.damaged")
FILE_NAME: Final = re.compile(r"(?:state|lock)-([1-9][0-9]{0,6})(\.[0-9a-f]{16}\.new)?")
# How often a start begins anew because others started, and were ready, before it had read a thing.
START_TRIES: Final = 10
FORMAT_1_FILES: Final = ("state", "lock", "state.new")


class StateDirError(Exception):
    """The directory cannot be used; the text says why and what to do."""


class StateDirLostError(StateDirError):
    """The directory is not ours any more: another primary took over."""


# ---- The directory -------------------------------------------------------------------------------


class Former(Frozen):
    """What a start found. `roster`: of the former primary; `stopped`: it is dead for certain,
    otherwise it may go on for `serves_ms` from the start; `settle_ms`: after a start of format 1,
    which did not say whose clients it had: for how long they could believe in anything."""

    session_ttl_ms: int
    roster: tuple[RosterEntry, ...]
    stopped: bool
    settle_ms: int = 0

    @property
    def serves_ms(self) -> int:
        """See the class."""
        return 0 if self.stopped else with_margin_ms(-(-self.session_ttl_ms // 4))


class StateDir:
    """An open state directory of a running primary; use `open_state_dir`. `former`: what a start
    found; `last_epoch`: the highest of a primary that has written here before, 0: none has."""

    def __init__(
        self, path: Path, lock_fd: int, state: State, session_ttl_ms: int,
        formers: tuple[int, ...], former: Former | None, last_epoch: int = 0,
    ) -> None:
        self._path = path
        self._lock_fd: int | None = lock_fd
        self._state = changed(state, roster={})  # that is kept in `roster`
        self._session_ttl_ms = session_ttl_ms
        self._formers = formers
        self._dirty = False
        self._next_epoch = state.epoch
        self.roster = Roster(state.roster)
        self.former = former
        self.last_epoch = last_epoch

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._path

    @property
    def epoch(self) -> int:
        """Ours, as it is on disk."""
        return self._state.epoch

    @property
    def durable(self) -> bool:
        """There is a durable store in it, of ours or of a former primary."""
        return self._state.durable

    # ---- Writing ---------------------------------------------------------------------------------

    def declare_durable(self) -> None:
        """Writes down that there is a durable store: who comes after us knows that it must be."""
        if not self._state.durable:
            self._state = changed(self._state, durable=True)
            self._write()

    def apply(self, effect: Persist) -> None:
        """To be written by the next `commit`."""
        self._dirty = True
        if isinstance(effect, PersistEpoch):
            self._next_epoch = max(self._next_epoch, effect.epoch)
        else:
            self.roster.apply(effect)

    def commit(self) -> int:
        """Writes what was applied, if anything was, and confirms: when it returns, that is on disk,
        and the directory was ours after it was."""
        if self._next_epoch != self._state.epoch:
            self._take_epoch(self._next_epoch)
        elif self._dirty:
            self._write()
        self._dirty = False
        return self.confirm()

    def _write(self) -> None:
        _replace(self._path, self._state, self._encoded())

    def _encoded(self) -> bytes:
        return encode_state(self._state, self.roster.lines.values())

    def _take_epoch(self, epoch: int) -> None:
        """The running primary goes to a higher epoch, by the same rule as a new one."""
        before, self._state = self._state, changed(self._state, epoch=epoch)
        lock_fd = _lock(_lock_file(self._path, epoch))
        if lock_fd is None:
            raise StateDirLostError(_taken_over(self._path, epoch, before.epoch))
        self.close()
        self._lock_fd = lock_fd
        _sign(lock_fd)
        if not _create(self._path, self._state, self._encoded()):
            raise StateDirLostError(_taken_over(self._path, epoch, before.epoch))
        for name in (f"state-{before.epoch}", f"lock-{before.epoch}"):
            (self._path / name).unlink(missing_ok=True)

    # ---- The others ------------------------------------------------------------------------------

    def confirm(self) -> int:
        """StateDirLostError unless this is the primary that the directory belongs to. Returns when
        the look began that has shown it."""
        own, began_ns = self._state, _core.now_ns()
        try:
            highest = max(_epochs(self._path), default=0)
            if highest > own.epoch:
                raise StateDirLostError(_taken_over(self._path, highest, own.epoch))
            with open(self._path / f"state-{own.epoch}", "rb") as file:
                header = file.readline(HEADER_BYTES_MAX)
            found = decode_header(header.partition(b" ")[2])
        except (OSError, ValueError) as problem:
            raise StateDirLostError(
                f"the state directory {self._path} cannot be confirmed: {problem}") from None
        if (found.epoch, found.incarnation) != (own.epoch, own.incarnation):
            raise StateDirLostError(
                f"another primary wrote into the state directory {self._path}: the file of epoch "
                f"{own.epoch} is not this one's any more")
        return began_ns

    def read_former_again(self) -> tuple[RosterEntry, ...]:
        """The roster of a former primary that has stopped by now."""
        try:
            roster = _merged(_left_behind(self._path, self._formers))
        except FileNotFoundError as problem:
            self.confirm()  # It went because a later one is ready.
            raise StateDirError(
                f"the state directory {self._path} cannot be used: {problem}. Nobody but a primary "
                f"may remove its files") from None
        self._formers = ()
        self._state = changed(self._state, late=())
        self._dirty = True  # by the commit that brings the new ones in, or the next one
        return tuple(roster.values())

    def forget_former(self) -> None:
        """The recovery is over: nobody believes in anything that only older files say."""
        self._formers = ()
        self._state = changed(self._state, late=(), session_ttl_ms=self._session_ttl_ms)
        self._write()
        with contextlib.suppress(OSError):  # What stays does no harm.
            for name in filter(self._is_over, os.listdir(self._path)):
                (self._path / name).unlink(missing_ok=True)

    def _is_over(self, name: str) -> bool:
        """Is this file of no use to anybody? One that was never finished may be of our epoch."""
        found = FILE_NAME.fullmatch(name)
        limit = self._state.epoch + 1 if found and found[2] else self._state.epoch
        return name in FORMAT_1_FILES if found is None else int(found[1]) < limit

    def close(self) -> None:
        """Lets another primary have it."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


# ---- Opening -------------------------------------------------------------------------------------


def open_state_dir(path: Path, incarnation: int, session_ttl_ms: int, epoch_above: int = 0, *,
                   take_over: bool = False) -> StateDir:
    """Makes this start the primary of the directory, which is created if need be: its epoch is
    above all that are there and above `epoch_above`. `take_over`: also if the former primary has
    its lock still. StateDirError says what to do."""
    try:
        _make_directory(path)
        for _ in range(START_TRIES - 1):
            with contextlib.suppress(FileNotFoundError):
                return _open(path, incarnation, session_ttl_ms, epoch_above, take_over)
        return _open(path, incarnation, session_ttl_ms, epoch_above, take_over)
    except OSError as problem:
        raise StateDirError(
            f"the state directory {path} cannot be used: {problem}. Choose another one, or make "
            f"it readable and writable for this user") from None


def _open(path: Path, incarnation: int, session_ttl_ms: int, epoch_above: int,
          take_over: bool) -> StateDir:
    old = _read_format_1(path)
    epochs, epoch, lock_fd = _lock_an_epoch(
        path, max(epoch_above, old.epoch if old else 0), take_over)
    try:
        highest = epochs[-1:]
        late = [one for epoch in highest for one in _read(path, epoch).late]
        before = _left_behind(path, highest + late)
        living = tuple(one.epoch for one in before if _may_live(path, one, take_over))
        roster = _merged(before)
        former_ttl_ms = before[0].session_ttl_ms if before else 0
        state = State(epoch, incarnation, max(session_ttl_ms, former_ttl_ms), _machine(), living,
                      roster, any(one.durable for one in before))
        if not _create(path, state, encode_state(state)):
            raise StateDirError(
                f"another primary has taken epoch {epoch} of the state directory {path} in this "
                f"moment. Start only one of them")
        former = Former(former_ttl_ms, tuple(roster.values()), not living,
                        old.settle_ms if old else 0)
        opened = StateDir(path, lock_fd, state, session_ttl_ms,
                          tuple(one.epoch for one in before), former if before or old else None,
                          max(*epochs, *_epochs(path, DAMAGED_NAME), old.epoch if old else 0, 0))
        opened.confirm()
        return opened
    except BaseException:
        os.close(lock_fd)
        raise


def _lock_an_epoch(path: Path, above: int, take_over: bool) -> tuple[list[int], int, int]:
    """What there is, and the lock of an epoch above all of it and above `above`: nobody else on
    this machine can have that one any more."""
    while True:
        epochs = _epochs(path)
        epoch = max(above, *epochs, *_epochs(path, DAMAGED_NAME), 0) + 1
        if epoch > EPOCH_MAX:
            raise StateDirError(
                f"the state directory {path} has used up all {EPOCH_MAX} epochs. Stop every "
                f"client, wait for the longest lease to end, and start with an empty directory")
        lock_fd = _lock(_lock_file(path, epoch))
        if lock_fd is not None and _epochs(path) == epochs:
            _sign(lock_fd)
            return epochs, epoch, lock_fd
        if lock_fd is not None:
            os.close(lock_fd)  # Somebody was there in between.
        elif take_over:
            above = epoch  # A start that got that far, and perhaps hangs there.
        else:
            raise StateDirError(_in_use(path, epoch))


def _may_live(path: Path, state: State, take_over: bool) -> bool:
    """Could the primary that wrote this be serving still? A lock that can be had proves that it is
    dead only on the machine that it ran on."""
    lock_fd = _lock(_lock_file(path, state.epoch))
    if lock_fd is None and not take_over:
        raise StateDirError(_in_use(path, state.epoch))
    if lock_fd is not None:
        os.close(lock_fd)
    return lock_fd is None or state.machine != _machine()


def _merged(states: Sequence[State]) -> dict[int, RosterEntry]:
    """The roster of the former primary, and of those before it of which it did not know that they
    had stopped. A session that only those know may have been struck since: it is waited for, but it
    is not taken back."""
    roster: dict[int, RosterEntry] = {}
    for state in states:
        for client_id, entry in state.roster.items():
            only_there = state is not states[0]
            roster.setdefault(client_id, changed(entry, ended=True) if only_there else entry)
    return roster


def _left_behind(path: Path, epochs: Sequence[int]) -> list[State]:
    """What the primary of the first of these epochs, and those before it, have left. Of the others
    a file may be gone, or go in this moment: a later primary was ready, and its own file had all of
    it by then. So the oldest is read first. FileNotFoundError: the first one's is gone."""
    left: list[State] = []
    for one in sorted(epochs):
        try:
            left.insert(0, _read(path, one))
        except FileNotFoundError:
            if one == max(epochs):
                raise
    return left


def _make_directory(path: Path) -> None:
    """Makes the directory and what is missing above it, to stay: an empty or missing directory
    says that there never was a primary, so it must not vanish with the power."""
    if path.is_dir():
        return
    if not path.parent.exists():
        _make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    _sync_directory(path.parent)


def _machine() -> str:
    """Which machine this is, since when: only here does a lock say who lives."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return socket.gethostname()


def _epochs(path: Path, name: re.Pattern[str] = STATE_NAME) -> list[int]:
    """Of the primaries that there is a file of, in order."""
    found = map(name.fullmatch, os.listdir(path))
    return sorted(int(one[1]) for one in found if one)


def _read(path: Path, epoch: int) -> State:
    """StateDirError; FileNotFoundError if it is gone, as it is once a later primary is ready."""
    file = path / f"state-{epoch}"
    try:
        state = decode_state(file.read_bytes())
        if state.epoch != epoch:
            raise ValueError(f"it says epoch {state.epoch}")
        return state
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise StateDirError(
            f"{file} cannot be read: {problem}. Make it readable for this user") from None
    except ValueError as problem:
        raise StateDirError(
            f"{file} is damaged: {problem}. Which clients the former primary had is not known. Put "
            f"back a good copy; or stop every client, wait for the longest lease to end, and "
            f"rename the file to {file.name}.damaged (its number still counts)") from None


# ---- Writing a file ------------------------------------------------------------------------------


def _replace(path: Path, state: State, data: bytes) -> None:
    """Write, fsync, rename, fsync of the directory; StateDirError if any of it fails."""
    with _written(path, state, data) as fresh:
        os.rename(fresh, path / f"state-{state.epoch}")
        _sync_directory(path)


def _create(path: Path, state: State, data: bytes) -> bool:
    """The same for a file that nobody has yet. False: somebody has."""
    with _written(path, state, data) as fresh:
        try:
            os.link(fresh, path / f"state-{state.epoch}")
        except FileExistsError:
            return False
        finally:
            os.unlink(fresh)
        _sync_directory(path)
    return True


@contextlib.contextmanager
def _written(path: Path, state: State, data: bytes) -> Iterator[Path]:
    """A file beside the state, written and synced, under a name that no other start uses."""
    fresh = path / f"state-{state.epoch}.{state.incarnation:016x}.new"
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(fd, left):]
            os.fsync(fd)
        finally:
            os.close(fd)
        yield fresh
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


# ---- Locks ---------------------------------------------------------------------------------------


def _lock_file(path: Path, epoch: int) -> Path:
    return path / f"lock-{epoch}"


def _lock(file: Path) -> int | None:
    """Its descriptor; None: another one has it."""
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError as problem:
        os.close(fd)
        raise StateDirError(
            f"the state directory {file.parent} cannot be locked: {problem}. Choose one on a file "
            f"system with flock") from None


def _sign(lock_fd: int) -> None:
    """For the error text of the next one."""
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)


def _in_use(path: Path, epoch: int) -> str:
    try:
        holder = f" (process {int(_lock_file(path, epoch).read_bytes()[:32])})"
    except (OSError, ValueError):
        holder = ""
    return (f"the state directory {path} is in use by another primary{holder}. Stop that one "
            f"first, or choose another directory; with --take-over this one takes its place, and "
            f"that one stops by itself")


def _taken_over(path: Path, highest: int, own: int) -> str:
    return (f"another primary took over the state directory {path}: it has epoch {highest}, this "
            f"one has {own}")


def _read_format_1(path: Path) -> Format1 | None:
    """What an earlier version left in `state`. Every start waits for its clients as long as they
    could believe, until one is ready and removes the file."""
    file = path / "state"
    if not file.exists():
        return None
    lock_fd = _lock(path / "lock")
    if lock_fd is None:
        raise StateDirError(
            f"the state directory {path} is in use by a primary of an earlier version, which would "
            f"not notice that it is replaced. Stop it first")
    os.close(lock_fd)
    try:
        return decode_format_1(file.read_bytes())
    except (OSError, ValueError) as problem:
        raise StateDirError(
            f"{file} is damaged: {problem}. What the former primary promised is not known. Put "
            f"back a good copy; or stop every client, wait for the longest lease to end, and "
            f"remove the file") from None
