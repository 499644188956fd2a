"""What people and laws see of a world: its nodes, its time, its chance. And how a law says that it
was broken.

The world itself (sim/world.py) is more than this. Tests put small worlds of their own in its place,
and the same people live in an ordinary event loop there.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from dlock.aio import Client

MS_NS: Final = 1_000_000
SECOND_NS: Final = 1_000_000_000


class LawBroken(AssertionError):  # noqa: N818 - what it is
    """Something happened that must never happen; the text says what, to whom, and why not."""


class Clock(Protocol):
    """A node's own clock, against true time."""

    def true_ns(self, own_ns: int) -> int:
        """The first true time at which it shows this much."""


class Node(Protocol):
    """A process. `paused`: it stands still (SIGSTOP); `alive`: it has not been killed."""

    name: str
    paused: bool
    alive: bool

    @property
    def clock(self) -> Clock: ...

    def now_ns(self) -> int:
        """What its clock shows (CLOCK_BOOTTIME of this node)."""


class ClientNode(Node, Protocol):
    """A process with a client. `client`: None while there is none that is open."""

    @property
    def client(self) -> Client | None: ...

    async def connect(self, timeout: float, **options: Any) -> Client:
        """`dlock.aio.connect` to the world's servers."""


class ServerNode(Node, Protocol):
    """A process with a primary (`dlock.primary.Primary`)."""

    @property
    def primary(self) -> Any: ...


class Scene(Protocol):
    """A world. `now_ns`: true time; `healing`: nothing befalls it any more, and what goes on comes
    to its end; `primary`: the newest one, None while there is none."""

    healing: bool

    @property
    def seed(self) -> int: ...
    @property
    def now_ns(self) -> int: ...
    @property
    def clients(self) -> Iterable[ClientNode]: ...
    @property
    def primary(self) -> ServerNode | None: ...
    @property
    def session_ttl_ms(self) -> int: ...

    def say(self, actor: str, text: str) -> None:
        """A line of the transcript."""


def chance_of(seed: int, what: str) -> Random:
    """A source of chance of its own, so that what one does changes nothing for the others."""
    return Random(f"{seed}/{what}")
