"""The threads that keep a blocking client at its server: one that brings lost links back and then
waits until the server is ready, and one that sends a heartbeat over the control plane when the data
plane is silent. Each lives only while it has something to do.

They do not keep their client alive: one that its program has dropped is not brought back. What they
do at a server is decided in _enter.py and _session.py.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dlock import _core, _enter
from dlock._drive import REPLY_S, Driver, exchange
from dlock._search import Seeker
from dlock.control.link import ControlLink, LinkError
from dlock.control.messages import ClientDeinit
from dlock.errors import ClientClosed, ConnectionLost

if TYPE_CHECKING:
    from dlock._session import Session
    from dlock.client import Client

_log = logging.getLogger("dlock.client")

Reference = weakref.ref["Client"]

_numbers: Final = itertools.count(1)
READY_REST_S: Final = 10.0  # then a client asks by itself whether its server is ready
LEAVE_LEAST_S: Final = 0.1
BEAT_LEAST_S: Final = 1.0  # a shorter wait for an answer would break a link that is only slow

def start(client: Client) -> threading.Thread:
    """Mends the links of a client and waits for its server; with the client's mutex held, so that
    whoever sees the thread may join it. ConnectionLost: no thread can be had."""
    thread = threading.Thread(target=_recover, args=(weakref.ref(client), client._changed),
                              name=f"dlock-reconnect-{next(_numbers)}", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        # No thread is left, or the interpreter ends.
        raise ConnectionLost("the link to the dlock server is lost, and no thread can be "
                             "started to bring it back") from None
    return thread


def _wanted(reference: Reference) -> Client:
    """The client, or ClientClosed."""
    client = reference()
    if client is None or client.closed:
        raise ClientClosed
    return client


# ---- Links, then readiness -----------------------------------------------------------------------

_Task = Callable[["Reference", threading.Condition], None]


def _recover(reference: Reference, changed: threading.Condition) -> None:
    """The body of the thread."""
    _core.block_signals()
    try:
        while (task := _next_task(reference, changed)) is not None:
            task(reference, changed)
    except BaseException as problem:
        if not isinstance(problem, ClientClosed):
            _log.exception("the links of a dlock client cannot be brought back")
        client = reference()
        with changed:
            if client is not None and client._recovering is threading.current_thread():
                client._recovering = None
            changed.notify_all()


def _next_task(reference: Reference, changed: threading.Condition) -> _Task | None:
    """What is to be done; None: this thread's work is done. Decided in one step, so that a link
    that is lost from now on starts another thread. ClientClosed."""
    with changed:
        client = _wanted(reference)
        this = threading.current_thread()
        if client._recovering not in (None, this):
            return None  # Its start was interrupted, and another has taken its place.
        task: _Task | None = None
        if not client._whole():
            task = _enter_again
        elif not client._session.ready:
            task = _await_ready
        client._recovering = None if task is None else this
        changed.notify_all()
        return task


def _enter_again(reference: Reference, changed: threading.Condition) -> None:
    """Brings the links back, however long it takes. ClientClosed."""
    client = _wanted(reference)
    options, seen, old = client._options, client._seen, client._session
    del client
    old.link.close()
    _log.info("a link to %s is lost", options.address)

    def check() -> None:
        _wanted(reference)

    def wake() -> None:
        with changed:
            changed.notify_all()

    def pause(seconds: float, seeker: Seeker | None = None) -> None:
        if seeker is not None:
            seeker.wake = wake
        with changed:
            check()
            if seeker is None or not seeker.called:
                changed.wait(seconds)

    driver = Driver(check, pause)
    try:
        session = driver.run(_enter.entering(options, seen, old, None))
        assert driver.link is not None
        _wanted(reference)._install(session, driver.link)
    except ClientClosed:
        if driver.link is not None:
            driver.link.farewell(ClientDeinit())
        raise


def _await_ready(reference: Reference, changed: threading.Condition) -> None:
    """Waits until the server serves everything. Of the clients of a process that wait for the same
    primary one asks it, and tells the others. Returns when it does, or when the links are lost.
    ClientClosed."""
    session = _wanted(reference)._session
    with Seeker(f"ready: {session.endpoint} {session.home}") as seeker:
        if not seeker.join() and _is_told(reference, changed, seeker):
            _enter.is_ready(session)
            return
        _ask_ready(reference, changed, session)
        if session.ready:
            seeker.found()


def _is_told(reference: Reference, changed: threading.Condition, seeker: Seeker) -> bool:
    """Rests while another client asks. False: this one has to ask, or its links are lost."""

    def wake() -> None:
        with changed:
            changed.notify_all()

    seeker.wake = wake
    rests_until_s = time.monotonic() + READY_REST_S
    with changed:
        while _wanted(reference)._whole() and not seeker.called:
            left_s = rests_until_s - time.monotonic()
            if left_s <= 0:
                break
            changed.wait(left_s)
        return seeker.told and _wanted(reference)._whole()


def _ask_ready(reference: Reference, changed: threading.Condition, session: Session) -> None:
    """Asks on a link of its own: others need the session's."""
    assert session.endpoint is not None
    try:
        link = ControlLink.connect(session.endpoint.host, session.endpoint.port, _enter.TRY_S)
    except LinkError:
        _pause(reference, changed)
        return
    try:
        with changed:
            client = _wanted(reference)
            if not client._whole():
                return
            client._awaits_ready = link
        del client
        exchange(link, _enter.awaiting_ready(session), REPLY_S)
    except LinkError:
        _pause(reference, changed)
    finally:
        link.close()
        client_now = reference()
        if client_now is not None:
            client_now._awaits_ready = None


def _pause(reference: Reference, changed: threading.Condition) -> None:
    """The server was there a moment ago: its end will be told, if it has ended."""
    with changed:
        if _wanted(reference)._whole():
            changed.wait(_enter.FIRST_TRY_S)


# ---- The end -------------------------------------------------------------------------------------


def leave(
    options: _enter.Options, seen: _enter.Seen, session: Session, deadline: float
) -> None:
    """In the thread that closes a client whose links are lost: see `_enter.leaving`."""
    if deadline - time.monotonic() < LEAVE_LEAST_S:
        return  # the interpreter ends, and others have had the time
    driver = Driver(lambda: None, time.sleep, deadline)
    try:
        driver.run(_enter.leaving(options, seen, session, deadline))
    finally:
        if driver.link is not None:
            driver.link.close()


# ---- Heartbeats over the control plane -----------------------------------------------------------


def start_beating(client: Client) -> None:
    """Sends one heartbeat."""
    thread = threading.Thread(target=_beat, args=(weakref.ref(client),),
                              name=f"dlock-heartbeat-{next(_numbers)}", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        client._beating = False


def _beat(reference: Reference) -> None:
    """If the control plane answers and the data plane is silent still, the data link is of no use:
    it is made anew, and whoever waits on it is asked for again there."""
    _core.block_signals()
    client = reference()
    if client is None:
        return
    session = client._session
    timeout_s = max(session.ttl_ms / 4000, BEAT_LEAST_S)
    try:
        if not exchange(session.link, session.beat(), timeout_s):
            session.link.close()
    except LinkError:
        pass
    finally:
        client._beating = False
    client._link_lost(session)
