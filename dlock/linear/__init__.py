"""Is what programs saw of their locks what one lock, asked one thing after the other, would have
answered? A checker of histories (`check`), and the laws that it holds them against.

docs/evidence.md says what a verdict means, and how much.
"""

from __future__ import annotations

from dlock.linear.checker import Fault, Verdict, check
from dlock.linear.history import Operation, of_hold

__all__ = ["Fault", "Operation", "Verdict", "check", "of_hold"]
