"""Fencing: how storage refuses a writer that was too late.

A process can be paused between its check that it holds a lock and its write; no lease and no clock
helps then. What helps is the token of the hold: every grant of the service carries a higher one.
Storage that remembers the highest token it has seen, and refuses lower ones in the same step as
the write, is safe whatever happens to clocks and processes.

Only for exclusive holds: readers hold together, so their tokens order nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from dlock.errors import StaleToken

__all__ = ["FenceGuard"]

TOKEN_MAX = 2**63 - 1  # bit 63 is zero: a token fits the integers of SQL


@runtime_checkable
class Hold(Protocol):
    """What is fenced: a lock object that is held. `exclusive`: does its kind keep all others
    out?"""

    @property
    def token(self) -> int: ...
    @property
    def exclusive(self) -> bool: ...


class FenceGuard:
    """Remembers the highest token that a resource has seen, and refuses lower ones.

    `read` returns the highest token so far (0: none yet) and `write` stores a higher one. Give both
    where the resource has a place for it: a row of its database, a file beside it; then call
    `check` inside the resource's own transaction, so that check, write and token are one step.
    Without them the guard keeps the token in memory, which is enough for a resource that lives in
    this process; then use `admit`.

        guard = dlock.FenceGuard()

        def store(token, value):
            with guard.admit(token):
                table["row"] = value
    """

    __slots__ = ("_highest", "_mutex", "_read", "_write")

    def __init__(
        self,
        read: Callable[[], int] | None = None,
        write: Callable[[int], object] | None = None,
    ) -> None:
        if (read is None) != (write is None):
            raise ValueError("a FenceGuard needs both read and write, or neither")
        self._highest = 0
        self._read = read if read is not None else self._recall
        self._write = write if write is not None else self._remember
        self._mutex = threading.Lock()

    def _recall(self) -> int:
        return self._highest

    def _remember(self, token: int) -> None:
        self._highest = token

    def check(self, hold: Hold | int) -> int:
        """Lets this writer pass, and nobody with a lower token from now on; returns the token.

        `hold`: the token that came with the write, or the lock object itself where the writer is
        in this process. StaleToken: somebody with a higher token was here before: write nothing.
        Call it in the transaction of the write; what is not one step can be overtaken in between.
        """
        token = token_of(hold)
        highest = self._read()
        if token < highest:
            raise StaleToken(
                f"token {token} is older than {highest}, which was seen already: the lock has "
                "passed on since, and nothing may be written under this hold"
            )
        if token > highest:
            self._write(token)
        return token

    @contextlib.contextmanager
    def admit(self, hold: Hold | int) -> Iterator[int]:
        """`check`, and then the body, with every other `admit` of this guard kept out: the write is
        one step with the check, for threads of this process."""
        with self._mutex:
            yield self.check(hold)


def token_of(hold: Hold | int) -> int:
    """The token of an exclusive hold. TypeError for a shared one, whose token orders nothing."""
    if isinstance(hold, int):
        token = hold
    elif isinstance(hold, Hold):
        if not hold.exclusive:
            raise TypeError(
                f"{hold!r} is not exclusive: others hold it at the same time, so its token fences "
                "nothing; take an exclusive lock for writing"
            )
        token = hold.token
    else:
        raise TypeError(f"a token is an int or a held lock, not {type(hold).__name__}")
    if not 0 < token <= TOKEN_MAX:
        raise ValueError(f"{token} is no fencing token: those of held locks are above 0")
    return token
