"""What happened in a world, as lines that a person can read: who, when, what. The last of them are
kept; a world that is told loudly prints them all.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

KEPT_LINES: Final = 400
NAME_WIDTH: Final = 12
LOGGER: Final = "dlock"


class Transcript:
    """`digest` is of all lines ever said: two runs of one seed have the same."""

    def __init__(self, loud: Callable[[str], None] | None = None) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._loud = loud
        self._hash = hashlib.blake2b(digest_size=8)
        self.count = 0

    def say(self, now_ns: int, actor: str, text: str) -> None:
        """One line."""
        line = f"{now_ns / 1e9:12.6f}  {actor:<{NAME_WIDTH}} {text}"
        self.count += 1
        self._lines.append(line)
        self._hash.update(line.encode())
        if self._loud is not None:
            self._loud(line)

    @property
    def digest(self) -> str:
        """See the class."""
        return self._hash.hexdigest()

    def tail(self, lines: int = KEPT_LINES) -> list[str]:
        """The last lines."""
        return list(self._lines)[-lines:]


class LogLines(logging.Handler):
    """Brings what the code under simulation logs into the transcript, while a world runs."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._say = say
        self._kept: tuple[list[logging.Handler], int, bool] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """One record is one line."""
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f" [{record.exc_info[1]!r}]"
        self._say(f"({record.levelname.lower()}) {text}")

    def install(self) -> None:
        """From now on, until `remove`."""
        logger = logging.getLogger(LOGGER)
        self._kept = (logger.handlers[:], logger.level, logger.propagate)
        logger.handlers[:] = [self]
        logger.setLevel(logging.INFO)
        logger.propagate = False

    def remove(self) -> None:
        """As it was."""
        if self._kept is not None:
            logger = logging.getLogger(LOGGER)
            logger.handlers[:], level, logger.propagate = self._kept
            logger.setLevel(level)
            self._kept = None
