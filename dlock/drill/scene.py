"""What a fault acts on: primaries, clients and the network between them, with the load running."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from dlock.drill.clients import Client, Clients
from dlock.drill.network import Proxy
from dlock.drill.places import HOMES, PROXIES, addresses
from dlock.drill.primary import DrillError, JoinedPrimaries, OwnPrimaries
from dlock.drill.records import FaultBegun, FaultEnded, Problem, Writer, now_ns
from dlock.drill.worker import FLAVOURS

ACTORS: Final = 4


@dataclass
class Scene:
    """The names of its locks begin with `prefix`. `direct`, `through`: where clients find a primary
    (address, hosts), directly or through the proxies. `round`: under way. `healed_ns`: when the
    last fault had ended."""

    folder: Path
    writer: Writer
    primaries: OwnPrimaries | JoinedPrimaries
    clients: Clients
    session_ttl_s: float
    seed: int
    prefix: str
    storm_clients: int
    direct: tuple[str, list[str]]  # address, hosts
    through: tuple[str, list[str]] | None
    kills: bool = True  # can the primary be killed?
    proxies: list[Proxy] = field(default_factory=list)
    newcomers: list[Client] = field(default_factory=list)  # begun by a fault, not yet at work
    round: int = 0
    fault: str = ""
    healed_ns: int = 0

    @property
    def own(self) -> OwnPrimaries:
        """The primaries, where they must be the drill's own."""
        assert isinstance(self.primaries, OwnPrimaries)
        return self.primaries

    @property
    def owned(self) -> bool:
        """Has the drill started the primaries itself?"""
        return isinstance(self.primaries, OwnPrimaries)

    def begun(self, fails: str, detail: str) -> None:
        """The fault happens now."""
        self.writer.write(FaultBegun(now_ns(), self.round, self.fault, fails, detail))

    def ended(self, detail: str, healed_ns: int = 0) -> None:
        """Nothing stands in the way any more, since `healed_ns` (0: now)."""
        self.healed_ns = healed_ns or now_ns()
        self.writer.write(FaultEnded(self.healed_ns, self.round, self.fault, detail))

    def violated(self, text: str) -> NoReturn:
        """Something that must not be, after which the drill cannot go on."""
        text = f"round {self.round}, {self.fault}: {text}"
        self.writer.write(Problem(now_ns(), "drill", text))
        raise DrillError(text)

    def begin_clients(self, count: int) -> None:
        """Client processes of every flavour in turn; every second one through a proxy, if there
        are proxies. Returns when all work."""
        begun: list[Client] = []
        for number in range(count):
            place = self.through if self.through and number % 2 else self.direct
            begun.append(self.clients.begin(FLAVOURS[number % len(FLAVOURS)], *place))
        for client in begun:
            self.clients.working(client)

    def close(self) -> None:
        """Ends whatever is left of it."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.primaries.close)
            for proxy in self.proxies:
                stack.callback(proxy.close)
            stack.callback(self.clients.close)


def home_places(port: int) -> tuple[tuple[str, list[str]], tuple[str, list[str]]]:
    """Where the drill's own primaries are found: directly, and through the proxies."""
    return ((addresses(HOMES, port), list(HOMES)), (addresses(PROXIES, port), list(PROXIES)))
