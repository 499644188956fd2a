"""What a door is to the frame, and what the frame gives to a door. It knows no protocol, and opens
nothing."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dlock.aio import Client
from dlock.doors.names import Names

Stream = Literal["stdout", "stderr"]


class DoorError(Exception):
    """A door ends here: `text` goes to the stream as it stands, `code` is the exit code. Both are
    the words of the original, where it has words for it."""

    def __init__(self, text: str, code: int, stream: Stream = "stderr") -> None:
        super().__init__(text)
        self.text = text
        self.code = code
        self.stream: Stream = stream


class Usage(DoorError):  # noqa: N818 - what is printed is no error of ours
    """What `make` raises for words that it cannot use; also for -h and its like, with code 0."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a door stands. `counters`: shown to operators, who read their names. `end`: ends the
    door, as SIGTERM does but with exit code 1; the text says why."""

    client: Client
    namespace: str
    names: Names
    counters: Counter[str]
    log: logging.Logger
    loop: asyncio.AbstractEventLoop
    end: Callable[[str], None]


class Door(ABC):
    """One door. The frame calls, each at most once: `prepare`, `start`, `stop`; `stop` also after a
    `prepare` or `start` that failed."""

    kind: str
    formatter: logging.Formatter | None = None  # of the log on standard error; None: as dlock's
    log_level: int | None = None  # None: what the frame was told
    # Names that nobody used for so long are given up at the server; None: the door does that.
    idle_names_s: float | None = 300.0

    async def prepare(self) -> None:  # noqa: B027 - most have nothing here
        """What may fail without a server: files are locked, ports are taken (`listen.tcp_socket`).
        Who connects already waits. The frame becomes the door of its namespace only after it, so
        that a second door that cannot have the port never ends the first. DoorError."""

    @abstractmethod
    async def start(self, site: Site) -> list[str]:
        """Every listener accepts when this returns; one text for each, `HOST:PORT` or `unix:PATH`,
        for the ready file. DoorError."""

    @abstractmethod
    async def stop(self) -> None:
        """The protocol's own way to end. The client is closed afterwards, and whatever it holds
        is free then."""
