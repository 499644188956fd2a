"""How a client comes to a queue pair: whether it is to have one at this server, its own end, the
server's. The policy of the Python API and of the mirror, as a generator of steps; in between it
asks for a new end (NewEnd) and exchanges messages.

What cannot be had over RDMA is had over TCP, unless RDMA alone was asked for; each caller is told
why. A server that accepted a queue pair and could not be reached over it is not asked for another
one for a while: the network between the two devices may drop what TCP carries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

from dlock import _core, _verbs
from dlock._core import ffi
from dlock._frozen import Frozen
from dlock._transport import TCP, VERBS, Transport, Wish
from dlock._verbs import Port, VerbsError
from dlock.control.messages import OpenQueuePair, QueuePair, Request, Welcome
from dlock.rdma.instead import stands_in
from dlock.types import DlockStatus

if TYPE_CHECKING:
    from dlock.rdma.client import ClientPair

AVOID_S: Final = 60.0  # how long a server that could not be reached over RDMA is reached over TCP
AVOIDED_MAX: Final = 1024  # servers that are remembered

_ASKED: Final = "TCP was asked for"
_NO_SERVER: Final = ("the server has no RDMA: `dlock serve --transport auto` uses a device where "
                     "there is one, and its log says what is missing")
_ADVICE: Final = {
    DlockStatus.SERVER_NO_RESOURCE: "the server has no room for another queue pair; its log says "
    "why. Raise its limit on locked memory, or lower --max-clients",
    DlockStatus.ERROR: "the server's device cannot be used, or not together with this one; its log "
    "says why. `dlock rdma` on both machines shows what would fit",
}


class NoVerbs(Exception):  # noqa: N818 - an outcome, not an error
    """RDMA alone was asked for and cannot be had; the text says why, and what to do. `here`: the
    reason is on this machine, so that no other server helps. `status`: as the mirror says it."""

    def __init__(self, text: str, status: DlockStatus, *, here: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.here = here


class Unreached(Exception):  # noqa: N818 - an outcome, not an error
    """The server has accepted a queue pair, and could not be reached over it. `again`: it is to be
    tried once more at once, which is over TCP then; if that fails too, `forget`."""

    def __init__(self, text: str, wish: Wish, place: str) -> None:
        super().__init__(text)
        self.again = wish.transport != VERBS
        self._wish = wish
        self._place = place

    def forget(self) -> None:
        """It was not reached over TCP either, so that nothing is known about RDMA."""
        avoided.forget(self._place, self._wish)


# ---- This end ------------------------------------------------------------------------------------


class OwnEnd:
    """This client's end of a queue pair at a port, freed unless a C client takes it. `peer`: the
    server's end, when that has answered."""

    __slots__ = ("pair", "peer", "port")
    by = ""

    def __init__(self, port: Port, pair: _verbs.QueuePair) -> None:
        self.port = port
        self.pair = pair
        self.peer: QueuePair | None = None

    @property
    def transport(self) -> Transport:
        """What carries a data plane that goes over it."""
        return Transport(VERBS, self.port.name, f"{self.port} is up{self.by}")

    def asks(self) -> OpenQueuePair:
        """What the server is asked."""
        own: dict[str, Any] = self.pair.own._asdict()
        return OpenQueuePair(**{name: own[name] for name in OpenQueuePair._fields})

    def give_away(self) -> dict[str, Any]:
        """What it is of a struct dlk_link: from here on it is the C client's that gets that."""
        assert self.peer is not None
        peer = {name: getattr(self.peer, name) for name in _verbs.Address._fields}
        return {"flags": _core.DLK_LINK_VERBS, "queue_pair": self.pair.hand_over(), "peer": peer}

    def free(self) -> None:
        """Gives it back; nothing if a C client has taken it."""
        self.pair.free()


class NewEnd(Frozen):
    """A step: make this end of a queue pair. Sent back: an OwnEnd; or why there can be none (str).
    `make` does it, and waits for nothing but the device.

    The server chooses by the same rule (docs/rdma.md). So both take an address of the same internet
    protocol, where both have one, whichever of them the control connection goes over."""

    wish: Wish

    def make(self) -> OwnEnd | str:
        """See the class."""
        try:
            if stands_in():
                return _end_over_pyverbs(self.wish.device)
            port = _verbs.choose(self.wish.device)
            return OwnEnd(port, _verbs.QueuePair(port))
        except VerbsError as problem:
            return str(problem)


class _PyverbsEnd(OwnEnd):
    """The same over pyverbs: the C client gets one end of a pair of sockets."""

    __slots__ = ()
    by = ", over pyverbs"

    def __init__(self, port: Port, pair: ClientPair) -> None:
        self.port = port
        self.pair: Any = pair
        self.peer = None

    def give_away(self) -> dict[str, Any]:
        assert self.peer is not None
        return dict(self.pair.hand_over(_verbs.Address(
            **{name: getattr(self.peer, name) for name in _verbs.Address._fields})))


def _end_over_pyverbs(wish: _verbs.Wish) -> OwnEnd:
    """Imported here: who goes over TCP or the C core needs none of it. VerbsError."""
    from dlock.rdma.client import ClientPair
    from dlock.rdma.ports import choose_port

    port = choose_port(wish)
    return _PyverbsEnd(port, ClientPair(port))


# ---- The data link, of either kind ---------------------------------------------------------------


def data_link(host: str, welcome: Welcome, timeout_s: float, end: OwnEnd | None = None) -> Any:
    """What C has to know for the data connection that a Welcome speaks of: a struct dlk_link."""
    fields = {
        "host": host.encode("ascii"),
        "port": welcome.data_port,
        "client_id": welcome.client_id,
        "session_slot": welcome.session_slot,
        "attach": welcome.attach,
        "epoch": welcome.epoch,
        "session_ttl_ms": welcome.session_ttl_ms,
        "max_lease_ms": welcome.max_lease_ms,
        "timeout_ms": round(timeout_s * 1000),
        "secret": welcome.secret,
    }
    if end is not None:
        fields.update(end.give_away())
    return ffi.new("struct dlk_link *", fields)


def handed_over(link: Any) -> None:
    """The first attach has taken what this struct dlk_link brings; those that go on bring nothing.
    """
    link.fd = -1
    if link.flags & _core.DLK_LINK_VERBS:
        link.queue_pair = ffi.NULL


# ---- Who is not tried over RDMA for now ----------------------------------------------------------


class Avoided:
    """The servers that were not reached over RDMA, until when; one of it a process. Any thread: it
    is changed by single calls only, each of which is whole to all threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[tuple[str, Wish], float] = {}

    def add(self, place: str, wish: Wish) -> None:
        """It was not reached."""
        self._until[place, wish] = self._clock() + AVOID_S
        if len(self._until) > AVOIDED_MAX:
            self._until.pop(next(iter(self._until.copy())), None)

    def left_s(self, place: str, wish: Wish) -> float:
        """How long it is to be avoided still; 0: not at all."""
        return max(self._until.get((place, wish), 0) - self._clock(), 0)

    def forget(self, place: str, wish: Wish) -> None:
        """Nothing is known about it any more."""
        self._until.pop((place, wish), None)


avoided: Final = Avoided()


# ---- The policy ----------------------------------------------------------------------------------

PairingSteps = Generator[NewEnd | list[Request[Any]], Any, OwnEnd | Transport]


def pairing(wish: Wish, place: str, welcome: Welcome) -> PairingSteps:
    """What the data connection that this Welcome stands for is to be: an end that the server has
    connected its own to; or TCP. `place`: the server as the client knows it. NoVerbs, where it may
    not be TCP.

    Whatever ends it in the middle, this end is freed.
    """
    if wish.transport == TCP:
        return Transport(TCP, None, _ASKED)
    if not welcome.verbs:
        return _tcp_instead(wish, _NO_SERVER, DlockStatus.SERVER_NO_RESOURCE)
    left_s = avoided.left_s(place, wish)
    if left_s:
        return Transport(TCP, None, "the server was not reached over RDMA a moment ago; it is "
                         f"tried again in {left_s:.0f} s at the earliest")
    made = yield NewEnd(wish)
    if not isinstance(made, OwnEnd):
        return _tcp_instead(wish, made, DlockStatus.ERROR, here=True)
    connected = False
    try:
        (made.peer,) = yield [made.asks()]
        status = made.peer.status
        connected = status is DlockStatus.SUCCESS
    finally:
        if not connected:
            made.free()
    if connected:
        return made
    why = _ADVICE.get(status, f"the server refused a queue pair: {_core.status_text(status)}")
    return _tcp_instead(wish, why, status)


def _tcp_instead(wish: Wish, why: str, status: DlockStatus, *, here: bool = False) -> Transport:
    if wish.transport == VERBS:
        raise NoVerbs(f"RDMA is asked for (transport \"verbs\") and cannot be had: {why}. With "
                      "transport \"auto\" it would be TCP", status, here=here)
    return Transport(TCP, None, why)


def unreached(wish: Wish, place: str, end: OwnEnd) -> Unreached:
    """What to raise where the attach over this end has failed. The server is avoided from now on,
    if it may be reached over TCP."""
    device = end.transport.device
    text = (f"its end of the queue pair does not answer {device}. `dlock rdma` shows the addresses "
            f"of both ends: nothing between them may drop their packets (RoCE 2: UDP port 4791)")
    if wish.transport != VERBS:
        avoided.add(place, wish)
        text += f". It is TCP for the next {AVOID_S:.0f} s"
    return Unreached(text, wish, place)


def how(wish: Wish, place: str, now: Transport, before: Transport | None) -> str | None:
    """What is to be logged of the way in which a server is reached: where there was a choice, and
    once, until it is another way."""
    if wish.transport == TCP or now == before:
        return None
    over = "TCP" if now.device is None else f"RDMA, device {now.device}"
    return f"the data plane of {place} is reached over {over}: {now.why}"
