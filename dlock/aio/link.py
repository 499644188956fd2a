"""The control connection of an asyncio client: many requests under way, answers matched by id.

It speaks the codec of `dlock.control` over an asyncio transport. Any number of tasks may ask at the
same time. A task that is cancelled while it waits takes nothing with it: its answers are dropped
when they come, and the link goes on. A link that got no answer in time, broke, or got an answer
that it cannot understand is closed for good, and everybody who waits on it is told; the caller
connects anew.

It belongs to the event loop that connected it and may not be used from anywhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from dlock.control.codec import Decoder, encode
from dlock.control.fields import U32_MAX, ProtocolError
from dlock.control.link import LinkError
from dlock.control.messages import BY_MESSAGE, Message, Reply, Request

# So many answers may be owed, those to cancelled tasks included; then the server is taken for dead.
UNANSWERED_MAX: Final = 65536
FAREWELL_S: Final = 1.0  # how long a link that is left waits for answers


class _Exchange:
    """Requests that one task has sent together."""

    __slots__ = ("done", "expected", "left", "replies")

    def __init__(self, done: asyncio.Future[None], messages: Sequence[Request[Any]]) -> None:
        self.done = done
        self.expected = [BY_MESSAGE[type(message)].reply for message in messages]
        self.replies: list[Message | None] = [None] * len(messages)
        self.left = len(messages)


class AsyncLink(asyncio.Protocol):
    """One connection; use `connect`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop
        self._pid = os.getpid()
        self._name = name
        self._transport: asyncio.Transport | None = None
        self._decoder = Decoder()
        self._request_id = 0
        self._unanswered: dict[int, tuple[_Exchange, int]] = {}
        self._ended: str | None = None
        self._parting: bytes | None = None  # to be sent before the link is closed
        self._peer = ""
        self.on_end: Callable[[], None] | None = None

    @classmethod
    async def connect(cls, host: str, port: int, timeout: float) -> AsyncLink:
        """Connects within `timeout` seconds; LinkError if nothing answers there."""
        loop = asyncio.get_running_loop()
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        make = functools.partial(cls, loop, name)
        # A task of its own, because the time limits of older versions lose a connection that comes
        # into being in the moment in which the time is over or the caller is cancelled.
        connecting = loop.create_task(loop.create_connection(make, host, port))
        try:
            await asyncio.wait((connecting,), timeout=max(timeout, 0))
        except asyncio.CancelledError:
            connecting.add_done_callback(_discard)
            connecting.cancel()
            raise
        if not connecting.done():
            connecting.add_done_callback(_discard)
            connecting.cancel()
            raise LinkError(f"no server answers at {name}: no connection within {timeout:g} s")
        try:
            return connecting.result()[1]
        except (OSError, UnicodeError) as problem:
            raise LinkError(f"no server answers at {name}: {problem}") from None

    # ---- What asyncio calls ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        self._transport = cast(asyncio.Transport, transport)
        address = transport.get_extra_info("peername")
        self._peer = str(address[0]) if address else ""

    def data_received(self, data: bytes) -> None:
        """Bytes from the server: answers go to those who asked."""
        if self._ended is not None:
            return
        try:
            self._decoder.feed(data)
            while (taken := self._decoder.take()) is not None:
                self._answer(*taken)
            if self._parting is not None and not self._unanswered:
                self._part(self._parting)
        except (LinkError, ProtocolError) as problem:
            self._end(f"the link broke: {problem}")

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._end("the server closed the connection" if exc is None else f"the link broke: {exc}")

    def _answer(self, request_id: int, reply: Message) -> None:
        exchange, index = self._unanswered.get(request_id, (None, 0))
        if exchange is None:
            raise LinkError("the server answered something that was not asked")
        expected = exchange.expected[index]
        if expected is None or not isinstance(reply, expected):
            raise LinkError(f"the server answered with {type(reply).__name__}, which fits not")
        del self._unanswered[request_id]
        exchange.replies[index] = reply
        exchange.left -= 1
        if exchange.left == 0 and not exchange.done.done():
            exchange.done.set_result(None)

    # ---- Its user --------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """True once the link is of no more use."""
        return self._ended is not None or self._parting is not None

    @property
    def peer(self) -> str:
        """The numeric address of the server."""
        return self._peer

    def close(self) -> None:
        """Closes it; requests under way end with LinkError. In a forked child the connection is the
        parent's, and its event loop too: there nothing is touched."""
        self._end("the link is closed")

    def farewell(self, message: Request[Any]) -> None:
        """Sends a last request without waiting for its answer, and closes the link. For those who
        cannot wait: also when the loop is closed already, as far as its transports allow. Answers
        that are still awaited come first: what is said at last may depend on them."""
        if self.closed or self._transport is None or self._pid != os.getpid():
            return
        self._request_id = (self._request_id + 1) & U32_MAX
        data = encode(self._request_id, message)
        if self._unanswered and self._loop.is_running():
            self._parting = data
            self._loop.call_later(FAREWELL_S, self.close)
        else:
            self._part(data)

    def _part(self, data: bytes) -> None:
        if self._transport is not None:
            with contextlib.suppress(RuntimeError, OSError):
                self._transport.write(data)
        self.close()

    def _end(self, reason: str) -> None:
        if self._ended is not None or self._pid != os.getpid():
            return
        self._ended = reason
        unanswered, self._unanswered = self._unanswered, {}
        if self._loop.is_closed():
            return  # Nobody waits any more, and the transport can no longer be closed.
        if self._transport is not None:
            self._transport.close()
        for exchange, _ in unanswered.values():
            if not exchange.done.done():
                exchange.done.set_exception(LinkError(reason))
        if self.on_end is not None:
            self.on_end()

    async def exchange(self, messages: Sequence[Request[Any]], timeout: float) -> list[Any]:
        """Sends these requests together and waits for all answers, in the order of the requests,
        at most `timeout` seconds. LinkError closes the link. ProtocolError: a message cannot be
        sent; then none was, and the link stays as it was."""
        if self._pid != os.getpid():
            raise LinkError("the link belongs to the parent process")
        if self._transport is None or self.closed:
            raise LinkError(self._ended or "the link is closed")
        if len(self._unanswered) > UNANSWERED_MAX:
            self._end("the server answers no longer")
            raise LinkError("the server answers no longer")
        exchange = _Exchange(self._loop.create_future(), messages)
        ids = [(self._request_id + number) & U32_MAX for number in range(1, len(messages) + 1)]
        data = b"".join(map(encode, ids, messages))
        self._request_id = ids[-1]
        for index, request_id in enumerate(ids):
            self._unanswered[request_id] = (exchange, index)
        self._transport.write(data)
        late = self._loop.call_later(max(timeout, 0), self._late, exchange)
        try:
            await exchange.done
        finally:
            late.cancel()
        return exchange.replies

    async def request(self, message: Request[Reply], timeout: float) -> Reply:
        """One request and its answer; see `exchange`."""
        (reply,) = await self.exchange((message,), timeout)
        return cast(Reply, reply)

    def _late(self, exchange: _Exchange) -> None:
        if not exchange.done.done():
            self._end("no answer in time")


def _discard(connecting: asyncio.Task[tuple[asyncio.Transport, AsyncLink]]) -> None:
    """Closes a connection that came when nobody wanted it any more."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result()[1].close()
