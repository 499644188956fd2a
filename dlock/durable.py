"""Durable locks: taken by an owner that is a text, on the primary's disk before a call returns, and
there until somebody unlocks them, whatever becomes of programs and servers.

    with DurableLocks("primary:21616") as locks:
        locks.lock("media/P00042", "node7:1234")
        ...
        locks.unlock("media/P00042", "node7:1234")

A thread that asks has a connection of its own (a lane) until it is answered. Each call that may
change something has a number in its lane, and a call that is sent again, because its connection was
lost, has the same one: the primary carries it out once and says what came of it. So a lost
connection is ridden out, also over a new primary; what is not answered in time raises
ConnectionLost, and is not carried out any more once its lane has asked something else.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, NamedTuple

from dlock._retry import Backoff
from dlock.address import Address, Endpoint, parse
from dlock.control.link import ControlLink, LinkError
from dlock.control.messages_durable import (
    FORCE,
    HELLO,
    LANE_BYTES,
    LOCK,
    LOCK_ID_CHARACTERS_MAX,
    LOCK_OWNER_CHARACTERS_MAX,
    REFRESH,
    STATUS,
    UNLOCK,
    DssAnswer,
    DssCall,
    DssForget,
)
from dlock.errors import (
    AlreadyLocked,
    ClientClosed,
    ConnectError,
    ConnectionLost,
    ForkedError,
    NotLocked,
    OtherOwner,
    StoreError,
)

ANSWER_S: Final = 10.0  # of one call
CONNECT_S: Final = 5.0
# An attempt that has no answer for so long is made again over a new connection: the primary may
# hang, and another one may have its place.
ATTEMPT_S: Final = 3.0


class LockState(NamedTuple):
    """A durable lock that is taken: by whom, and when it was taken or last refreshed, in Unix time
    by the primary's clock."""

    owner: str
    seconds: int
    microseconds: int


class _Lane:
    """One that asks, one call after the other. `unsettled`: an earlier call has no answer, and
    might be carried out yet."""

    __slots__ = ("link", "name", "number", "unsettled")

    def __init__(self) -> None:
        self.name = os.urandom(LANE_BYTES)
        self.number = 0
        self.unsettled = False
        self.link: ControlLink | None = None

    def close(self) -> None:
        if self.link is not None:
            self.link.farewell(DssForget(self.name))
            self.link = None


class DurableLocks:
    """The durable locks of a primary, for any number of threads. Connects when it is first used.

    Ids are texts of at most 2048 characters, owners of at most 256; `bytes` are read as UTF-8.
    ValueError: longer, not valid, or with U+0000. Every call may raise ConnectionLost (no answer in
    time: it is not known whether it was carried out), StoreError (the primary's disk, or nothing
    durable is served there), ClientClosed and, in a forked child, ForkedError.
    """

    def __init__(self, address: str | os.PathLike[str] | Address | None = None, *,
                 timeout: float = ANSWER_S) -> None:
        """`address`: as for `dlock.connect`. `timeout`: seconds in which a call must be answered.
        ValueError: no address."""
        self._pid = os.getpid()
        self._closed = True  # until everything is there: `__del__` may come before
        self._address = parse(address)
        self._timeout_s = timeout
        self._mutex = threading.Lock()
        self._idle: list[_Lane] = []
        self._seen = 0, 0  # epoch and incarnation of the last answer
        self._closed = False

    def __repr__(self) -> str:
        return f"<dlock.DurableLocks of {self._address}{', closed' if self._closed else ''}>"

    # ---- Calls -----------------------------------------------------------------------------------

    def lock(self, lock_id: str | bytes, owner: str | bytes) -> None:
        """Takes a lock. AlreadyLocked: somebody has it, perhaps this owner."""
        self._expect(lock_id, self._ask(LOCK, lock_id, owner))

    def refresh(self, lock_id: str | bytes, owner: str | bytes) -> None:
        """Sets the time of an owner's lock to now. NotLocked; OtherOwner."""
        self._expect(lock_id, self._ask(REFRESH, lock_id, owner))

    def unlock(self, lock_id: str | bytes, owner: str | bytes) -> None:
        """Gives an owner's lock back. NotLocked; OtherOwner."""
        self._expect(lock_id, self._ask(UNLOCK, lock_id, owner))

    def force_unlock(self, lock_id: str | bytes) -> None:
        """Takes a lock away, whoever owns it. NotLocked."""
        self._expect(lock_id, self._ask(FORCE, lock_id, ""))

    def status(self, lock_id: str | bytes) -> LockState | None:
        """Who owns a lock; None: nobody."""
        answer = self._ask(STATUS, lock_id, "")
        if answer.error == errno.ENOLCK:
            return None
        self._expect(lock_id, answer)
        return LockState(answer.owner.decode("utf-8", "replace"), answer.seconds,
                         answer.microseconds)

    @contextlib.contextmanager
    def hold(self, lock_id: str | bytes, owner: str | bytes) -> Iterator[None]:
        """`with locks.hold(id, owner):` takes a lock and gives it back at the end. A program that
        is killed in between leaves it taken: that is what these locks are for."""
        self.lock(lock_id, owner)
        try:
            yield
        finally:
            self.unlock(lock_id, owner)

    @staticmethod
    def _expect(lock_id: str | bytes, answer: DssAnswer) -> None:
        if answer.error == errno.EEXIST:
            raise AlreadyLocked(errno.EEXIST, f"the durable lock {lock_id!r} is taken")
        if answer.error == errno.ENOLCK:
            raise NotLocked(errno.ENOLCK, f"nobody owns the durable lock {lock_id!r}")
        if answer.error == errno.EACCES:
            raise OtherOwner(errno.EACCES, f"another one owns the durable lock {lock_id!r}")
        if answer.error:
            raise StoreError(answer.error)

    # ---- The connection --------------------------------------------------------------------------

    def connect(self, timeout: float = CONNECT_S) -> None:
        """Makes sure that a primary answers. ConnectError: at once if its address refuses, else
        after `timeout` seconds."""
        lane = self._take_lane()
        deadline = time.monotonic() + timeout
        try:
            if lane.link is None or lane.link.gone:
                lane.link = self._connect(deadline)
            lane.link.request(DssCall(lane.name, 0, 0, 0, 0, HELLO, b"", b""), _left(deadline))
        except LinkError as problem:
            raise ConnectError(f"{problem} ({self._address})") from None
        finally:
            self._give_back(lane)

    def close(self) -> None:
        """Ends the connections. Locks stay. Does nothing the second time, and nothing in a forked
        child."""
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        with self._mutex:
            idle, self._idle = self._idle, []
        for lane in idle:
            lane.close()

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._closed

    def check(self) -> None:
        """ForkedError; ClientClosed."""
        if self._pid != os.getpid():
            raise ForkedError("these durable locks belong to the parent process; after a fork the "
                              "child must make its own")
        if self._closed:
            raise ClientClosed("these durable locks were closed")

    def __enter__(self) -> DurableLocks:
        self.check()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None,
                 _traceback: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be ending
            self.close()

    # ---- One call --------------------------------------------------------------------------------

    def _ask(self, operation: int, lock_id: str | bytes, owner: str | bytes) -> DssAnswer:
        id_bytes = _text("lock id", lock_id, LOCK_ID_CHARACTERS_MAX)
        owner_bytes = _text("lock owner", owner, LOCK_OWNER_CHARACTERS_MAX)
        lane = self._take_lane()
        try:
            number = 0
            if operation != STATUS or lane.unsettled:
                lane.number += 1
                number = lane.number
                lane.unsettled = True  # until it is answered, whatever ends the wait
            seen = self._seen

            def call(again: int) -> DssCall:
                return DssCall(lane.name, number, again, *seen, operation, id_bytes, owner_bytes)

            answer = self._answered(lane, call)
        finally:
            self._give_back(lane)
        if answer.incarnation:  # An answer that tells only what failed has none.
            self._seen = answer.epoch, answer.incarnation
        return answer

    def _answered(self, lane: _Lane, call: Callable[[int], DssCall]) -> DssAnswer:
        """The answer to this call, which is asked as often as connections are lost."""
        again = 0
        deadline = time.monotonic() + self._timeout_s
        backoff = Backoff()
        while True:
            try:
                if lane.link is None or lane.link.closed:
                    lane.link = self._connect(deadline)
                answer = lane.link.request(call(again), min(_left(deadline), ATTEMPT_S))
                lane.unsettled = bool(again) and answer.error == errno.ECOMM
                return answer
            except LinkError as problem:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise ConnectionLost(
                        f"{self._address} did not answer within {self._timeout_s:g} s ({problem}): "
                        f"it is not known whether the call was carried out") from None
                again = 1
                time.sleep(min(backoff.pause_s(), left_s))

    def _connect(self, deadline: float) -> ControlLink:
        """A connection to the first of the servers that takes one. LinkError."""
        endpoints, problems = self._address.endpoints()
        for place, endpoint in enumerate(endpoints):
            share_s = (deadline - time.monotonic()) / (len(endpoints) - place)
            try:
                return _link(endpoint, time.monotonic() + max(share_s, 0))
            except LinkError as problem:
                problems.append(str(problem))
        raise LinkError("; ".join(problems))

    def _take_lane(self) -> _Lane:
        self.check()
        with self._mutex:
            return self._idle.pop() if self._idle else _Lane()

    def _give_back(self, lane: _Lane) -> None:
        with self._mutex:
            if not self._closed:
                self._idle.append(lane)
                return
        lane.close()


def _text(what: str, text: str | bytes, most: int) -> bytes:
    """The bytes of a text that may be an id or an owner. ValueError; TypeError."""
    if not isinstance(text, str | bytes):
        raise TypeError(f"a {what} is str or bytes, not {type(text).__name__}")
    try:
        read = text if isinstance(text, str) else text.decode("utf-8")
        encoded = read.encode("utf-8")
    except UnicodeError as problem:
        raise ValueError(f"a {what} is no valid text: {problem}") from None
    if len(read) > most:
        raise ValueError(f"a {what} has at most {most} characters, not {len(read)}")
    if "\0" in read:
        raise ValueError(f"a {what} with U+0000")
    return encoded


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0)


def _link(endpoint: Endpoint, deadline: float) -> ControlLink:
    """A connection by the deadline, however many addresses a name has, and however long it takes to
    look it up. LinkError."""
    hosts = _numbers(endpoint, deadline)
    for place, host in enumerate(hosts):
        left_s = _left(deadline) / (len(hosts) - place)
        try:
            return ControlLink.connect(host, endpoint.port, max(left_s, 0.001))
        except LinkError:
            if place == len(hosts) - 1:
                raise
    raise LinkError(f"{endpoint.host} has no address")


def _numbers(endpoint: Endpoint, deadline: float) -> list[str]:
    """The addresses of a host; LinkError. A name is looked up in a thread, since nothing can end
    that in time."""
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(endpoint.host))]
    found: list[str] = []
    problems: list[str] = []

    def look_up() -> None:
        try:
            for *_, address in socket.getaddrinfo(
                    endpoint.host, endpoint.port, type=socket.SOCK_STREAM):
                found.append(str(address[0]))
        except (OSError, ValueError) as problem:
            problems.append(f"no server answers at {endpoint}: {problem}")

    looking = threading.Thread(target=look_up, name="dlock-look-up", daemon=True)
    looking.start()
    looking.join(_left(deadline))
    if looking.is_alive() or not found:
        raise LinkError(problems[0] if problems else f"{endpoint.host} was not found in time")
    return list(dict.fromkeys(found))
