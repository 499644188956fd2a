"""How long to wait before the next try: the first pause is short, later ones are bounded, and
chance spreads those who lost the same server at the same moment. Pure: the caller sleeps.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

FIRST_S: Final = 0.05
CAP_S: Final = 0.2


class Backoff:
    """Pauses with full jitter: each is anywhere from 0 to a bound that doubles up to CAP_S."""

    __slots__ = ("_bound_s", "_chance")

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        """`chance` gives numbers in [0, 1)."""
        self._chance = chance
        self._bound_s = FIRST_S

    def reset(self) -> None:
        """Something has worked: the next pause is a first one again."""
        self._bound_s = FIRST_S

    def pause_s(self) -> float:
        """Seconds to wait before the next try."""
        bound_s = self._bound_s
        self._bound_s = min(2 * bound_s, CAP_S)
        return bound_s * self._chance()
