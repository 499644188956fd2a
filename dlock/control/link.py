"""A client's control connection: typed requests and replies, one exchange at a time, from any
thread.

A link that timed out, broke, was interrupted or got an answer it cannot understand is closed for
good: after any of these it could be out of step, and a later reply must never be taken for the
answer to another request. The caller connects anew (`client_reinit` in the mirror).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

from dlock import _core
from dlock.control.codec import Decoder, encode
from dlock.control.fields import U32_MAX, ProtocolError
from dlock.control.messages import BY_MESSAGE, Message, Reply, Request

RECEIVE_BYTES: Final = 65536
WINDOW: Final = 16  # requests of a stream that may be without an answer at a time


class LinkError(Exception):
    """No answer: the server cannot be reached, was late, or the connection is closed."""


class ControlLink:
    """One connection. `request` holds the link for a request and its reply."""

    def __init__(self, connected: socket.socket) -> None:
        """Takes the socket over; use `connect`."""
        self._pid = os.getpid()
        self._socket: socket.socket | None = connected
        self._retired: socket.socket | None = None
        self._lock = threading.Lock()
        self._decoder = Decoder()
        self._request_id = 0

    @classmethod
    def connect(cls, host: str, port: int, timeout: float) -> ControlLink:
        """Connects within `timeout` seconds; LinkError if nothing answers there."""
        try:
            connected = socket.create_connection((host, port), timeout)
        except (OSError, UnicodeError) as problem:
            raise LinkError(f"no server answers at {host}:{port}: {problem}") from None
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as problem:
            connected.close()
            raise LinkError(f"{host}:{port} closed the connection: {problem}") from None
        return cls(connected)

    @property
    def closed(self) -> bool:
        """True once the link is of no more use."""
        return self._socket is None

    @property
    def gone(self) -> bool:
        """The server has ended it, which nobody who asks something has seen yet. Never waits."""
        if self._socket is None:
            return True
        if not self._lock.acquire(blocking=False):
            return False  # whoever asks sees it
        try:
            connected = self._socket
            if connected is None:
                return True
            looking = select.poll()
            looking.register(connected, select.POLLRDHUP)
            return bool(looking.poll(0))
        except (OSError, ValueError):  # it is closed in this moment
            return True
        finally:
            self._lock.release()
            self._reap()

    @property
    def peer(self) -> str:
        """The numeric address of the server; LinkError when closed."""
        connected = self._socket
        try:
            if connected is not None:
                return cast(str, connected.getpeername()[0])
        except OSError as problem:
            raise LinkError(f"the link is closed: {problem}") from None
        raise LinkError("the link is closed")

    def close(self) -> None:
        """Closes it; a request under way in another thread ends with LinkError."""
        connected, self._socket = self._socket, None
        if connected is None:
            return
        if self._pid != os.getpid():
            connected.close()  # The parent's link lives on: no shutdown, and no trust in the lock.
            return
        with contextlib.suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)  # Wakes a thread that waits in recv.
        self._retired = connected
        self._reap()

    def _reap(self) -> None:
        """Closes the descriptor of a closed link once no thread is inside `request`, since its
        number could be given to another file while one still reads."""
        if self._retired is not None and self._lock.acquire(blocking=False):
            try:
                if self._retired is not None:
                    self._retired.close()
                    self._retired = None
            finally:
                self._lock.release()

    def request(self, message: Request[Reply], timeout: float) -> Reply:
        """Sends and waits for the answer, at most `timeout` seconds in all (waiting for another
        thread's request included). LinkError closes the link, except where that wait was too
        long. ProtocolError: the message itself cannot be sent; the link stays as it was."""
        return cast(Reply, self.exchange((message,), timeout)[0])

    def exchange(self, messages: Sequence[Request[Any]], timeout: float) -> list[Message]:
        """Sends several requests at once and waits for all answers, which come back in the order
        of the requests: one round trip. Errors as `request` has them."""
        if self._pid != os.getpid():
            raise LinkError("the link belongs to the parent process")
        if self._socket is None:
            raise LinkError("the link is closed")
        deadline = time.monotonic() + timeout
        if not self._lock.acquire(timeout=max(timeout, 0)):
            raise LinkError("another request did not end in time")
        try:
            if self._socket is None:
                raise LinkError("the link is closed")
            ids, data = self._encode(messages)
            answered = False
            try:
                replies = self._exchange(self._socket, data, set(ids), deadline)
                answered = True
            finally:
                # Whatever happened, KeyboardInterrupt included: without its reply it is over.
                if not answered:
                    self.close()
        finally:
            self._lock.release()
            self._reap()
        answers = [replies[number] for number in ids]
        self._check(messages, answers)
        return answers

    def _check(self, messages: Iterable[Request[Any]], answers: Sequence[Message]) -> None:
        """LinkError, and the link is closed, if an answer is of the wrong type."""
        for message, reply in zip(messages, answers, strict=True):
            expected = BY_MESSAGE[type(message)].reply
            if expected is None or not isinstance(reply, expected):
                self.close()
                raise LinkError(
                    f"{type(message).__name__} was answered with {type(reply).__name__}")

    def stream(
        self, messages: Sequence[Request[Reply]], send_s: float, answer_s: float
    ) -> list[Reply]:
        """Sends many requests from a thread of its own, while this one takes in the answers; at
        most WINDOW are without one at a time, so neither end has to keep much.

        After `send_s` seconds no more are sent (the first always is). Returns the answers to those
        that were, in the order of the requests: fewer than there are messages if time was short.
        LinkError closes the link: nothing came for `answer_s` seconds, or it broke."""
        if self._pid != os.getpid():
            raise LinkError("the link belongs to the parent process")
        if not self._lock.acquire(timeout=max(answer_s, 0)):
            raise LinkError("another request did not end in time")
        try:
            if self._socket is None:
                raise LinkError("the link is closed")
            self._socket.settimeout(answer_s)
            sender = _Sender(self._socket, messages, self._request_id, send_s)
            answered = False
            try:
                sender.start()
                replies = self._take_answers(self._socket, sender)
                answered = True
            finally:
                if not answered:
                    self.close()  # which also ends the sender
                sender.give_up()
            self._request_id = sender.request_id
        finally:
            self._lock.release()
            self._reap()
        self._check(messages[:len(replies)], replies)
        return cast("list[Reply]", replies)

    def _take_answers(self, connected: socket.socket, sender: _Sender) -> list[Message]:
        """Every answer to what the sender sends, until it has ended."""
        replies: dict[int, Message] = {}
        try:
            while sender.awaits_answer():
                while (taken := self._decoder.take()) is None:
                    received = connected.recv(RECEIVE_BYTES)
                    if not received:
                        raise LinkError("the server closed the connection")
                    self._decoder.feed(received)
                request_id, reply = taken
                if not sender.answered(request_id):
                    raise LinkError("the server answered something that was not asked")
                replies[request_id] = reply
        except TimeoutError:
            raise LinkError("no answer in time") from None
        except (OSError, ProtocolError) as problem:
            raise LinkError(f"the link broke: {problem}") from None
        if self._decoder.pending_bytes:
            raise LinkError("the server answered something that was not asked")
        return [replies[request_id] for request_id in sender.sent]

    def _encode(self, messages: Sequence[Request[Any]]) -> tuple[list[int], bytes]:
        """A number for each of the messages, and their bytes."""
        ids, data = [], b""
        for message in messages:
            self._request_id = (self._request_id + 1) & U32_MAX
            ids.append(self._request_id)
            data += encode(self._request_id, message)
        return ids, data

    def _exchange(
        self, connected: socket.socket, data: bytes, wanted: set[int], deadline: float
    ) -> dict[int, Message]:
        """The answers by the numbers of their requests, in whatever order they come."""
        replies: dict[int, Message] = {}
        try:
            connected.settimeout(_remaining(deadline))
            connected.sendall(data)
            while wanted:
                while (taken := self._decoder.take()) is None:
                    connected.settimeout(_remaining(deadline))
                    received = connected.recv(RECEIVE_BYTES)
                    if not received:
                        raise LinkError("the server closed the connection")
                    self._decoder.feed(received)
                request_id, reply = taken
                if request_id not in wanted:
                    raise LinkError("the server answered something that was not asked")
                wanted.discard(request_id)
                replies[request_id] = reply
        except TimeoutError:
            raise LinkError("no answer in time") from None
        except (OSError, ProtocolError) as problem:
            raise LinkError(f"the link broke: {problem}") from None
        if self._decoder.pending_bytes:
            raise LinkError("the server answered something that was not asked")
        return replies

    def farewell(self, message: Request[Any]) -> None:
        """Sends a last request without waiting for anything, and closes the link. For those who
        may not block; does nothing while another thread uses the link."""
        if self._pid != os.getpid() or not self._lock.acquire(blocking=False):
            return
        try:
            if self._socket is not None:
                _, data = self._encode((message,))
                with contextlib.suppress(OSError):
                    self._socket.settimeout(0)
                    self._socket.send(data)
        finally:
            self._lock.release()
        self.close()


def _remaining(deadline: float) -> float:
    """Seconds until the deadline; TimeoutError when it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Sender:
    """The sending half of a stream. A request is announced before it is sent, so that whoever takes
    in the answers never waits for one that will not come."""

    def __init__(
        self, connected: socket.socket, messages: Sequence[Request[Any]], request_id: int,
        send_s: float,
    ) -> None:
        self.request_id = request_id  # the last one used
        self.sent: list[int] = []
        self._connected = connected
        self._messages = messages
        self._deadline = time.monotonic() + send_s
        self._unanswered: set[int] = set()
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="dlock-claims", daemon=True)

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def awaits_answer(self) -> bool:
        """True: an answer is due; False: everything that was sent is answered, and no more is."""
        with self._changed:
            while not self._unanswered and not self._ended:
                self._changed.wait()
            return bool(self._unanswered)

    def answered(self, request_id: int) -> bool:
        """Takes note of an answer; False: nothing of that number awaits one."""
        with self._changed:
            if request_id not in self._unanswered:
                return False
            self._unanswered.discard(request_id)
            self._changed.notify()
            return True

    def give_up(self) -> None:
        """Nothing more is sent; returns when the thread has ended."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _announce(self) -> int | None:
        """The number of the next request, when its turn has come; None: it is not sent."""
        with self._changed:
            while len(self._unanswered) >= WINDOW and not self._ended:
                self._changed.wait()
            late = self.sent and time.monotonic() >= self._deadline
            if self._ended or late:
                return None
            self.request_id = (self.request_id + 1) & U32_MAX
            self.sent.append(self.request_id)
            self._unanswered.add(self.request_id)
            self._changed.notify()
            return self.request_id

    def _run(self) -> None:
        _core.block_signals()
        try:
            for message in self._messages:
                request_id = self._announce()
                if request_id is None:
                    return
                self._connected.sendall(encode(request_id, message))
        except (OSError, ProtocolError):
            with contextlib.suppress(OSError):  # half a request may be out: the link is over
                self._connected.shutdown(socket.SHUT_RDWR)
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()
