"""Which file is the store: each primary has one of its own in the state directory, durable-E.db,
made from a copy of the newest there is before it answers anything.

Why a copy: a former primary may not be dead, only stopped, and go on at any moment, on this machine
or on another. What it still writes reaches its own file. What it has answered is in ours: it looks
for a higher epoch after each commit and before each answer, so every commit that it answered was
whole before our state file was there, and we copy after that.

How a file is copied that somebody may still write: first its log, then itself, then a look at the
head of the log. Commits are appended to the log, and an unfinished one at its end is no commit. The
file itself changes by checkpoints only, which write what is in the log. Only a log that is begun
anew would be torn, and that writes a new head. A former primary makes no checkpoint without having
confirmed that it still is one, so there is at most one of them to meet.

Used by the thread of the durable store, but for `prepare`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dlock._frozen import Frozen
from dlock.control.durable_store import DamagedError, Store, is_damage, lay_out_log, log_of

NAME: Final = re.compile(r"durable-([1-9][0-9]{0,6})\.db")
ANY_NAME: Final = re.compile(r"durable-([1-9][0-9]{0,6})\.db.*")
LOG_HEAD_BYTES: Final = 32
COPY_TRIES: Final = 10
REFUSAL: Final = "refusal"  # in the store: why it is not served


class Home(Frozen):
    """What a primary knows of its store before it is open. `expected`: a former primary had one;
    `doubt`: why this may not be the directory of the last epoch; `accepted`: the operator says that
    it is right all the same."""

    path: Path
    epoch: int
    incarnation: int
    expected: bool = False
    doubt: str = ""
    accepted: bool = False


class RefusedError(Exception):
    """The namespace must not be served; the text says why, and what to do."""


def refusal(why: str) -> str:
    """What the log says."""
    return (f"{why}. What is durable (phobos DSS locks, records of doors) is not served, since it "
            f"may be older than what was promised. Start with the directory of the last primary; "
            f"or, if what there is here shall count, with `dlock serve --accept-empty-state`")


def prepare(home: Home) -> None:
    """Makes the first store of a directory in which there never was one. sqlite3.Error, OSError."""
    if not home.expected and not _epochs(home.path):
        _finish(home, None)


def open_store(home: Home) -> Store:
    """The store of this primary, made from that of the former one. RefusedError; DamagedError,
    sqlite3.Error, OSError."""
    if home.epoch not in _epochs(home.path):
        _take_over(home)
    path = _file(home.path, home.epoch)
    if not log_of(path).exists():
        lay_out_log(path)
    store = Store(path, home.epoch, home.incarnation)
    try:
        _judge(home, store)
    except BaseException:
        store.close()
        raise
    _forget_older(home)
    return store


def _judge(home: Home, store: Store) -> None:
    """RefusedError, today and at the next start, unless the operator accepts what there is."""
    tables = store.tables
    known = tables.meta(REFUSAL)
    if home.accepted:
        if known or home.doubt:
            tables.set_meta(REFUSAL, None)
    elif known or home.doubt:
        tables.set_meta(REFUSAL, known or home.doubt)
        raise RefusedError(refusal(known or home.doubt))


def judge_shown(home: Home, store: Store, epoch: int, incarnation: int) -> None:
    """A client was answered by this primary of the service. RefusedError if it is none of those
    whose store this was: then this directory is not the one of the last primary; unless the
    operator has accepted that. sqlite3.Error."""
    if store.tables.served_by(epoch, incarnation):
        return
    if not home.accepted:
        why = (f"a client was answered by a primary of epoch {epoch}, of which the state directory "
               f"{home.path} knows nothing: it is empty, or an older copy")
        store.tables.set_meta(REFUSAL, why)
        raise RefusedError(refusal(why))
    store.tables.add_generation(epoch, incarnation)


def _take_over(home: Home) -> None:
    for _ in range(COPY_TRIES):
        former = [epoch for epoch in _epochs(home.path) if epoch < home.epoch]
        if not former:
            if home.expected and not home.accepted:
                raise RefusedError(refusal(
                    f"the state directory {home.path} has no durable-N.db, which a former primary "
                    f"had written"))
            return _finish(home, None)
        with contextlib.suppress(FileNotFoundError, _TornError):
            return _finish(home, _file(home.path, former[-1]))
    raise RefusedError(refusal(f"the files in {home.path} change while they are read"))


def _finish(home: Home, former: Path | None) -> None:
    """Makes our file, under another name until it is whole and on the disk."""
    fresh = home.path / f"{_file(home.path, home.epoch).name}.{home.incarnation:016x}.new"
    with _removed_at_end(fresh, log_of(fresh)):
        try:
            if former is not None:
                _copy(former, fresh)
            _round_off(home, fresh, new=former is None)
        except DamagedError:
            if former is None or not home.accepted:
                raise
            former.rename(former.with_name(former.name + ".damaged"))
            for half in (fresh, log_of(fresh)):
                half.unlink(missing_ok=True)
            _round_off(home, fresh, new=True)
        os.rename(fresh, _file(home.path, home.epoch))
        _sync(home.path)


def _round_off(home: Home, fresh: Path, *, new: bool) -> None:
    """Everything of the log into the file, which is then read through. DamagedError."""
    try:
        store = Store(fresh, home.epoch, home.incarnation, create=new)
        try:
            store.check()
            store.tables.add_generation(home.epoch, home.incarnation)
            store.checkpoint("TRUNCATE")
        finally:
            store.close()
    except sqlite3.Error as problem:
        if is_damage(problem):
            raise DamagedError(f"the durable store in {home.path} is damaged: {problem}") from None
        raise
    _sync(fresh)


class _TornError(Exception):
    """The file was written while it was copied."""


def _copy(former: Path, fresh: Path) -> None:
    """See the head of this file. FileNotFoundError: a later primary has it; _TornError."""
    head = _log_head(former)
    if head:
        shutil.copyfile(log_of(former), log_of(fresh))
    shutil.copyfile(former, fresh)
    if _log_head(former) != head:
        raise _TornError


def _log_head(path: Path) -> bytes:
    """Empty: it has no log."""
    try:
        with open(log_of(path), "rb") as log:
            return log.read(LOG_HEAD_BYTES)
    except FileNotFoundError:
        return b""


def _forget_older(home: Home) -> None:
    """Ours has all of it. What stays does no harm."""
    with contextlib.suppress(OSError):
        for name in os.listdir(home.path):
            found = ANY_NAME.fullmatch(name)
            if found and int(found[1]) < home.epoch and not name.endswith(".damaged"):
                (home.path / name).unlink(missing_ok=True)


def _epochs(path: Path) -> list[int]:
    """Of the stores that are whole, in order."""
    found = map(NAME.fullmatch, os.listdir(path))
    return sorted(int(one[1]) for one in found if one)


def _file(path: Path, epoch: int) -> Path:
    return path / f"durable-{epoch}.db"


@contextlib.contextmanager
def _removed_at_end(*paths: Path) -> Iterator[None]:
    try:
        yield
    finally:
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
