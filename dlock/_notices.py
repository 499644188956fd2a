"""What has become of holds and links without a call: one thread of this process takes the notices
out of C, brings each to the client that it is about, and from there to whoever watches the hold.

A listener is referred to weakly, and is called in that thread (`_notice`); what it raises is logged
and hurts nobody else. docs/client.md has the list of notices. A program that takes the turns of the
thread itself says so by `by_hand`, and calls `deliver` and `pulse`.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol

from dlock import _core
from dlock._calls import look
from dlock._core import ffi, lib
from dlock._handle import SERIAL_MASK, Handle, NameTable

_log = logging.getLogger("dlock.client")

ROOM: Final = 256
WAIT_S: Final = 60.0  # without a listener, of no consequence: a stop wakes the thread

LOST: Final[int] = _core.DLK_NOTICE_LOST
BROKEN: Final[int] = _core.DLK_NOTICE_BROKEN
SUSPENDED: Final[int] = _core.DLK_NOTICE_SUSPENDED
CONFIRMED: Final[int] = _core.DLK_NOTICE_CONFIRMED
LINK_DOWN: Final[int] = _core.DLK_NOTICE_LINK_DOWN
SESSION_SUSPENDED: Final[int] = _core.DLK_NOTICE_SESSION_SUSPENDED
SESSION_CONFIRMED: Final[int] = _core.DLK_NOTICE_SESSION_CONFIRMED
REMOVED: Final[int] = _core.DLK_NOTICE_REMOVED
OVERFLOW: Final[int] = _core.DLK_NOTICE_OVERFLOW


class Notice(NamedTuple):
    """struct dlk_notice. `client`: the number of a session."""

    client: int
    owner: int
    token: int
    lock_id: int
    kind: int


_LAYOUT: Final = _core.layout("dlk_notice", Notice._fields)


class Listener(Protocol):
    """A client. Both are called in the thread of the notices and must not wait: `_notice` when
    something has happened, `_pulse` regularly."""

    def _notice(self, notice: Notice) -> None: ...

    def _pulse(self) -> None: ...


# ---- The thread ----------------------------------------------------------------------------------


class _Notices:
    """What there is once a process. `listeners` is read and written without a lock, and so is
    `pulses`, the times after which each wants its pulse."""

    def __init__(self) -> None:
        self.listeners: dict[int, weakref.ref[Listener]] = {}
        self.pulses: dict[int, float] = {}
        self.lock = threading.RLock()  # a signal handler may connect while its thread is in here
        self.thread: threading.Thread | None = None
        self.registered = False
        self.stopping = False
        self.by_hand = False
        self.inbox: _Inbox | None = None


class _Inbox:
    """Room for what one look brings. For one thread."""

    def __init__(self) -> None:
        self._array = ffi.new("struct dlk_notice[]", ROOM)
        self._view = memoryview(ffi.buffer(self._array))

    def bring(self, timeout_ms: int) -> int:
        """Waits so long for the first, and brings what is there; how many."""
        count: int = lib.dlk_notices_wait(self._array, ROOM, timeout_ms)
        for fields in _LAYOUT.iter_unpack(self._view[: count * _LAYOUT.size]):
            _bring(Notice(*fields))
        return count


_notices: Final = _Notices()


def listen(number: int, listener: Listener, pulse_s: float) -> None:
    """From now on this listener is told what concerns the session of this number, and called at
    least every `pulse_s`. What happened before may have been told to nobody: look."""
    sooner = pulse_s < min(_notices.pulses.values(), default=WAIT_S)
    _notices.listeners[number] = weakref.ref(listener)
    _notices.pulses[number] = pulse_s
    with _notices.lock:
        if not _notices.registered:
            _notices.registered = True
            os.register_at_fork(after_in_child=_after_fork_in_child)
            atexit.register(_stop)
        if _notices.thread is None:
            _start()
        elif sooner:
            lib.dlk_notices_wake()


def forget(number: int) -> None:
    """The session is over."""
    _notices.listeners.pop(number, None)
    _notices.pulses.pop(number, None)


def by_hand(wanted: bool = True) -> None:
    """From now on no thread is started, and one that runs ends: the program calls `deliver` when
    something may have happened, and `pulse` as often as `Session.pulse_s` says. False: the thread
    is back."""
    with _notices.lock:
        _notices.by_hand = wanted
        thread = _notices.thread if wanted else None
        if thread is not None:
            _notices.thread = None
        elif _notices.listeners:
            _start()
    if thread is not None:
        _end(thread, None)  # without the lock: what it calls may listen
        _notices.stopping = False


def deliver() -> None:
    """One turn: brings every notice that is there. Never waits."""
    inbox = _notices.inbox = _notices.inbox or _Inbox()
    while inbox.bring(0) == ROOM:
        pass


def pulse(number: int | None = None) -> None:
    """The other turn: calls the listener of the session of this number, or every one."""
    listeners = _notices.listeners
    _call([one for each, one in list(listeners.items()) if number in (None, each)],
          lambda one: one._pulse())


def _start() -> None:
    if _notices.thread is None and not _notices.by_hand:
        thread = threading.Thread(target=_run, name="dlock-notices", daemon=True)
        thread.start()
        _notices.thread = thread


def _end(thread: threading.Thread, patience_s: float | None) -> None:
    _notices.stopping = True
    lib.dlk_notices_wake()
    thread.join(patience_s)


def _run() -> None:
    _core.block_signals()
    inbox = _Inbox()
    pulsed = time.monotonic()
    while not _notices.stopping:
        left_s = pulsed + min(list(_notices.pulses.values()), default=WAIT_S) - time.monotonic()
        if left_s <= 0:
            pulsed = time.monotonic()
            pulse()
            continue
        inbox.bring(math.ceil(left_s * 1000))


def _bring(notice: Notice) -> None:
    if notice.kind == OVERFLOW:
        concerned = list(_notices.listeners.values())
    else:
        one = _notices.listeners.get(notice.client)
        concerned = [] if one is None else [one]
    _call(concerned, lambda listener: listener._notice(notice))


def _call(
    references: Iterable[weakref.ref[Listener]], tell: Callable[[Listener], None]
) -> None:
    for reference in references:
        listener = reference()
        if listener is not None:
            try:
                tell(listener)
            except Exception:
                _log.exception("a dlock client could not handle what it was told")


def _stop() -> None:
    """At exit."""
    thread = _notices.thread
    if thread is not None:
        _end(thread, 1)


def _after_fork_in_child() -> None:
    _notices.lock = threading.RLock()
    _notices.listeners = {}
    _notices.pulses = {}
    _notices.thread = None
    _notices.stopping = False
    _notices.inbox = None


# ---- Who watches a hold --------------------------------------------------------------------------


def tell(names: NameTable, notice: Notice) -> None:
    """Tells the watchers in this table what a notice of its session means for their holds."""
    kind = notice.kind
    if kind in (LOST, BROKEN, SUSPENDED, CONFIRMED):
        handle = names.handles.get(notice.owner & SERIAL_MASK)
        if handle is not None:
            if kind == BROKEN:
                handle.broken = True
            _tell(handle, kind, notice.token)
    elif kind in (SESSION_SUSPENDED, SESSION_CONFIRMED, REMOVED):
        for handle in _watched(names):
            if not handle.acquire.lease_ms or handle.name.key[1] == _core.DLK_KIND_RW:
                # A new primary may speak for the session, and not for this hold of it: neither
                # does its SESSION_CONFIRMED confirm that, nor its REMOVED end it at once.
                good = kind != SESSION_SUSPENDED and look(handle).left_ms > 0
                if not (good and kind == REMOVED):
                    _tell(handle, CONFIRMED if good else SUSPENDED, handle.acquire.token)
    elif kind == OVERFLOW:
        for handle in _watched(names):
            token, left_ms = look(handle)
            if not token or not left_ms:
                _tell(handle, SUSPENDED if token else LOST, handle.acquire.token)


def tell_lost(names: NameTable) -> None:
    """Tells every watcher in this table that its hold is lost: the session has ended."""
    for handle in _watched(names):
        _tell(handle, LOST, handle.acquire.token)


def _watched(names: NameTable) -> Iterable[Handle]:
    handles = [reference() for reference in names.handles.valuerefs()]
    return [one for one in handles if one is not None and one.watcher is not None]


def _tell(handle: Handle, kind: int, token: int) -> None:
    watcher = handle.watcher
    if watcher is None:
        return
    try:
        watcher(kind, token)
    except Exception:
        _log.exception("what watches the lock %r failed", handle.name.key[0])
