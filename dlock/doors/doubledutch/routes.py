"""The three requests of DoubleDutch: what is checked in which order, and the JSON of the answers.

Numbers, texts and keys are the original's; what is refused where the original would fail or wait
for ever is in docs/door-doubledutch.md.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable
from json.encoder import encode_basestring_ascii
from typing import Final

from dlock.aio import Client
from dlock.doors.doubledutch.service import Party, Service
from dlock.doors.http import Connection, Request
from dlock.doors.http_answer import Response, plain

LIFETIME_S: Final = 30.0
TIMEOUT_S: Final = 0.0
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_READ: Final = ("GET", "HEAD")

Answer = Response | Awaitable[Response] | None


class Routes:
    """Answers requests; give `handle` and `closed` to an HttpServer."""

    def __init__(self, service: Service, client: Client, server_name: str, api_key: str) -> None:
        self._service = service
        self._client = client
        self._api_key = _bytes(api_key)
        self._name = f'"servername":{_json(server_name)}'
        self._routes: dict[str, tuple[tuple[str, ...], Callable[[Request], Answer]]] = {
            "/getlock": (_READ, self._getlock),
            "/releaselock": (("DELETE",), self._releaselock),
            "/status": (_READ, self._status),
        }

    def handle(self, request: Request) -> Answer:
        """The handler of the HttpServer."""
        found = self._routes.get(request.path)
        if found is None:
            return plain(404)
        methods, answer = found
        if request.method not in methods:
            return plain(405)._replace(headers=(("Allow", ", ".join(methods)),))
        return answer(request)

    def closed(self, connection: Connection) -> None:
        """A connection has ended."""
        party = connection.kept
        if isinstance(party, Party):
            party.close()

    # ---- Requests --------------------------------------------------------------------------------

    def _getlock(self, request: Request) -> Answer:
        query = request.query
        name = query.get("lockname")
        if name is None:
            return self._say(400, '"error":"no lockname supplied"')
        key = query.get("auth")
        if key is None:
            return self._say(401, '"error":"no api key supplied"')
        if not self._is_key(key):
            return self._say(401, '"error":"invalid api key"')
        timeout_s = _number(query.get("timeout"), TIMEOUT_S)
        if timeout_s is None:
            return self._say(400, '"error":"invalid timeout"')
        lifetime_s = _number(query.get("lifetime"), LIFETIME_S)
        if lifetime_s is None:
            return self._say(400, '"error":"invalid lifetime"')
        connection = request.connection
        party = connection.kept
        if party is None:
            party = connection.kept = Party(self._client, connection.peer)
        if timeout_s <= 0 or request.gone:
            # What is answered at once is answered also to a client that has closed its side.
            request.brief = True
            timeout_s = 0.0

        def done(token: str | None) -> None:
            request.on_gone = None
            request.answer(self._acquired(name, token))

        def gone() -> None:
            attempt.cancel()
            request.answer(self._acquired(name, None))

        attempt = self._service.acquire(name, timeout_s, lifetime_s, party, done)
        request.on_gone = gone
        return None

    def _acquired(self, name: str, token: str | None) -> Response:
        if token is None:
            told = '"lockacquired":false,"sessiontoken":""'
        else:
            told = f'"lockacquired":true,"sessiontoken":"{token}"'
        return self._say(200, f'"lockname":{_json(name)},{told}')

    def _releaselock(self, request: Request) -> Answer:
        query = request.query
        name, token = query.get("lockname"), query.get("token")
        if name is None or token is None:
            return self._say(400, '"error":"invalid params"')
        key = query.get("auth")
        if key is not None and not self._is_key(key):
            return self._say(401, '"error":"invalid key"')
        released = self._service.release(name, token)
        if isinstance(released, bool):
            return self._released(name, released)
        request.brief = True
        return self._settled(name, released)

    async def _settled(self, name: str, released: Awaitable[bool]) -> Response:
        return self._released(name, await released)

    def _released(self, name: str, released: bool) -> Response:
        told = '"lockreleased":true' if released else '"lockreleased":false'
        return self._say(200 if released else 400, f'"lockname":{_json(name)},{told}')

    def _status(self, request: Request) -> Answer:
        key = request.query.get("auth")
        if key is None:
            return self._say(400, '"status":"no api key"')
        if not self._is_key(key):
            return self._say(401, '"status":"invalid key"')
        locks = ",".join(
            f'{{"lockname":{_json(name)},"sessiontoken":"{token}","remaining":{left_s:.6g}}}'
            for name, token, left_s in self._service.locks())
        return self._say(200, f'"status":"ok","locks":[{locks}]')

    # ---- Answers ---------------------------------------------------------------------------------

    def _is_key(self, key: str) -> bool:
        return hmac.compare_digest(_bytes(key), self._api_key)

    def _say(self, status: int, fields: str) -> Response:
        return Response(status, f"{{{fields},{self._name}}}".encode("ascii"))


def _number(text: str | None, default: float) -> float | None:
    """Seconds; None: this is no number, or none that a clock can count (nan, inf)."""
    if text is None:
        return default
    if not _NUMBER.fullmatch(text) or len(text) > 400:
        return None
    number = float(text)
    return number if abs(number) != float("inf") else None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _json(text: str) -> str:
    """As a JSON string. Bytes that are no UTF-8 are shown as U+FFFD, so that it is one."""
    if not text.isascii():
        text = _bytes(text).decode("utf-8", "replace")
    return encode_basestring_ascii(text)
