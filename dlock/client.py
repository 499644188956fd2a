"""`connect` and `Client`: one session at a server, kept alive over broken links and new primaries.

A client owns what its lock objects share: the session (_session.py), the control link, and the
thread that brings both back when they are lost (the policy is in _enter.py). Any thread may use it
at any time. What a lock object does with its calls is not decided here; what it asks of the client
are the methods with an underscore.

Threads: `_mutex` guards the state of the client and is never held while a server is asked;
`_naming` is held from asking for a name to entering it. Lock order: `_naming`, a control link,
`_mutex`, the C client.
"""

from __future__ import annotations

import logging
import math
import os
import random
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, NoReturn, TypeVar

from dlock import _core, _enter, _keeper, _notices, _process, _reconnect
from dlock._calls import FOREVER, Outcome
from dlock._core import lib
from dlock._drive import REPLY_S, Driver, exchange
from dlock._enter import Options, Seen, entering
from dlock._factory import Factory
from dlock._handle import Handle, Key, Name
from dlock._info import client_info
from dlock._notices import Notice
from dlock._retry import Backoff
from dlock._session import Refusal, Session, Steps, wait_mode
from dlock._transport import Transport, wished
from dlock._watch import Told
from dlock.address import Address, parse
from dlock.control.link import ControlLink, LinkError
from dlock.control.messages import ClientDeinit, Stats
from dlock.errors import (
    Broken,
    ClientClosed,
    ConnectionLost,
    DlockError,
    ForkedError,
    LockLost,
)
from dlock.types import DlockStatus

_log = logging.getLogger("dlock.client")

T = TypeVar("T")

TIMEOUT_S: Final = 10.0  # of connect, and of what waits for no lock and was given no time
REPLY_LEAST_S: Final = 1.0  # a shorter wait for an answer would break a link that is only slow
LEAVE_S: Final = 1.0  # how long a client that leaves waits for the server
_LOOK_S: Final = 1.0  # how long a thread that waits for the link sleeps at most
# A recovering server says when it serves everything. Until then it may begin to serve a single lock
# at any time, which it does not say: so long is waited at most before it is asked again.
NOT_READY_S: Final = 0.5

_BROKEN: Final[int] = _core.DLK_RESULT_BROKEN


def connect(
    address: str | os.PathLike[str] | Address | None = None,
    *,
    timeout: float = TIMEOUT_S,
    name: str | None = None,
    wait: str | None = None,
    transport: str | None = None,
    device: str | None = None,
    gid: str | bytes | None = None,
    on_lost: Told | None = None,
    on_suspended: Told | None = None,
) -> Client:
    """Connects to a dlock server and returns a `Client`.

    `address`: HOST:PORT, the path of an address file, or several with commas; None: DLOCK_ADDRESS,
    else 127.0.0.1:21616. `timeout`: seconds in which a server must have answered; an address file
    that does not exist yet is waited for as long. `name`: what operators see in the place of the
    program's name. `wait`: how threads wait for answers, "adaptive", "block" or "poll"; None:
    DLOCK_WAIT, else adaptive.

    `transport`: over what the data plane is to be: "auto" (RDMA where this machine and the server
    have it, else TCP), "verbs" (RDMA or nothing), "tcp"; None: DLOCK_TRANSPORT, else auto.
    `device`, `gid`: which RDMA device, and which of its addresses (an IPv4 or IPv6 address, or 16
    bytes); None: DLOCK_DEVICE and DLOCK_GID, else the best there is. See `Client.transport`.

    `on_lost(lock)` and `on_suspended(lock)`: for every lock object of this client that has none of
    its own; see `Factory`.

    ConnectError: no server answered in time, or none over RDMA where nothing else was wanted;
    ValueError: no address, no such mode, transport or GID.
    """
    options = Options(parse(address), wait_mode(wait), client_info(name),
                      wished(transport, device, gid))
    return Client(options, timeout, on_lost, on_suspended)


class Client(Factory):
    """A connection to a dlock server; get one from `connect`, end it with `close` or `with`.

    Links that break are brought back in the background; what is asked meanwhile waits for them.
    """

    def __init__(
        self, options: Options, timeout: float, on_lost: Told | None = None,
        on_suspended: Told | None = None,
    ) -> None:
        """Connects; use `connect`."""
        self._closed = True  # as long as there is nothing to close
        self._tell_all(on_lost, on_suspended)
        self._pid = os.getpid()
        self._options = options
        self._seen = Seen()
        # Entered by itself, since an interrupt can leave a Condition locked that is entered.
        self._mutex = threading.RLock()
        self._changed = threading.Condition(self._mutex)
        self._naming = threading.Lock()
        self._naming_thread = 0  # which one has it
        self._recovering: threading.Thread | None = None
        self._awaits_ready: ControlLink | None = None  # the recovering thread's, while it waits
        self._beating = False
        self._needs_keeper = object()
        deadline = time.monotonic() + timeout
        driver = Driver(lambda: None, time.sleep, deadline)
        try:
            session = driver.run(entering(options, self._seen, None, deadline))
        except BaseException:
            if driver.link is not None:
                driver.link.farewell(ClientDeinit())  # nobody will use what it may have opened
            raise
        session.link = driver.link
        self._session = session
        self._names = session.names
        self._closed = False
        _keeper.keep(self._needs_keeper)
        _process.remember(self)
        _notices.listen(session.number, self, session.pulse_s)
        self._link_lost(session)  # which may have been told before anybody listened

    # ---- What it is ------------------------------------------------------------------------------

    def __repr__(self) -> str:
        state = "closed" if self._closed else "recovering" if self._recovering else "connected"
        return f"<dlock.Client of {self._options.address}, {state}>"

    @property
    def address(self) -> str:
        """The address that it was given, in a form that `connect` understands anywhere."""
        return str(self._options.address)

    @property
    def transport(self) -> Transport:
        """What carries what is asked of locks and numbers, or carried it last: `kind`, "verbs" or
        "tcp"; `device`, the RDMA device or None; `why`, in words. It may be another one after each
        reconnect."""
        return self._session.transport

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._closed

    @property
    def session_left(self) -> float:
        """Seconds for which locks without a lease are certainly held if the server is not heard of
        again; 0: they are suspended."""
        return self._session.left_s

    def stats(self) -> dict[str, int]:
        """Counters (capital names) and gauges (small ones) of the server. ConnectionLost."""

        def ask(_session: Session) -> Steps[dict[str, int]]:
            (reply,) = yield [Stats()]
            return dict(reply.stats)

        return self._run(ask, time.monotonic() + TIMEOUT_S)

    # ---- What lock objects ask of it -------------------------------------------------------------

    def _check(self) -> None:
        """ForkedError or ClientClosed, where it must not be used."""
        if self._pid != os.getpid():
            raise ForkedError
        if self._closed:
            raise ClientClosed("this dlock client was closed; make a new one with dlock.connect")

    @staticmethod
    def _until(wait_ms: int) -> float:
        """When a call that may wait so long has had its time (time.monotonic; inf: never). One that
        does not wait for the lock still waits for an answer."""
        if wait_ms == FOREVER:
            return math.inf
        return time.monotonic() + (wait_ms / 1000 or REPLY_S)

    def _take(self, key: Key, actor: int, until: float) -> Handle:
        """A handle for one acquisition of a lock by this actor. The first use of a name asks the
        server, at least once. KindMismatch; ServerFull; ConnectionLost."""
        while True:
            self._check()
            handle = self._names.take(key, actor)
            if handle is not None:
                return handle
            self._get([key], until)

    def _get(self, keys: Sequence[Key], until: float) -> None:
        """Asks the server for names, at most 31. Others wait for that as long as an answer may
        take, but not until a lost link is back."""
        backoff = Backoff()
        while True:
            session = self._session
            if self._naming_thread == threading.get_ident() and self._naming.locked():
                raise DlockError("a signal handler interrupted its own thread while that asked for "
                                 "the name of a lock, and cannot ask for another one: take the "
                                 "lock elsewhere, or use its name once before")
            with self._naming:
                self._naming_thread = threading.get_ident()
                try:
                    missing = [key for key in keys if key not in session.names]
                    if not missing:
                        return
                    outcome = self._once(session, session.resolve(missing), until)
                finally:
                    self._naming_thread = 0
            if outcome is not None:
                for problem in outcome[0]:
                    if problem is not None:
                        raise problem
                return
            self._regain(session, backoff.pause_s(), until)

    def _declare(self, lease_ms: int, until: float) -> None:
        """Makes sure that a lease of this length may be asked for. LeaseTooLong; ConnectionLost."""
        self._run(lambda session: session.declare(lease_ms), until)

    def _run(self, ask: Callable[[Session], Steps[T]], until: float) -> T:
        """Carries out what `ask` asks on the control plane, and again if the link was lost
        meanwhile: only for what may be asked twice. ConnectionLost; DlockError: the server
        refuses."""
        backoff = Backoff()
        while True:
            session = self._session
            outcome = self._once(session, ask(session), until)
            if outcome is not None:
                return outcome[0]
            self._regain(session, backoff.pause_s(), until)

    def _once(self, session: Session, steps: Steps[T], until: float) -> tuple[T] | None:
        """Carries out what is asked on the control plane. None: there was no answer, or one that
        may pass. DlockError: the server refuses."""
        self._check()
        left_s = until - time.monotonic()
        try:
            return (exchange(session.link, steps, min(REPLY_S, max(left_s, REPLY_LEAST_S))),)
        except LinkError:
            return None
        except Refusal as refusal:
            if refusal.status is DlockStatus.CLIENT_REMOVED_BY_SERVER:
                self._session_removed(session)
            elif refusal.status is DlockStatus.CLIENT_NOT_INIT:
                session.link.close()
            elif refusal.status is DlockStatus.NOT_READY:
                self._not_ready(session)
            else:
                raise DlockError(f"the dlock server refused: {refusal}") from None
            return None
        except DlockError:
            raise
        except BaseException:
            # Interrupted, perhaps with the link half-way in use: it is of no more use to anybody.
            session.link.close()
            raise

    def _await(self, outcome: Outcome, name: Name, until: float) -> None:
        """A call on this name came to nothing, for a reason that may pass: returns when it makes
        sense to ask again, perhaps in another session. ConnectionLost when its time is over;
        ClientClosed; ForkedError."""
        session = name.table.session
        pause_s = 0.0
        if outcome is Outcome.STALE:
            name.table.forget(name)
        elif outcome is Outcome.REMOVED:
            self._session_removed(session)
        elif outcome is Outcome.NOT_READY:
            self._not_ready(session)
        else:
            pause_s = Backoff().pause_s()
        self._regain(session, pause_s, until)

    def _lost(self, handle: Handle, token: int = 0) -> LockLost:
        """What to raise for a hold that is lost. `token`: of the hold, where the handle may have
        another one by now."""
        name = handle.name.key[0]
        try:
            shown: str | bytes = name.decode()
        except UnicodeDecodeError:
            shown = name
        broken = handle.broken or handle.release.result == _BROKEN
        return (Broken if broken else LockLost)(shown, token or handle.acquire.token)

    # ---- Recovery --------------------------------------------------------------------------------

    def _session_removed(self, session: Session) -> None:
        """The server has said that this session has ended."""
        lib.dlk_client_detach(session.client)
        self._link_lost(session)

    def _not_ready(self, session: Session) -> None:
        """The server has said that it does not serve everything yet."""
        with self._mutex:
            session.ready = False
        self._link_lost(session)

    def _link_lost(self, session: Session) -> None:
        """A link of this session may be broken, or its server may not be ready. If so, that is
        mended, or waited for, in the background. Any thread; never waits."""
        if self._pid != os.getpid():
            raise ForkedError
        with self._mutex:
            if self._closed or session is not self._session:
                return
            whole = self._whole()
            if self._recovering is not None and not whole:
                self._changed.notify_all()  # there is something else to do first
                if self._awaits_ready is not None:
                    self._awaits_ready.close()
            if self._recovering is None and not (whole and session.ready):
                self._recovering = _reconnect.start(self)

    def _whole(self) -> bool:
        return self._session.attached and not self._session.link.closed

    def _away(self) -> bool:
        """The links are being brought back."""
        return self._recovering is not None and not self._whole()

    def _regain(self, session: Session, pause_s: float, until: float) -> None:
        """Returns when both links are there; if they were never away, after a pause; at a server
        that recovers, when it is ready or may serve this lock already."""
        self._check()
        self._link_lost(session)
        with self._mutex:
            wait_s = pause_s if self._session.ready else NOT_READY_S * random.uniform(0.5, 1)
            while not self._closed and (wait_s > 0 or self._away()):
                left_s = until - time.monotonic()
                if left_s <= 0:
                    raise ConnectionLost(self._no_answer())
                self._changed.wait(min(left_s, _LOOK_S if self._away() else wait_s))
                wait_s = 0.0
        self._check()

    def _no_answer(self) -> str:
        return _enter.no_answer(self._options, self._seen, self._session, self._whole())

    def _install(self, session: Session, link: ControlLink) -> None:
        """What recovery has brought: the same session with new links, or another session. A new
        one takes the place of the old before anybody hears that the old one's holds are lost."""
        with self._mutex:
            self._check()
            old, former = self._session, self._session.link
            session.link = link
            self._session, self._names = session, session.names
        former.close()
        _notices.listen(session.number, self, session.pulse_s)
        if session is old:
            _log.info("the session at %s is taken up again", self._options.address)
            return
        _log.warning("the session at %s had ended, and with it all that it held; a new one is open",
                     self._options.address)
        _notices.forget(old.number)
        old.end()
        _notices.tell_lost(old.names)

    def _notice(self, notice: Notice) -> None:
        """What has happened without a call; in the thread of the notices."""
        session = self._session
        overflow = notice.kind == _notices.OVERFLOW
        if notice.client != session.number and not overflow:
            return  # it came late, and its session is over
        if overflow or notice.kind == _notices.LINK_DOWN:
            self._link_lost(session)
        _notices.tell(session.names, notice)
        if notice.kind == _notices.REMOVED:  # now: LOST, of a new session, comes after SUSPENDED
            self._session_removed(session)

    def _pulse(self) -> None:
        """Called in the thread of the notices several times a session_ttl: keeps the session alive
        over the control plane when the data plane is silent. Over RDMA a server that dies says
        nothing: the end of the control link tells, long before the next heartbeat would."""
        session = self._session
        if session.transport.device is not None and not session.link.closed and session.link.gone:
            session.link.close()
            self._link_lost(session)
        with self._mutex:
            wanted = not (self._closed or self._recovering or self._beating)
            self._beating = beating = wanted and self._session.silent
        if beating:
            _reconnect.start_beating(self)

    # ---- The end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Leaves the server, which frees at once what this client holds, and ends every call that
        waits (ClientClosed). Does nothing the second time, and nothing in a forked child."""
        self._leave(LEAVE_S)

    def _leave(self, timeout_s: float) -> None:
        if self._pid != os.getpid():
            return
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            recovering = self._recovering
            if self._awaits_ready is not None:
                self._awaits_ready.close()
        deadline = time.monotonic() + timeout_s
        self._session.end()  # first: nobody may believe in what the server frees
        try:
            self._session.link.request(ClientDeinit(), timeout_s)
        except LinkError:
            # If this fails too, the server ends the session by itself when it hears nothing.
            _reconnect.leave(self._options, self._seen, self._session, deadline)
        finally:
            self._end()
        if recovering is not None and recovering is not threading.current_thread():
            recovering.join(max(deadline - time.monotonic(), 0))

    def _end(self) -> None:
        self._session.end()
        self._session.link.close()
        _notices.forget(self._session.number)
        _keeper.let_go(self._needs_keeper)
        self._close_admin()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} cannot be pickled: connect in the other process, or pickle lock "
                        "objects, which do so by themselves")

    def __enter__(self) -> Client:
        self._check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True) or self._pid != os.getpid():
            return
        self._closed = True
        warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        self._session.link.farewell(ClientDeinit())
        self._end()


# ---- One client a process and address ------------------------------------------------------------


def shared(address: str | os.PathLike[str] | Address | None = None) -> Client:
    """The client of this process for this address, connected at its first use and left at exit.
    Lock objects that come out of a pickle use it. In a forked child it is another one."""
    where = parse(address)
    with _process.place(str(where)) as place:
        if place.client is None or place.client.closed:
            place.client = connect(where)
        return place.client
