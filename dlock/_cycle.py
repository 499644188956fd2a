"""A refused cycle of waits, in words that a person can act on, and how to ask for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from dlock._calls import shown
from dlock.control.messages import GetCycle

if TYPE_CHECKING:
    from dlock._session import Steps


class Wait(NamedTuple):
    """One step of a cycle: this actor (a thread or task of that client) waits for this lock, which
    the actor of the next step holds, or stands before it in line for. The last step's is held by
    the first actor."""

    lock: bytes
    client_id: int
    actor: int
    info: dict[str, str | int]

    @property
    def what(self) -> str:
        """The lock, for people."""
        return shown(self.lock) if self.lock else "a lock that is gone"

    @property
    def who(self) -> str:
        """The waiter, as far as its client told about itself."""
        info = self.info
        program = info.get("program", "a client")
        pid = f" pid {info['pid']}" if "pid" in info else ""
        host = f" on {info['host']}" if "host" in info else ""
        return f"{program}{pid}{host} (client {self.client_id}, thread or task {self.actor})"


class Cycle(tuple[Wait, ...]):
    """The steps of a cycle, beginning with who was refused. Empty: the server did not tell."""

    __slots__ = ()

    @classmethod
    def of(cls, edges: Iterable[Any]) -> Cycle:
        """From the edges as the control plane answers them."""
        return cls(
            Wait(edge.descriptor, edge.client_id, edge.actor, dict(edge.info)) for edge in edges
        )

    def __str__(self) -> str:
        if not self:
            return "what you asked for waits, in the end, for what you hold"
        last = len(self) - 1
        steps = [f"you wait for {self[0].what}"]
        for wait in self[1:]:
            steps.append(f"which {wait.who} must give back first")
            steps.append(f"that waits for {wait.what}")
        steps.append("which you must give back first" if last else "which you yourself hold")
        return ", ".join(steps) + (
            ". Give back what you hold and begin again; or take locks in one order everywhere, as "
            "client.multi does. A lock that another thread is to give back, as a signal, is made "
            "with deadlock=False"
        )


def explaining(number: int) -> Steps[Cycle]:
    """Asks the control plane for a cycle by its number; empty if it is not known any more."""
    (reply,) = yield [GetCycle(number)]
    return Cycle.of(reply.edges)
