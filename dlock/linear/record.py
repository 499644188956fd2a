"""Writes a history while a program uses dlock: wraps lock objects and numbers of `dlock` and
`dlock.aio`, which do what they did, and tells a file about it (`dlock/linear/lines.py`).

A line is one system call on a file that is only appended to: whole or missing, also when the
process is killed. The begin of an operation is written before anything is asked. A pair of acquire
and release costs some ten microseconds more than without.

What is written is what the public calls say, and two things that they do not: whether the links
were lost while a call lasted, so that it may have been asked more than once; and whether the server
has confirmed a release, or the client still owes it.

All who use a name must be recorded, from its first use on; not recorded are `Multi`, futures, and
holds that an operator breaks at once. Each thread or task gives back what it has acquired itself.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import time
from typing import Any, Final, NamedTuple

from dlock._calls import ATOMIC, FAIR, RW, SHARED, look
from dlock._core import lib
from dlock._session import REPLY_TIMEOUT_MS, Session
from dlock.errors import Deadlock, LockLost, NotHeld
from dlock.linear import history
from dlock.linear.lines import DROPPED, LOST, SIGHT, VERSION

_KINDS: Final = {ATOMIC: history.MUTEX, RW: history.RW, FAIR: history.FAIR}


def now_ns() -> int:
    """The clock of all histories of a machine."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Recorder:
    """The history of one process. `process`: what it is called in the history; no two may have one
    name. At exit it says that the process has left, which is what `close` says, too."""

    def __init__(self, path: str | os.PathLike[str], process: str | None = None) -> None:
        self.process = process or f"p{os.getpid()}"
        self._numbers = itertools.count(1)
        self._unclear: list[tuple[int, Session]] = []  # acquires, and in which session
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self.write(f'{{"history": {VERSION}, "process": {json.dumps(self.process)}, '
                   f'"pid": {os.getpid()}, "t": {now_ns()}}}')
        atexit.register(self.close)

    def write(self, line: str) -> None:
        """One line; any thread may. Nothing, after `close`."""
        if self._fd >= 0:
            os.write(self._fd, f"{line}\n".encode())

    def number(self) -> int:
        """Of an operation, in this file."""
        return next(self._numbers)

    def unclear(self, number: int, session: Session) -> None:
        """The outcome of this acquire is unknown: what is left of it at the server is owed."""
        self._unclear.append((number, session))

    def settle(self, session: Session) -> None:
        """If the session owes the server nothing any more, nothing is left of its acquires."""
        unclear = [one for one in tuple(self._unclear) if one[1] is session]
        if not unclear or session.ended or lib.dlk_client_debts(session.client):
            return
        for one in unclear:
            with contextlib.suppress(ValueError):  # another thread was faster
                self._unclear.remove(one)
        self.write(f'{{"settled": {[number for number, _ in unclear]}, "t": {now_ns()}}}')

    def watch(self, one: Any) -> Any:
        """A lock object, a face of a `RWLock` or a number, recorded from now on. TypeError: it is
        none of these."""
        from dlock.linear import recorded  # which knows both APIs

        return recorded.wrap(self, one)

    def close(self) -> None:
        """The process uses dlock no more, and leaves; so what it holds may end from now on."""
        atexit.unregister(self.close)
        self.write(f'{{"left": true, "t": {now_ns()}}}')
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _Links(NamedTuple):
    """Over what a call goes: while these stay the same, it was asked once."""

    session: Session
    epoch: int
    link: object


class Asking(NamedTuple):
    """An operation that was begun."""

    number: int
    hold: str
    begin_ns: int
    links: _Links
    token: int = 0  # of what is to be released


class Watched:
    """What recorded lock objects have in common, whichever API they are of."""

    __slots__ = ("_fields", "_holds", "_lock", "_recorder", "_reentrant")

    def __init__(self, recorder: Recorder, lock: Any, *, reentrant: bool) -> None:
        self._recorder = recorder
        self._lock = lock
        self._reentrant = reentrant
        self._holds: dict[int, list[Any]] = {}  # by token: its name, how often it is entered
        _, kind, size = lock._key
        name = _KINDS.get(kind, history.SEMAPHORE)
        if reentrant and kind == ATOMIC:
            name = history.REENTRANT
        self._fields = (f'"name": {_text(lock.name)}, "kind": "{name}", "size": {size}, '
                        f'"shared": {json.dumps(lock.mode == SHARED)}')

    # ---- Acquire ---------------------------------------------------------------------------------

    def _begin(self, own: Any, actor: int, waits: bool) -> Asking:
        """`own`: the handle of a re-entrant hold that will be entered again."""
        recorder, number, links = self._recorder, self._recorder.number(), self._links()
        entered = None if own is None else self._holds.get(int(own.acquire.token))
        hold = entered[0] if entered is not None else f"{recorder.process}.{number}"
        begin_ns = now_ns()
        recorder.write(
            f'{{"b": {number}, "t": {begin_ns}, "do": "acquire", {self._fields}, "waits": '
            f'{json.dumps(waits)}, "hold": "{hold}", "who": "{recorder.process}/{actor}", '
            f'"client": {links.session.id}, "actor": {actor}}}')
        return Asking(number, hold, begin_ns, links)

    def _ended(self, asking: Asking, handle: Any) -> None:
        """`handle`: what holds the lock now; None: it was refused."""
        now, before = self._links(), asking.links
        self._recorder.settle(now.session)
        end_ns = now_ns()
        again = (now != before or not now.session.attached
                 or end_ns - asking.begin_ns >= REPLY_TIMEOUT_MS * 1_000_000)
        place = now.session is before.session and now.epoch == before.epoch
        more = f'"again": {json.dumps(again)}, "place": {json.dumps(place)}'
        if handle is None:
            self._end(asking, history.REFUSED, more)
            return
        token = int(handle.acquire.token)
        self._holds.setdefault(token, [asking.hold, 0])[1] += 1
        view = look(handle)
        left_ms = view.left_ms if view.token == token else 0
        self._end(asking, history.DONE,
                  f'"token": {token}, {more}, "seen": {end_ns}, "left_ms": {left_ms}')

    def _struck(self, asking: Asking, error: BaseException) -> None:
        """An acquisition was answered with an exception."""
        if isinstance(error, LockLost):
            self._end(asking, LOST)  # what was to be entered again is gone
        elif isinstance(error, Deadlock):
            self._end(asking, history.REFUSED)  # it would have had to wait
        else:
            self._end(asking, history.UNKNOWN)
            links = self._links()
            if links.session is asking.links.session:
                self._recorder.unclear(asking.number, links.session)

    # ---- Release ---------------------------------------------------------------------------------

    def _begin_release(self, handle: Any, actor: int) -> Asking | None:
        """None: nothing is held that anybody has recorded."""
        token = 0 if handle is None else int(handle.acquire.token)
        hold = self._holds.get(token)
        if hold is None:
            return None
        number, begin_ns = self._recorder.number(), now_ns()
        self._recorder.write(
            f'{{"b": {number}, "t": {begin_ns}, "do": "release", {self._fields}, '
            f'"hold": "{hold[0]}", "who": "{self._recorder.process}/{actor}"}}')
        return Asking(number, hold[0], begin_ns, self._links(), token)

    def _released(self, asking: Asking, error: BaseException | None = None) -> None:
        hold = self._holds.get(asking.token)
        if isinstance(error, NotHeld):
            self._end(asking, history.REFUSED)
            return
        if hold is not None:
            hold[1] -= 1
            if hold[1] == 0:
                self._holds.pop(asking.token, None)
        if isinstance(error, LockLost):
            self._end(asking, LOST)
        elif error is not None:
            self._end(asking, history.UNKNOWN)
        else:
            session = asking.links.session
            sure = self._links().session is session and lib.dlk_client_debts(session.client) == 0
            self._end(asking, history.DONE, f'"sure": {json.dumps(sure)}')

    # ---- What is held ----------------------------------------------------------------------------

    def _look(self, handle: Any) -> int:
        """How long the hold may still be believed, in ms; if it may, that is written down."""
        if handle is None:
            return 0
        begin_ns = now_ns()
        view = look(handle)
        if view.left_ms:
            self._held(view.token, begin_ns, view.left_ms)
        return view.left_ms

    def _held(self, token: int, begin_ns: int, left_ms: int) -> None:
        hold = self._holds.get(token)
        if hold is not None and left_ms:
            self._recorder.write(
                f'{{"do": "held", "t": {begin_ns}, "u": {now_ns()}, "hold": "{hold[0]}", '
                f'"left_ms": {left_ms}}}')

    def _sight(self, begin_ns: int, details: Any) -> None:
        waiting = [] if details is None else [
            [one.client_id, one.actor] for one in details.waiters if one.actor and not one.ticket]
        self._recorder.write(f'{{"do": "{SIGHT}", "t": {begin_ns}, "u": {now_ns()}, '
                             f'"name": {_text(self._lock.name)}, "waiting": {waiting}}}')

    def _end(self, asking: Asking, outcome: str, more: str = "") -> None:
        self._recorder.write(f'{{"e": {asking.number}, "t": {now_ns()}, "out": "{outcome}"'
                             f'{", " if more else ""}{more}}}')

    def __del__(self) -> None:
        """The lock object goes with this one, and gives back what it holds."""
        for hold, _ in list(self._holds.values()):
            self._recorder.write(f'{{"do": "{DROPPED}", "t": {now_ns()}, "hold": "{hold}"}}')

    def _links(self) -> _Links:
        client = self._lock._client
        session = getattr(client, "_session", None)
        if session is not None:
            return _Links(session, session.epoch, session.link)
        session = client.session  # of dlock.aio
        return _Links(session, session.epoch, client._driver)

    def __getattr__(self, name: str) -> Any:
        """What is not recorded is the lock object's own."""
        return getattr(self._lock, name)


class WatchedNumber:
    """What recorded numbers have in common. One thread or task at a time may use one."""

    __slots__ = ("_fields", "_number", "_recorder")

    def __init__(self, recorder: Recorder, number: Any) -> None:
        self._recorder = recorder
        self._number = number
        # Where `on_recover` says what it is to be at a new primary, only the program knows.
        initial = number._initial if number._on_recover is None else None
        self._fields = (f'"name": {_text(number.name)}, "kind": "{history.CELL}", '
                        f'"size": {json.dumps(initial)}')

    def _begin(self, action: str, actor: int, argument: int = 0, desired: int = 0) -> int:
        recorder, number = self._recorder, self._recorder.number()
        life = self._number._epoch if self._number._on_recover is None else 0
        recorder.write(
            f'{{"b": {number}, "t": {now_ns()}, "do": "{action}", {self._fields}, "argument": '
            f'{argument}, "desired": {desired}, "life": {life}, '
            f'"who": "{recorder.process}/{actor}"}}')
        return number

    def _end(self, number: int, outcome: str, result: int | None = None) -> None:
        self._recorder.write(
            f'{{"e": {number}, "t": {now_ns()}, "out": "{outcome}", "result": '
            f'{json.dumps(result)}, "life": {self._number._epoch}}}')

    def __getattr__(self, name: str) -> Any:
        """What is not recorded is the number's own; what would change it is not offered."""
        if name in ("destroy", "__next__", "__anext__"):
            raise AttributeError(f"a recorded number has no {name!r}")
        return getattr(self._number, name)


def _text(name: str | bytes) -> str:
    return json.dumps(name if isinstance(name, str) else name.decode("latin-1"))
