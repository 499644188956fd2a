"""What every fault of the menu says of itself, and does."""

from __future__ import annotations

import abc
import random
import textwrap
from typing import ClassVar, Final

from dlock.drill.ground import Ground
from dlock.drill.scene import Scene

WIDTH: Final = 78
INDENT: Final = " " * 4


class Fault(abc.ABC):
    """One fault. `done`: what the drill does; `must`: what must happen then; `needs`: what it takes
    beyond the two. `proxies`: it acts on the proxies between clients and primary."""

    name: ClassVar[str]
    summary: ClassVar[str]
    done: ClassVar[str]
    must: ClassVar[str]
    needs: ClassVar[str] = "nothing"
    proxies: ClassVar[bool] = False

    def missing(self, ground: Ground) -> str:
        """Why it cannot be done here, as a sentence; "": it can."""
        del ground
        return ""

    @abc.abstractmethod
    def inject(self, scene: Scene, chance: random.Random) -> None:
        """Does it, and takes everything out of the way that it has put there. What is waited for
        then is not this one's to know."""

    def told(self) -> str:
        """For `dlock drill --list`."""
        parts = (("done", self.done), ("must", self.must), ("needs", self.needs))
        return f"{self.name}\n{INDENT}{self.summary}\n" + "\n".join(
            textwrap.fill(" ".join(text.split()), WIDTH, initial_indent=f"{INDENT}{word + ':':<7}",
                          subsequent_indent=INDENT + " " * 7)
            for word, text in parts)
