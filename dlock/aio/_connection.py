"""What the lock objects of one client share in an event loop: the session, its links, and the task
that brings both back after a failure. The policy is that of the blocking client (dlock/_enter.py).

A connection belongs to the loop that opened it; only notices come from another thread, and they are
handed over to the loop. Whatever waits here waits for one of three things: an answer on the control
plane, a change of the links (`_sleepers`), or the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
import warnings
import weakref
from asyncio import _get_running_loop, current_task
from collections.abc import Callable
from typing import Final, TypeVar

from dlock import _keeper, _notices
from dlock._core import lib
from dlock._cycle import Cycle, explaining
from dlock._enter import Options, Seen, entering, leaving, no_answer
from dlock._handle import Handle, Key
from dlock._notices import Notice
from dlock._retry import Backoff
from dlock._session import Refusal, Session, Steps, expect_success
from dlock.admin import LockDetails, details
from dlock.aio import _exit, _reconnect
from dlock.aio._actors import actors, new_actor
from dlock.aio._collect import Collector
from dlock.aio._describe import Descriptions
from dlock.aio._doubts import Doubts
from dlock.aio._drive import REPLY_TIMEOUT_S, Driver
from dlock.aio._exit import end, leave
from dlock.aio._names import Wanted
from dlock.aio._spin import Spin
from dlock.aio._watch import Told
from dlock.control.link import LinkError
from dlock.control.messages import ClientDeinit, ShowLock
from dlock.errors import (
    ClientClosed,
    ConnectionLost,
    Deadlock,
    DlockError,
    ForkedError,
    Superseded,
    WrongLoop,
)
from dlock.types import DlockStatus

_log = logging.getLogger("dlock.aio")

T = TypeVar("T")

REPLY_LEAST_S: Final = 1.0  # a shorter wait for an answer would break a link that is only slow
LEAVE_S: Final = 1.0  # how long a client that leaves waits for the server
NOT_READY_S: Final = 0.5  # as dlock/client.py has it


class Connection:
    """See the file. Lock objects use `names`, `collector` and `holding` directly: they are those of
    the present session. `holding`: of each actor, how many holds it has. `on_lost`, `on_suspended`:
    for lock objects without callbacks of their own. `notices`: how many have come; `doubts`: holds
    of owners that are neither confirmed nor lost."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, options: Options, *, adaptive: bool = False
    ) -> None:
        """`adaptive`: the loop looks for a while for what comes before it sleeps."""
        self._here: asyncio.AbstractEventLoop | None = None  # until it is open, and when closed
        self.loop = loop
        self._pid = os.getpid()
        self.options = options
        self._seen = Seen()
        self._sleepers: dict[asyncio.Future[None], None] = {}  # in their order
        self._recovering: asyncio.Task[None] | None = None
        self._awaits_ready = False  # that is what the recovering task does
        self._beating: asyncio.Task[None] | None = None
        self._wanted = Wanted(self, loop)
        self._needs_keeper = object()
        self.holding: dict[int, int] = {}
        self.on_lost: Told | None = None
        self.on_suspended: Told | None = None
        self.on_superseded: Callable[[], object] | None = None
        self.superseded: Superseded | None = None
        self.notices = 0
        self.doubts = Doubts(loop)
        self.descriptions = Descriptions(self, loop)
        self._spin = Spin(loop) if adaptive else None

    async def open(self, timeout_s: float) -> None:
        """Connects. ConnectError; nothing is left behind if it fails or is cancelled."""
        driver = Driver(self.loop)
        try:
            session = await driver.run(
                entering(self.options, self._seen, None, time.monotonic() + timeout_s))
            self.install(session, driver)
        except BaseException:
            driver.farewell(ClientDeinit())
            raise
        self._here = self.loop
        _keeper.keep(self._needs_keeper)
        _exit.remember(self)

    # ---- Who may use it, from where --------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._here is None

    def enter(self) -> int:
        """The actor of the running task; WrongLoop, ClientClosed or ForkedError where the client
        must not be used."""
        if _get_running_loop() is not self._here or self._here is None:
            self.check()
        task = current_task(self._here)
        return actors.get(id(task)) or new_actor(task)

    @property
    def actor(self) -> int:
        """The actor of the running task; 0: there is none."""
        return actors.get(id(current_task(_get_running_loop())), 0) if _get_running_loop() else 0

    def check(self) -> None:
        """See `enter`."""
        if self._pid != os.getpid():
            raise ForkedError
        if self._here is None:
            raise self.why_closed()
        running = _get_running_loop()
        if running is not self.loop:
            where = "outside of any event loop" if running is None else "in another event loop"
            raise WrongLoop(f"this dlock client is used {where}; it belongs to the loop, and so to "
                            f"the thread, in which it was connected. Connect once in each")

    def why_closed(self) -> DlockError:
        """What to say of its use after its end."""
        if self.superseded is not None:
            return Superseded(self.options.role)
        return ClientClosed("this dlock client was closed; make a new one with dlock.aio.connect")

    def holds(self, actor: int) -> None:
        """This actor has got a hold."""
        self.holding[actor] = self.holding.get(actor, 0) + 1

    def holds_no_more(self, actor: int) -> None:
        """This actor has one hold less."""
        count = self.holding.get(actor, 0)
        if count > 1:
            self.holding[actor] = count - 1
        else:
            self.holding.pop(actor, None)

    def failed(self, what: str, problem: Exception) -> None:
        """A callback of the program has raised."""
        self.loop.call_exception_handler({"message": f"dlock: {what}", "exception": problem})

    # ---- What lock objects ask of it -------------------------------------------------------------

    async def take(self, key: Key, actor: int, deadline: float) -> Handle:
        """A handle for one acquisition by this actor. The first use of a name asks the server.
        KindMismatch; ServerFull; ConnectionLost at the deadline (time.monotonic)."""
        while True:
            self.check()
            handle = self.names.take(key, actor)
            if handle is not None:
                return handle
            await self._wanted.get(key, deadline)
            self.descriptions.got(key[0])

    async def get_name(self, key: Key, deadline: float) -> None:
        """Gets a name from the server. KindMismatch; ServerFull; ConnectionLost."""
        await self._wanted.get(key, deadline)

    def let_go(self, key: Key) -> bool:
        """Gives a name up, if it is idle."""
        return self.let_go_idle(key=key) > 0

    def let_go_idle(self, older_than_s: float = 0.0, key: Key | None = None) -> int:
        """Gives names up that were idle so long, or this one; how many. The server is told soon."""
        self.check()
        names = self.names
        count = names.let_go_idle(older_than_s) if key is None else int(names.let_go(key))
        if count:
            self._wanted.part()
        return count

    async def declare_lease(self, lease_ms: int, deadline: float) -> None:
        """Makes sure that a lease of this length may be asked for. LeaseTooLong; ConnectionLost."""
        await self.run(lambda session: session.declare(lease_ms), deadline)

    async def show(self, name: bytes) -> LockDetails | None:
        """Who holds this lock and who waits for it; None: there is no such lock. ConnectionLost."""

        def ask(_session: Session) -> Steps[LockDetails | None]:
            (shown,) = yield [ShowLock(name)]
            if shown.status is not DlockStatus.LOCK_NOT_GET:
                expect_success(shown.status)
            return details(name, shown)

        return await self.run(ask, time.monotonic() + REPLY_TIMEOUT_S)

    async def deadlock(self, number: int) -> Deadlock:
        """The exception for a wait that was refused. Without an answer the cycle stays unnamed."""
        cycle = Cycle()
        with contextlib.suppress(DlockError, Refusal):
            cycle = await self.run(
                lambda _session: explaining(number), time.monotonic() + REPLY_LEAST_S
            )
        return Deadlock(cycle)

    async def run(self, ask: Callable[[Session], Steps[T]], deadline: float) -> T:
        """Carries out what `ask` asks on the control plane, and again if the link was lost
        meanwhile: only for what may be asked twice. ConnectionLost at the deadline; Refusal."""
        backoff = Backoff()
        while True:
            self.check()
            session, driver = self.session, self._driver
            left_s = max(deadline - time.monotonic(), REPLY_LEAST_S)
            try:
                return await driver.run(ask(session), min(REPLY_TIMEOUT_S, left_s))
            except LinkError:
                pass
            except Refusal as refusal:
                if refusal.status is DlockStatus.CLIENT_REMOVED_BY_SERVER:
                    self.session_removed(session)
                elif refusal.status is DlockStatus.CLIENT_NOT_INIT:
                    driver.close()
                elif refusal.status is DlockStatus.NOT_READY:
                    self.not_ready(session)
                else:
                    raise
            await self.regain(session, backoff, deadline)

    # ---- Recovery --------------------------------------------------------------------------------

    def session_removed(self, session: Session) -> None:
        """The server has said that this session has ended."""
        lib.dlk_client_detach(session.client)
        self.link_lost(session)

    def not_ready(self, session: Session) -> None:
        """The server has said that it does not serve everything yet."""
        session.ready = False
        self.link_lost(session)

    def link_lost(self, session: Session) -> None:
        """A link of this session may be broken, or its server may not be ready. If so, that is
        mended, or waited for, by a task."""
        whole = self.whole
        if (self.closed or session is not self.session or self.loop.is_closed()
                or (whole and session.ready)):
            return
        if self._recovering is not None:
            if not whole and self._awaits_ready:
                self._driver.close()  # there is something else to do first
            return
        self._recovering = _reconnect.start(self, self.loop)

    @property
    def whole(self) -> bool:
        """Both links are there."""
        return self.session.attached and not self._driver.broken

    @property
    def settled(self) -> bool:
        """Both links are there, and the server serves everything."""
        return self.whole and self.session.ready

    async def regain(self, session: Session, backoff: Backoff, deadline: float) -> None:
        """What was asked of this session got no answer, or NOT_READY: returns when it makes sense
        to ask again, perhaps another session. ConnectionLost at the deadline; ClientClosed."""
        self.check()
        self.link_lost(session)
        pause_s = backoff.pause_s() if self.session.ready else NOT_READY_S * random.uniform(0.5, 1)
        while not self.closed and (self._away or pause_s > 0):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise ConnectionLost(self.no_answer())
            await self._sleep(left_s if self._away else min(left_s, pause_s))
            pause_s = 0.0
        self.check()

    @property
    def _away(self) -> bool:
        """The links are being brought back."""
        return self._recovering is not None and not self.whole

    def no_answer(self) -> str:
        """What ConnectionLost says."""
        return no_answer(self.options, self._seen, self.session, self.whole)

    def why_unanswered(self) -> DlockError:
        """What ended the asking: it was closed, or its server does not answer."""
        try:
            self.check()
        except DlockError as problem:
            return problem
        return ConnectionLost(self.no_answer())

    async def _sleep(self, seconds: float) -> None:
        """At most so long, and until the links have changed."""
        sleeper = self.loop.create_future()
        timer = self.loop.call_later(seconds, _wake, sleeper)
        self._sleepers[sleeper] = None
        try:
            await sleeper
        finally:
            timer.cancel()
            del self._sleepers[sleeper]

    def wake_all(self) -> None:
        """The links have changed, or the client is closed."""
        for sleeper in self._sleepers:
            _wake(sleeper)

    def enter_again(self) -> Steps[Session]:
        """The way back, however long it takes."""
        return entering(self.options, self._seen, self.session, None)

    def replace_driver(self) -> Driver:
        """The present links are of no more use."""
        self._driver.close()
        return Driver(self.loop)

    def await_ready(self, begun: bool) -> Driver:
        """The task begins to wait until the server serves everything, or has ended that."""
        self._awaits_ready = begun
        self.wake_all()
        return self._driver

    def recovered(self, by_itself: bool) -> None:
        """The task has ended. The loop may have turned since it looked last, and what was lost
        meanwhile was left to it: that begins anew."""
        self._recovering = None
        self.wake_all()
        if by_itself:
            self.link_lost(self.session)

    def install(self, session: Session, driver: Driver) -> None:
        """What opening or recovery has brought: new links, and perhaps a new session. A new one
        takes the place of the old before anybody hears that the old one's holds are lost."""
        old: Session | None = getattr(self, "session", None)
        self._driver = driver
        driver.watch(weakref.WeakMethod(self._link_ended))
        self.descriptions.at_home((session.number, session.home))
        self.wake_all()
        if session is old:
            _log.info("the session at %s is taken up again", self.options.address)
            return
        collector = Collector(self.loop, session.client, self._spin)
        former: Collector | None = getattr(self, "collector", None)
        self.session, self.names, self.collector = session, session.names, collector
        self.holding.clear()
        _notices.listen(session.number, self, session.pulse_s)
        if old is not None and former is not None:
            _log.warning("the session at %s had ended, and with it all that it held; a new one is "
                         "open", self.options.address)
            end(old, former)
            _notices.tell_lost(old.names)

    def _link_ended(self) -> None:
        if not self.closed:
            self.link_lost(self.session)

    def _notice(self, notice: Notice) -> None:
        """Called in the thread of the notices: the loop shall see to it."""
        with contextlib.suppress(RuntimeError):  # the loop was closed
            self.loop.call_soon_threadsafe(self._noticed, notice)

    def _noticed(self, notice: Notice) -> None:
        if self.closed:
            return
        self.notices += 1
        session = self.session
        overflow = notice.kind == _notices.OVERFLOW
        if notice.client != session.number and not overflow:
            return
        if notice.kind == _notices.REMOVED:
            self.session_removed(session)
        elif notice.kind == _notices.LINK_DOWN or overflow:
            self.link_lost(session)
        _notices.tell(session.names, notice)

    def _pulse(self) -> None:
        """Called in the thread of the notices several times a session_ttl."""
        if not self.closed and self.session.silent:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                self.loop.call_soon_threadsafe(self._beat_now)

    def _beat_now(self) -> None:
        if not self.closed and self._recovering is None and self._beating is None:
            self._beating = self.loop.create_task(self._beat(self.session, self._driver))

    async def _beat(self, session: Session, driver: Driver) -> None:
        """Keeps the session alive over the control plane, since the data plane is silent. If that
        answers, the data link is of no use: it is made anew, and whoever waits on it is asked for
        again there."""
        try:
            if not await driver.run(session.beat(), max(session.ttl_ms / 4000, REPLY_LEAST_S)):
                driver.close()
        except LinkError:
            pass
        finally:
            self._beating = None
        self.link_lost(session)

    # ---- The end ---------------------------------------------------------------------------------

    async def close(self) -> None:
        """Leaves the server, which frees at once what this client holds, and ends every call that
        waits (ClientClosed). Does nothing the second time, and nothing in a forked child."""
        if self._pid != os.getpid() or self.closed:
            return
        self.check()
        self._here = None
        self.wake_all()
        self._wanted.close()
        self._stop_tasks()
        end(self.session, self.collector)  # first: nobody may believe in what the server frees
        self.doubts.end()
        deadline = time.monotonic() + LEAVE_S
        driver = Driver(self.loop)
        try:
            await self._driver.exchange([ClientDeinit()], LEAVE_S)
        except LinkError:
            # If this fails too, the server ends the session by itself when it hears nothing.
            with contextlib.suppress(LinkError):
                await driver.run(
                    leaving(self.options, self._seen, self.session, deadline), LEAVE_S)
        finally:
            driver.close()
            self._end()

    def supersede(self, problem: Superseded) -> None:
        """Another client has taken the role of this one: all is over, and everybody is told."""
        if self.closed:
            return
        _log.warning("%s", problem)
        self.superseded = problem
        self._here = None
        self.wake_all()
        self._wanted.close()
        self._end()
        _notices.tell_lost(self.session.names)
        if self.on_superseded is not None:
            self.loop.call_soon(self.on_superseded)

    def abandon(self) -> None:
        """Leaves without waiting; for those who can not."""
        if self._pid != os.getpid() or self.closed:
            return
        self._here = None
        self._driver.farewell(ClientDeinit())
        self._end()

    def _stop_tasks(self) -> None:
        for task in (self._recovering, self._beating):
            if task is not None and not self.loop.is_closed():
                task.cancel()

    def _end(self) -> None:
        self._stop_tasks()
        end(self.session, self.collector)
        self.doubts.end()
        self.descriptions.end()
        self._driver.close()
        _keeper.let_go(self._needs_keeper)
        _exit.forget(self)

    def __del__(self) -> None:
        if getattr(self, "_here", None) is None or self._pid != os.getpid():
            return
        warnings.warn(f"unclosed dlock.aio.Client of {self.options.address}", ResourceWarning,
                      source=self, stacklevel=2)
        running = _get_running_loop()
        if self.loop.is_running() and running is not self.loop:
            # The collector of garbage came in another thread. Only the loop's may do it.
            parts = self.session, self.collector, self._driver, self._recovering
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(leave, *parts)
            _keeper.let_go(self._needs_keeper)
        else:
            self.abandon()


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
