"""One Lock or TryLock of LDLM on its way: asked of dlock, granted or not, written down, answered.

It is the future of its own answer. Whoever cancels it has given up, at whatever moment:

| it is | cancelled, it leaves behind |
|---|---|
| asked | nothing: its place in the line goes, a grant that crosses is given back |
| granted, and being written down (-s) | nothing: given back and struck out |
| answered | what it has answered |
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import TYPE_CHECKING, Any, Final

from dlock.doors.ldlm import problems
from dlock.doors.ldlm.logs import fields
from dlock.doors.ldlm.problems import Answer, Problem
from dlock.errors import ClientClosed, DlockError, KindMismatch

if TYPE_CHECKING:
    from dlock.aio import Asking, Hold
    from dlock.aio.keys import Key
    from dlock.doors.ldlm.service import Session
    from dlock.doors.ldlm.table import Entry, Held

LOST: Final = problems.unknown("the lock was lost before it could be given out")
_log: Final = logging.getLogger("dlock.doors.ldlm")


class ShutDown(Exception):  # noqa: N818 - it is what happened, not a fault
    """The door stops: what waited gets no answer of LDLM's, the transport says so in its own way
    (gRPC: UNAVAILABLE)."""


class Request(asyncio.Future[Answer]):
    """One Lock or TryLock on its way, and the future of its answer."""

    def __init__(
        self, session: Session, entry: Entry[Key], wait_ms: int, timeout_s: int | None
    ) -> None:
        super().__init__(loop=session.service.loop)
        self._session = session
        self._entry = entry
        self._waits = wait_ms != 0
        self._timeout_s = timeout_s
        entry.asking += 1
        session.requests.add(self)
        self._asking: Asking | None = session.owner.ask(entry.lock, self._asked, wait_ms)

    def cancel(self, msg: Any = None) -> bool:
        """Nobody wants the answer any more."""
        if not super().cancel(msg):
            return False
        self._leave()
        return True

    def shut_down(self) -> None:
        """The door stops: there will be no answer."""
        if not self.done():
            self.set_exception(ShutDown("the door is being stopped"))
            self.exception()  # who has gone does not look
            self._leave()

    def _leave(self) -> None:
        """It has ended without what it asked for."""
        self._session.requests.discard(self)
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
            self._entry.asking -= 1

    def _asked(self, outcome: Hold | DlockError | None) -> None:
        """What came of it."""
        if self._asking is None:  # given up in the very moment in which it was granted
            if outcome is not None and not isinstance(outcome, DlockError):
                outcome.release()
            return
        self._asking = None
        session, entry = self._session, self._entry
        service = session.service
        entry.asking -= 1
        if outcome is None:
            self._refuse(problems.WAIT_OVER if self._waits else None)
        elif isinstance(outcome, DlockError):
            self._refuse(self._problem(outcome))
        else:
            held = service.grant(entry, str(uuid.uuid4()), outcome, self._timeout_s, session)
            if service.book is None:
                self._answer(Answer(True, entry.name, held.key))
            else:
                service.carry_on(self._written(held))

    def _problem(self, error: DlockError) -> Problem:
        service = self._session.service
        if isinstance(error, KindMismatch):  # others share the names, or did
            service.table.forget(self._entry)
            return problems.SIZE_MISMATCH
        if isinstance(error, ClientClosed):
            return problems.SHUT_DOWN
        service.counters["errors"] += 1
        _log.error("Lock request failed: %s", error, extra=fields(lock=self._entry.name))
        return problems.unknown(str(error))

    def _refuse(self, problem: Problem | None) -> None:
        self._answer(Answer(False, self._entry.name, str(uuid.uuid4()), problem))

    def _answer(self, answer: Answer) -> None:
        self._session.requests.discard(self)
        if not self.done():
            self.set_result(answer)

    async def _written(self, held: Held[Key]) -> Answer:
        """The lock is granted; its key is given out when it is written down, if it is still good
        then: the primary may have been away for long."""
        book = self._session.service.book
        assert book is not None
        held.stored = True
        problem: Problem | None = None
        try:
            await book.write(held.name, held.entry.size, held.key, held.hold.token)
        except DlockError as error:
            _log.error("Lock could not be written down: %s", error, extra=fields(lock=held.name))
            problem = problems.unknown(f"the lock could not be written down: {error}")
        else:
            if not (held.hold.held or await held.hold.settled()):
                problem = LOST
        answer = Answer(problem is None, held.name, held.key, problem)
        if problem is not None or self.done():  # or nobody has got its key
            book.strike(held.key)
            held.stored = False
            self._session.service.give_back(held)
        self._answer(answer)
        return answer
