"""What a client tells operators of its parties and of its long names: gathered for a moment, told
in few messages, and told again to a new primary. Nothing waits for it, and nothing depends on it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, Final

from dlock._session import Refusal, Session, Steps
from dlock.control.messages import Describe, LabelLine, TextLine
from dlock.control.messages_describe import (
    LABEL_BYTES_MAX,
    LABELS_A_MESSAGE_MAX,
    NAME_TEXT_BYTES_MAX,
)
from dlock.errors import DlockError

if TYPE_CHECKING:
    from dlock.aio._connection import Connection

_log = logging.getLogger("dlock.aio")

GATHER_S: Final = 0.05
TEXT_BYTES_MAX: Final = 8 << 20  # of the texts that a client keeps; the oldest go first


class Descriptions:
    """Labels by the number of an owner, texts by the name of a lock; and which of both are still to
    be told."""

    __slots__ = ("_connection", "_home", "_labels", "_loop", "_new_labels", "_new_texts",
                 "_telling", "_text_bytes", "_texts", "_timer")

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._loop = loop
        self._home: object = None
        self._labels: dict[int, str] = {}
        self._texts: dict[bytes, bytes] = {}
        self._text_bytes = 0
        self._new_labels: dict[int, str] = {}
        self._new_texts: dict[bytes, bytes] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._telling: asyncio.Task[None] | None = None

    def label(self, number: int, label: str) -> None:
        """This is what operators shall read of this owner."""
        label = label.encode("utf-8", "replace")[:LABEL_BYTES_MAX].decode("utf-8", "ignore")
        self._labels[number] = self._new_labels[number] = label
        self._soon()

    def forget(self, number: int) -> None:
        """The owner is no more. Told with what is told next, since nothing of it is shown."""
        label = self._labels.pop(number, None)
        if label is not None and self._new_labels.pop(number, None) is None:
            self._new_labels[number] = ""

    def text(self, descriptor: bytes, text: bytes) -> None:
        """This is what the name of a lock stands for."""
        text = text[:NAME_TEXT_BYTES_MAX]
        if self._texts.get(descriptor) == text:
            return
        self._text_bytes += len(text) - len(self._texts.pop(descriptor, b""))
        self._texts[descriptor] = self._new_texts[descriptor] = text
        while self._text_bytes > TEXT_BYTES_MAX:
            oldest = next(iter(self._texts))
            self._text_bytes -= len(self._texts.pop(oldest))
            self._new_texts.pop(oldest, None)
        self._soon()

    def got(self, descriptor: bytes) -> None:
        """The server has given this name out: what it stands for can be told now."""
        text = self._texts.get(descriptor)
        if text is not None:
            self._new_texts[descriptor] = text
            self._soon()

    def at_home(self, home: object) -> None:
        """The session is at this primary. If that is another one, it knows nothing yet."""
        if home != self._home:
            self._home = home
            self._new_labels = dict(self._labels)
            self._new_texts = dict(self._texts)
            self._soon()

    # ---- Telling ---------------------------------------------------------------------------------

    def _soon(self) -> None:
        waits = self._timer is not None or self._telling is not None
        if not waits and (self._new_labels or self._new_texts) and not self._loop.is_closed():
            self._timer = self._loop.call_later(GATHER_S, self._begin)

    def _begin(self) -> None:
        self._timer = None
        if not self._connection.closed:
            self._telling = self._loop.create_task(self._tell())

    async def _tell(self) -> None:
        try:
            while self._new_labels or self._new_texts:
                message = self._take()

                def ask(_session: Session, message: Describe = message) -> Steps[None]:
                    yield [message]  # what the server has no room for, it counts

                await self._connection.run(ask, float("inf"))
        except (DlockError, Refusal) as problem:
            _log.debug("operators were not told of owners and names: %s", problem)
        finally:
            self._telling = None
        self._soon()

    def _take(self) -> Describe:
        """As much as one message has room for."""
        if self._new_labels:
            labels = dict(itertools.islice(self._new_labels.items(), LABELS_A_MESSAGE_MAX))
            for number in labels:
                del self._new_labels[number]
            return Describe(tuple(LabelLine(*line) for line in labels.items()))
        lines: list[TextLine] = []
        room = NAME_TEXT_BYTES_MAX
        for descriptor, text in list(itertools.islice(self._new_texts.items(), 31)):
            room -= len(text)
            if room < 0 and lines:
                break
            lines.append(TextLine(descriptor, self._new_texts.pop(descriptor)))
        return Describe((), tuple(lines))

    def end(self) -> None:
        """The client is closed."""
        if self._timer is not None and not self._loop.is_closed():
            self._timer.cancel()
        self._timer = None
