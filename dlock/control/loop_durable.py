"""Between the control loop and the durable store: hands requests over, and answers back.

Used by the control thread only. What the store has no room for waits here, and its connection is
not read until there is room again: a client that asks faster than the disk writes waits in its own
socket. Pieces of a long record are put together here, so that the store sees whole ones only.
"""

from __future__ import annotations

import errno
import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from dlock.control import messages_durable as d
from dlock.control.durable import Asked, Durable
from dlock.control.durable_tables import refused
from dlock.control.messages_base import Message

UPLOADS_BYTES_MAX: Final = 64 << 20  # of records that have not come whole yet, of all clients

Log = Callable[[int, str, Mapping[str, object]], None]


class Wires(Protocol):
    """What the desk needs of the loop."""

    def bound(self, connection: int) -> bool:
        """Does this connection speak for a session?"""

    def answer(self, connection: int, request_id: int, message: Message) -> None:
        """Sends an answer, if the connection is still there."""

    def pause(self, connection: int) -> None:
        """This connection is not read until `go_on`."""

    def go_on(self, connection: int) -> None:
        """What this connection has brought is taken again."""


class Desk:
    """See the head of this file. `durable` None: nothing durable is served here, since there is no
    state directory."""

    def __init__(self, durable: Durable | None, epoch: int, wires: Wires, log: Log) -> None:
        self._durable = durable
        self._epoch = epoch
        self._wires = wires
        self._log = log
        self._waiting: deque[Asked] = deque()  # one a connection at most
        self._uploads: dict[tuple[int, int], list[d.RecordPut]] = {}
        self._uploads_bytes = 0
        self._counters: Counter[str] = Counter()
        self._told = False

    def ask(self, connection: int, request_id: int, message: Message) -> bool:
        """A request for the store. False: it waits for room, and nothing more is to be taken from
        this connection until `go_on`."""
        if isinstance(message, d.DssCall) and message.operation == d.HELLO:
            self._answer(connection, request_id, d.DssAnswer(0, self._epoch))
            return True
        if not isinstance(message, d.DssCall | d.DssForget) and not self._wires.bound(connection):
            self._refuse(connection, request_id, message, errno.ENOTCONN)
            return True
        if self._durable is None:
            self._refuse_all(connection, request_id, message)
            return True
        if isinstance(message, d.RecordPut):
            whole = self._put_together(connection, request_id, message)
            if whole is None:
                return True
            message = whole
        asked = Asked(connection, request_id, message)
        if self._durable.offer(asked):
            return True
        self._counters["DURABLE_PAUSES"] += 1
        self._waiting.append(asked)
        self._wires.pause(connection)
        return False

    def epoch_shown(self, epoch: int, incarnation: int) -> None:
        """A client of the data plane has seen this primary of the service, which was later."""
        if self._durable is not None:
            self._durable.offer(Asked(0, 0, d.DssCall(
                bytes(d.LANE_BYTES), 0, 0, epoch, incarnation, d.STATUS, b"", b"")))

    def deliver(self) -> bool:
        """Sends the answers that there are, and takes up who waited for room. False: the store's
        thread could not confirm that the state directory is ours, and answers nothing."""
        if self._durable is None:
            return True
        while (taken := self._durable.take()) is not None:
            asked, message = taken
            self._answer(asked.connection, asked.request_id, message)
        while self._waiting and not self._durable.busy:
            if not self._durable.offer(self._waiting[0]):
                break
            self._wires.go_on(self._waiting.popleft().connection)
        return not self._durable.lost

    def gone(self, connection: int) -> None:
        """This connection is closed: what it has not said whole was never said."""
        self._waiting = deque(one for one in self._waiting if one.connection != connection)
        for key in [one for one in self._uploads if one[0] == connection]:
            self._drop(key)

    def stats(self) -> dict[str, int]:
        """Counters and gauges."""
        own = {"DURABLE_PAUSES": self._counters["DURABLE_PAUSES"],
               "DURABLE_REFUSED": self._counters["DURABLE_REFUSED"]}
        if self._durable is not None:
            for name, value in self._durable.stats().items():
                own[name] = own.get(name, 0) + value
        return own

    # ---- Records in pieces -----------------------------------------------------------------------

    def _put_together(
        self, connection: int, request_id: int, put: d.RecordPut
    ) -> d.RecordPut | None:
        """The whole record, with its last piece; None: it was answered here."""
        if put.offset == 0 and len(put.piece) == put.size:
            return put
        key = connection, put.upload
        pieces = self._uploads.setdefault(key, [])
        have = sum(len(one.piece) for one in pieces)
        first = pieces[0] if pieces else put
        fits = (put.offset == have and have + len(put.piece) <= put.size and bool(put.piece)
                and (put.space, put.key, put.size) == (first.space, first.key, first.size))
        room = self._uploads_bytes + len(put.piece) <= UPLOADS_BYTES_MAX
        if not fits or not room:
            self._drop(key)
            self._refuse(connection, request_id, put, errno.ENOMEM if fits else errno.EINVAL)
            return None
        pieces.append(put)
        self._uploads_bytes += len(put.piece)
        if have + len(put.piece) < put.size:
            self._answer(connection, request_id, d.RecordAnswer(0))
            return None
        value = b"".join(one.piece for one in pieces)
        self._drop(key)
        return d.RecordPut(put.space, put.key, put.upload, put.size, 0, value)

    def _drop(self, key: tuple[int, int]) -> None:
        self._uploads_bytes -= sum(len(one.piece) for one in self._uploads.pop(key, ()))

    # ---- Answers ---------------------------------------------------------------------------------

    def _answer(self, connection: int, request_id: int, message: Message) -> None:
        self._wires.answer(connection, request_id, message)

    def _refuse(self, connection: int, request_id: int, message: Message, error: int) -> None:
        self._counters["DURABLE_REFUSED"] += 1
        self._answer(connection, request_id, refused(message, error, self._epoch))

    def _refuse_all(self, connection: int, request_id: int, message: Message) -> None:
        if not self._told:
            self._told = True
            self._log(logging.WARNING, "nothing durable is served", {
                "reason": "there is no state directory (--state-dir none)"})
        self._refuse(connection, request_id, message, errno.ECOMM)
