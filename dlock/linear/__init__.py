"""Is what programs saw of their locks what one lock, asked one thing after the other, would have
answered? A checker of histories (`check`), the laws that it holds them against, and a recorder that
writes a history while programs use dlock.

    lock = linear.Recorder("c1.jsonl", "c1").watch(client.lock("a"))  # in each program
    print(linear.check(linear.read(["c1.jsonl", "c2.jsonl"])))  # afterwards

`python -m dlock.linear FILE...` checks files, too. docs/evidence.md says what a verdict means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlock.linear.checker import Fault, Verdict, check
from dlock.linear.history import Operation, of_hold
from dlock.linear.lines import HistoryError, assemble, read

if TYPE_CHECKING:
    from dlock.linear.record import Recorder

__all__ = [
    "Fault", "HistoryError", "Operation", "Recorder", "Verdict", "assemble", "check", "of_hold",
    "read",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """The recorder needs dlock; whoever only checks does not."""
        if name == "Recorder":
            from dlock.linear.record import Recorder

            return Recorder
        raise AttributeError(f"module 'dlock.linear' has no attribute {name!r}")
