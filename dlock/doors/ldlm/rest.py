"""LDLM's REST gateway: sessions by cookie, and Lock (which only tries), Unlock and Renew as JSON.

It turns requests into calls of the service; connections are for `dlock.doors.http`. A session is a
cookie with an idle timer; its requests are carried out one at a time, in the order in which they
came. What is refused, and how, is the original's, down to its mixture of forms.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import hmac
import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote

from dlock.doors.http import Request
from dlock.doors.http_answer import JSON, Response
from dlock.doors.ldlm import protojson
from dlock.doors.ldlm.logs import fields
from dlock.doors.ldlm.problems import Answer
from dlock.doors.ldlm.request import ShutDown

if TYPE_CHECKING:
    from dlock.doors.ldlm.service import LdlmService, Session

COOKIE: Final = "ldlm-session"
SESSION_PATH: Final = "/session"
BODY_BYTES_MAX: Final = 4 * 1024 * 1024  # as much as gRPC takes
SNIFFED: Final = "text/plain; charset=utf-8"  # what Go says where nobody has set a type
# Codes of gRPC, which the gateway writes into the bodies of its own errors.
INVALID_ARGUMENT, NOT_FOUND, UNIMPLEMENTED, UNAVAILABLE = 3, 5, 12, 14
NO_COOKIE: Final = ('{"error": "session cookie not found. create a new session at '
                    f'{SESSION_PATH}"}}').encode()
BAD_COOKIE: Final = ('{"error": "session cookie invalid or expired. create a new session at '
                     f'{SESSION_PATH}"}}').encode()
NO_COOKIE_TO_END: Final = b'{"error":"http: named cookie not present"}'
NO_SESSION_TO_END: Final = b'{"error": "session not found"}'
ENDED: Final = b'{"session_id": ""}'
STOPPING: Final = Response(503, protojson.status_body(UNAVAILABLE, "the server is shutting down"))
_log: Final = logging.getLogger("dlock.doors.ldlm")


class Turn(NamedTuple):
    """A request in line. `run` begins it; `give_up`: it is of no use without its client."""

    request: Request
    run: Callable[[], asyncio.Future[Answer] | Response]
    give_up: bool
    unlocking: bool


class RestSession:
    """One cookie. `turns`: requests that wait; `running`: the one that does not."""

    __slots__ = ("deadline_s", "id", "known", "running", "session", "timer", "turns")

    def __init__(self, session: Session, deadline_s: float) -> None:
        self.id = session.id
        self.session = session
        self.deadline_s = deadline_s
        self.timer: asyncio.TimerHandle | None = None
        self.known = True
        self.running: asyncio.Future[Answer] | None = None
        self.turns: deque[Turn] = deque()


class Gateway:
    """Give `handle` to an HttpServer. `idle_s`: how long a session lives without a request."""

    def __init__(
        self, service: LdlmService, *, idle_s: float, password: str, counters: Counter[str]
    ) -> None:
        self._service = service
        self._loop = service.loop
        self._idle_s = idle_s
        self._password = password.encode()
        self._counters = counters
        self._sessions: dict[str, RestSession] = {}
        self._routes: dict[str, Callable[[RestSession, Request], Turn]] = {
            "/v1/lock": self._lock, "/v1/unlock": self._unlock, "/v1/renew": self._renew}

    def handle(self, request: Request) -> Response | None:
        """The answer, or None if it comes later."""
        request.brief = True  # nothing here waits for a lock
        if self._password and not self._knows_password(request):
            self._counters["wrong_passwords"] += 1
            return Response(401, b"", headers=(("WWW-Authenticate", 'Basic realm="Restricted"'),))
        path = unquote(request.path) if "%" in request.path else request.path
        if path == SESSION_PATH:
            if request.method == "POST":
                return self._create(request)
            if request.method == "DELETE":
                return self._destroy(request)
        cookie = _cookie(request)
        if cookie is None:
            return Response(401, NO_COOKIE)
        rest = self._find(cookie)
        if rest is None:
            return Response(401, BAD_COOKIE)
        rest.deadline_s = self._loop.time() + self._idle_s
        route = self._routes.get(path)
        if route is None:
            return self._refused(rest, 404, NOT_FOUND, "Not Found")
        if request.method != "POST":
            return self._refused(rest, 501, UNIMPLEMENTED, "Method Not Allowed")
        try:
            turn = route(rest, request)
        except ValueError as problem:
            self._counters["bad_bodies"] += 1
            return self._refused(rest, 400, INVALID_ARGUMENT, str(problem))
        return self._in_line(rest, turn)

    def close(self) -> None:
        """All sessions end."""
        for rest in list(self._sessions.values()):
            self._forget(rest)
            rest.session.close()

    # ---- Sessions --------------------------------------------------------------------------------

    def _knows_password(self, request: Request) -> bool:
        kind, _, encoded = request.headers.get("authorization", "").partition(" ")
        if kind != "Basic":
            return False
        try:
            said = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            return False
        _, colon, password = said.partition(b":")
        return bool(colon) and hmac.compare_digest(password, self._password)

    def _create(self, request: Request) -> Response:
        session_id = uuid.uuid4().hex
        session = self._service.open(request.peer, session_id)
        rest = RestSession(session, self._loop.time() + self._idle_s)
        session.on_lost = partial(self._lost, rest)
        self._sessions[session_id] = rest
        self._counters["rest_sessions"] += 1
        self._wind(rest)
        return Response(201, f'{{"session_id": "{session_id}"}}'.encode(),
                        headers=self._cookie_header(rest))

    def _destroy(self, request: Request) -> Response | None:
        cookie = _cookie(request)
        if cookie is None:
            return Response(500, NO_COOKIE_TO_END, SNIFFED)
        rest = self._find(cookie)
        if rest is None:
            return Response(409, NO_SESSION_TO_END, SNIFFED)
        self._forget(rest)

        def end() -> Response:
            rest.session.close()
            return Response(200, ENDED, headers=(("Set-Cookie", f"{COOKIE}=; Path=/"),))

        return self._in_line(rest, Turn(request, end, give_up=False, unlocking=False))

    def _find(self, session_id: str) -> RestSession | None:
        rest = self._sessions.get(session_id)
        if rest is not None and rest.deadline_s <= self._loop.time():
            self._expire(rest)
            return None
        return rest

    def _wind(self, rest: RestSession) -> None:
        rest.timer = self._loop.call_at(rest.deadline_s, self._ring, rest)

    def _ring(self, rest: RestSession) -> None:
        """A request since then has put the end off."""
        if rest.deadline_s <= self._loop.time():
            self._expire(rest)
        else:
            self._wind(rest)

    def _expire(self, rest: RestSession) -> None:
        self._counters["rest_sessions_expired"] += 1
        _log.info("REST session timeout", extra=fields(rest_session_id=rest.id, idle=self._idle_s))
        self._end(rest)

    def _lost(self, rest: RestSession) -> None:
        """A lock of this session was lost: the session is gone, as for those who have none."""
        _log.error("REST session ended: a lock of it was lost",
                   extra=fields(rest_session_id=rest.id))
        self._end(rest)

    def _end(self, rest: RestSession) -> None:
        """Nobody finds it any more; what is under way in it is finished first."""
        self._forget(rest)
        if rest.running is None:
            rest.session.close()

    def _forget(self, rest: RestSession) -> None:
        rest.known = False
        self._sessions.pop(rest.id, None)
        if rest.timer is not None:
            rest.timer.cancel()
            rest.timer = None

    # ---- Requests --------------------------------------------------------------------------------

    def _lock(self, rest: RestSession, request: Request) -> Turn:
        said = protojson.read(request.body, protojson.TRY_LOCK)
        run = partial(rest.session.try_lock, said.get("name", ""),
                      said.get("lock_timeout_seconds"), said.get("size"))
        return Turn(request, run, give_up=True, unlocking=False)

    def _unlock(self, rest: RestSession, request: Request) -> Turn:
        said = protojson.read(request.body, protojson.UNLOCK)
        run = partial(rest.session.unlock, said.get("name", ""), said.get("key", ""))
        return Turn(request, run, give_up=False, unlocking=True)

    def _renew(self, rest: RestSession, request: Request) -> Turn:
        said = protojson.read(request.body, protojson.RENEW)
        run = partial(rest.session.renew, said.get("name", ""), said.get("key", ""),
                      said.get("lock_timeout_seconds", 0))
        return Turn(request, run, give_up=False, unlocking=False)

    def _in_line(self, rest: RestSession, turn: Turn) -> Response | None:
        if rest.running is None and not rest.turns:
            return self._begin(rest, turn)
        rest.turns.append(turn)
        return None

    def _begin(self, rest: RestSession, turn: Turn) -> Response | None:
        outcome = turn.run()
        if isinstance(outcome, Response):
            return outcome
        if outcome.done():
            return self._response(rest, turn, outcome)
        rest.running = outcome
        if turn.give_up:
            turn.request.on_gone = partial(_cancel, outcome)
        outcome.add_done_callback(partial(self._ended, rest, turn))
        return None

    def _ended(self, rest: RestSession, turn: Turn, outcome: asyncio.Future[Answer]) -> None:
        rest.running = None
        turn.request.answer(self._response(rest, turn, outcome))
        while rest.turns and rest.running is None:
            following = rest.turns.popleft()
            response = None if following.request.gone else self._begin(rest, following)
            if response is not None:
                following.request.answer(response)
        if not rest.known and rest.running is None:
            rest.session.close()

    def _response(
        self, rest: RestSession, turn: Turn, outcome: asyncio.Future[Answer]
    ) -> Response:
        if outcome.cancelled() or isinstance(outcome.exception(), ShutDown):
            return STOPPING
        return Response(200, protojson.answer_body(outcome.result(), unlocking=turn.unlocking),
                        headers=self._cookie_header(rest))

    def _refused(self, rest: RestSession, status: int, code: int, message: str) -> Response:
        return Response(status, protojson.status_body(code, message), JSON,
                        self._cookie_header(rest))

    def _cookie_header(self, rest: RestSession) -> tuple[tuple[str, str], ...]:
        expires = _date(int(time.time() + self._idle_s))
        return (("Set-Cookie", f"{COOKIE}={rest.id}; Path=/; Expires={expires}"),)


@functools.lru_cache(maxsize=4)
def _date(second: int) -> str:
    """As headers have it; made once a second, since it takes as long as reading a request."""
    return formatdate(second, usegmt=True)


def _cancel(outcome: asyncio.Future[Answer]) -> None:
    outcome.cancel()


def _cookie(request: Request) -> str | None:
    """What the first cookie of this name says. Several Cookie headers come joined by commas."""
    for pair in request.headers.get("cookie", "").replace(",", ";").split(";"):
        name, equals, value = pair.strip().partition("=")
        if equals and name == COOKIE:
            return value.strip().strip('"')
    return None
