"""One session at a server, as the Python API sees it: the C client with its book and data link, the
names that were got, what the server has promised. It lives as long as the server's session; a
client whose session was ended opens another.

What must be asked on the control plane is written as generators, so that a blocking client and an
asyncio one share it: each yields steps and is sent their outcome. A list of requests is one
exchange and is answered with the list of its replies. Nothing here opens a socket or waits, but
`attach` and `settle`, which say so; an asyncio client has its own (dlock/aio/_attach.py).
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Generator, Sequence
from typing import Any, Final, TypeVar

from dlock import _core
from dlock._core import ffi, lib
from dlock._frozen import Frozen
from dlock._handle import RELEASE_BATCH, Key, NameTable
from dlock._owned import own_client
from dlock._pairing import NewEnd, OwnEnd, data_link, handed_over
from dlock._search import Seeker
from dlock._transport import TCP, Transport
from dlock.address import Endpoint
from dlock.control.messages import (
    BATCH_MAX,
    DeclareLease,
    GetLocks,
    Heartbeat,
    LockResult,
    LockSpec,
    ReleaseLocks,
    Request,
    Welcome,
)
from dlock.errors import DlockError, ForkedError, KindMismatch, LeaseTooLong, ServerFull
from dlock.types import DlockStatus

T = TypeVar("T")

REPLY_TIMEOUT_MS: Final[int] = _core.DLK_REPLY_TIMEOUT_MS_DEFAULT
WAIT_MODES: Final = {
    "adaptive": _core.DLK_WAIT_ADAPTIVE,
    "block": _core.DLK_WAIT_BLOCK,
    "poll": _core.DLK_WAIT_POLL,
}
WAIT_ENVIRONMENT: Final = "DLOCK_WAIT"
# That one exchange asks for: in a busy event loop an exchange takes several of its turns, and
# whoever wants a name should not have to wait for hundreds of them.
NAMES_AT_ONCE: Final = 64 * BATCH_MAX

_PENDING: Final[int] = _core.DLK_STATUS_PENDING
_FORKED: Final[int] = _core.DLK_STATUS_FORKED


# ---- Steps: what a generator may ask of whoever runs it ------------------------------------------


class Connect(Frozen):
    """Open a control link to this server, in place of an older one. Sent back: the numeric address
    of the server (str). LinkError is thrown in when nothing answers within `timeout_s`."""

    endpoint: Endpoint
    timeout_s: float


class Attach(Frozen):
    """Open the data connection of this session that the Welcome of the server at this numeric
    address speaks of: over this end of a queue pair, which the session takes, or over TCP. Sent
    back: a status, SUCCESS or BAD_RESPONSE."""

    session: Session
    host: str
    welcome: Welcome
    timeout_s: float
    end: OwnEnd | None = None


class Settle(Frozen):
    """Have every unlock and cancel of this session without an answer answered. Sent back: a status,
    PENDING if that takes longer than `timeout_s`."""

    session: Session
    timeout_s: float


class Pause(Frozen):
    """Wait so long, or until the client is closed, or this seeker is called."""

    seconds: float
    seeker: Seeker | None = None


# A list of requests: exchange them on the link; sent back: the replies in the same order. LinkError
# is thrown in when there is no answer.
Step = Connect | NewEnd | Attach | Settle | Pause | list[Request[Any]]
Steps = Generator[Step, Any, T]


class Refusal(Exception):  # noqa: N818 - an outcome, not an error
    """The server answered that it cannot, for now or for good; `status` says which."""

    def __init__(self, status: DlockStatus) -> None:
        super().__init__(status)
        self.status = status

    def __str__(self) -> str:
        return _core.status_text(self.status)


def expect_success(status: DlockStatus) -> None:
    """Refusal for every other status."""
    if status is not DlockStatus.SUCCESS:
        raise Refusal(status)


def wait_mode(name: str | None) -> int:
    """The number of a waiting mode; None: what DLOCK_WAIT says, else adaptive. ValueError."""
    name = name or os.environ.get(WAIT_ENVIRONMENT) or "adaptive"
    if name not in WAIT_MODES:
        raise ValueError(f"the waiting mode {name!r} is not one of {', '.join(WAIT_MODES)}")
    return WAIT_MODES[name]


# ---- The session ---------------------------------------------------------------------------------

_numbers = itertools.count(1)


class Session:
    """See the file. `client`: the C client, freed with the last that refers to it. `number`: how
    notices of this process name it. `free_lease_ms`: longer leases must be declared first.
    `objects`: descriptors of 64-bit objects that were got, with the epoch of the primary that gave
    them out and their ids. `home`: epoch and incarnation of the primary that knows all of it;
    `told`: of the last one that knows what it held under former ones. `ready`: as far as is known,
    `home` serves everything, and not only locks of whose state it is certain. `endpoint`: where it
    is. `transport`: what carries, or carried last, its data plane. `link`: the control link that
    speaks for the session; whoever drives it sets it."""

    def __init__(self, wait_mode: int) -> None:
        self.number = next(_numbers)
        self.client = _new_client(wait_mode, self.number)
        self.id = 0
        self.secret = b""
        self.epoch = 0
        self.incarnation = 0
        self.ttl_ms = 0
        self.max_lease_ms = 0
        self.free_lease_ms = 0
        self.names = NameTable(self)
        self.objects: dict[bytes, tuple[int, int]] = {}
        self.home = (0, 0)
        self.told = (0, 0)
        self.ready = True
        self.endpoint: Endpoint | None = None
        self.transport = Transport(TCP, None, "there was no connection yet")
        self.link: Any = None

    @property
    def ended(self) -> bool:
        """The server has ended it, or the client has left. What it held is lost."""
        return self.names.ended

    @property
    def attached(self) -> bool:
        """There is a data connection that has not failed."""
        return bool(lib.dlk_client_attached(self.client))

    @property
    def left_s(self) -> float:
        """How long the session certainly lives, by this process's clock, if the server is not
        heard of again."""
        return float(lib.dlk_client_session_left_ms(self.client) / 1000)

    @property
    def pulse_s(self) -> float:
        """So often it is to be seen whether the session is `silent`."""
        return self.ttl_ms / 8000

    @property
    def silent(self) -> bool:
        """The data plane has not been heard of for so long that a PING of the keeper, which asks
        after a quarter of session_ttl, has been left without an answer for another quarter."""
        return self.left_s * 2000 < self.ttl_ms and self.home[0] != 0 and not self.ended

    def welcome(self, welcome: Welcome) -> None:
        """Takes over what the server has promised."""
        self.id = welcome.client_id
        self.secret = welcome.secret
        self.epoch = welcome.epoch
        self.incarnation = welcome.incarnation
        self.ttl_ms = welcome.session_ttl_ms
        self.max_lease_ms = welcome.max_lease_ms
        self.free_lease_ms = min(welcome.declared_lease_ms, welcome.max_lease_ms)

    def attach(
        self, host: str, welcome: Welcome, timeout_s: float, end: OwnEnd | None = None
    ) -> int:
        """Blocks: opens the data connection that the Welcome speaks of; a status."""
        link = data_link(host, welcome, timeout_s, end)
        try:
            status: int = lib.dlk_client_attach(self.client, link)
            handed_over(link)
            while status == _PENDING and not self.ended:
                status = lib.dlk_client_attach(self.client, link)
            if self.ended:
                lib.dlk_client_detach(self.client)  # or a wait would stay that nobody takes along
        except BaseException:
            lib.dlk_client_detach(self.client)
            raise
        return forked_or(status)

    def settle(self, timeout_s: float) -> int:
        """Blocks: has every unlock and cancel without an answer answered; a status, PENDING if that
        takes longer."""
        deadline = time.monotonic() + timeout_s
        status = _PENDING
        while status == _PENDING and not self.ended:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            status = lib.dlk_client_settle(self.client, round(left_s * 1000) + 1)
        return forked_or(status)

    def end(self) -> None:
        """It is over: every call that runs ends without an answer, every hold is lost."""
        self.names.end()
        lib.dlk_client_detach(self.client)

    def beat(self) -> Steps[bool]:
        """A heartbeat over the control plane. It is answered when the data plane has confirmed it,
        so that the session lives on although no data link can be had, or the one there is silent.
        True: the session lives, and the data link is good. False: the links are to be made anew.
        LinkError."""
        epoch, sent_ns = self.epoch, _core.now_ns()
        (reply,) = yield [Heartbeat()]
        if reply.status is not DlockStatus.SUCCESS:
            return False
        good = self.attached and not self.silent
        lib.dlk_client_heard(self.client, epoch, sent_ns)
        return good

    # ---- Names and leases ------------------------------------------------------------------------

    def resolve(self, keys: Sequence[Key]) -> Steps[list[DlockError | None]]:
        """Gets these names, at most NAMES_AT_ONCE, in one exchange, which also tells the server of
        names that were let go. One outcome a name: None, or why it cannot be had. Refusal;
        LinkError. Only one may run at a time for a session."""
        names, epoch = self.names, self.epoch
        asked = [keys[at:at + BATCH_MAX] for at in range(0, len(keys), BATCH_MAX)]
        parting = names.part(max(len(asked), 1))
        requests: list[Request[Any]] = []  # Those first: one of them may be wanted again.
        for at in range(0, len(parting), RELEASE_BATCH):
            gone = parting[at:at + RELEASE_BATCH]
            requests.append(ReleaseLocks(tuple(lock_id for _, lock_id in gone)))
        requests += [GetLocks(tuple(LockSpec(*key) for key in batch)) for batch in asked]
        if not requests:
            return []
        replies = yield requests
        for reply in replies:
            expect_success(reply.status)
        names.parted(parting)
        results = [one for reply in replies[len(replies) - len(asked):] for one in reply.results]
        return [self._got(key, one, epoch) for key, one in zip(keys, results, strict=True)]

    def _got(self, key: Key, result: LockResult, epoch: int) -> DlockError | None:
        if result.lock_id > 0:  # ERROR: an answer was lost, and it has been got already.
            self.names.enter(key, result.lock_id, result.slot, epoch)
            return None
        descriptor, _kind, size = key
        if result.status is DlockStatus.SERVER_NO_RESOURCE:
            return ServerFull(f"no lock {descriptor!r}: the server has as many locks as it may; "
                              f"its limit is --max-locks")
        return KindMismatch(f"the lock {descriptor!r} exists at the server with another kind or "
                            f"size than asked for (size {size})")

    def declare(self, lease_ms: int) -> Steps[None]:
        """Makes sure that a lease of this length may be asked for. LeaseTooLong."""
        if lease_ms > self.max_lease_ms:
            raise LeaseTooLong(f"a lease of {lease_ms / 1000:g} s is asked for, the server allows "
                               f"{self.max_lease_ms / 1000:g} s; its limit is --max-lease")
        if lease_ms <= self.free_lease_ms:
            return
        declared_ms = min(1 << (lease_ms - 1).bit_length(), self.max_lease_ms)
        reply, = yield [DeclareLease(declared_ms)]
        expect_success(reply.status)
        self.free_lease_ms = max(self.free_lease_ms, declared_ms)


assert RELEASE_BATCH <= _core.DLK_BATCH_MAX


def forked_or(status: int) -> int:
    """The status of a C call; ForkedError if the client is the parent process's."""
    if status == _FORKED:
        raise ForkedError
    return status


def _new_client(mode: int, number: int) -> Any:
    """A struct dlk_client that is freed with its last reference, never in a forked child."""
    config = {"wait_mode": mode, "reply_timeout_ms": REPLY_TIMEOUT_MS, "number": number,
              "keep_waits": 1}
    pointer = lib.dlk_client_new(ffi.new("struct dlk_client_config *", config))
    if pointer == ffi.NULL:
        raise MemoryError("no memory for a dlock client")
    return own_client(pointer)
