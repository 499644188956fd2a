"""How a client gets a session: the first time, and again whenever its links were lost. The policy
alone, as a generator of steps (_session.py), so that a blocking and an asyncio client follow the
same one.

- Every server of the address is tried in turn, with pauses between the rounds; an address file is
  read again in each.
- A session that lives is taken up again (ClientReinit): its holds are confirmed, its debts settled.
  Only if the server says that it has ended, another one is opened there. One whose role another
  client has taken is not: Superseded.
- A new primary knows nothing of the session but that it may come back: it is told everything first
  (_claims.py), so that nothing is sent that it could take for something else. Then the links serve
  again; that the primary serves everything is awaited afterwards (`awaiting_ready`).
- What carries the data plane is chosen anew each time (_pairing.py). A server that accepted a queue
  pair and is not reached over it is entered once more at once, over TCP.
- A client that has seen an epoch never obeys a lower one, nor the same one of another start of the
  server: whoever answers so is a primary of the past, and what it says counts for nothing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from dlock import _core
from dlock._claims import claiming
from dlock._core import lib
from dlock._pairing import NoVerbs, OwnEnd, Unreached, how, pairing, unreached
from dlock._retry import Backoff
from dlock._search import REST_S, Seeker
from dlock._session import (
    Attach,
    Connect,
    Pause,
    Refusal,
    Session,
    Settle,
    Steps,
    expect_success,
)
from dlock._transport import Transport, Wish
from dlock.address import Address, Endpoint
from dlock.control.link import LinkError
from dlock.control.messages import (
    AwaitReady,
    ClientDeinit,
    ClientInit,
    ClientReinit,
    EnterRole,
    ReinitDone,
    Welcome,
)
from dlock.errors import ConnectError, Superseded
from dlock.types import DlockStatus

TRY_S: Final = 2.0  # how long one server may take to accept a connection
FIRST_TRY_S: Final = 0.25  # the same in the first round, when there are others to be tried
ATTACH_LEAST_S: Final = 0.5  # how long one may take at least to accept the data connection
SETTLE_S: Final = 5.0  # how long the debts of a session may take
# A server that is not ready answers when it is, or after this time; then it is asked again, so
# often on one connection before others are tried.
READY_S: Final = 1.0
ASKS_MAX: Final = 30
WORTH_S: Final = 0.02  # with less time left no more is asked
VERSIONS: Final = (_core.DLK_PROTOCOL_VERSION_MIN, _core.DLK_PROTOCOL_VERSION_MAX)

_NOT_READY: Final = DlockStatus.NOT_READY
_REMOVED: Final = DlockStatus.CLIENT_REMOVED_BY_SERVER
_ROLE_TAKEN: Final = DlockStatus.ALREADY_LOCKED
_ADVICE: Final = {
    DlockStatus.NOT_READY: "the server was started anew and waits until no client of its "
    "predecessor can still believe to hold a lock; wait longer",
    DlockStatus.SERVER_NO_RESOURCE: "the server has as many clients as it may; its limit is "
    "--max-clients",
    DlockStatus.ERROR: "it is a primary of the past: this client has seen a newer one. Or another "
    "connection has taken this one's place",
    DlockStatus.PROTO_VERSION_NEGOTIATION_FAIL: "the server speaks another version of the "
    "protocol; install the same version of dlock at both ends",
}


Opening = ClientInit | ClientReinit | EnterRole


@dataclass(frozen=True, slots=True)
class Options:
    """What a client was told. `wait_mode`: enum dlk_wait_mode; `info`: who it is; `wish`: over what
    its data plane is to be; `log`: where it is said what that has become; `role`: which at most one
    session has."""

    address: Address
    wait_mode: int
    info: Mapping[str, str | int]
    wish: Wish = field(default_factory=Wish)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("dlock.client"))
    role: str = ""


@dataclass(slots=True)
class Seen:
    """The newest primary that a client has heard of; 0: none yet. `problems`: why none could be
    had when it was looked for last; empty while there is one. `transport`: what was said last of
    how its data plane is reached."""

    epoch: int = 0
    incarnation: int = 0
    problems: tuple[str, ...] = ()
    transport: Transport | None = None

    def check(self, welcome: Welcome) -> None:
        """Refuses a primary of the past."""
        former = (self.epoch, self.incarnation)
        if welcome.epoch < self.epoch:
            raise Unfit(f"it has epoch {welcome.epoch}, and this client has seen {self.epoch}: it "
                        f"is a primary of the past, or was started without its state directory")
        if welcome.epoch == self.epoch and welcome.incarnation != former[1]:
            raise Unfit(f"it is another start of a server with the same epoch {self.epoch}: it was "
                        f"started without its state directory. Connect anew to use it")
        self.epoch, self.incarnation = welcome.epoch, welcome.incarnation


class Unfit(Exception):  # noqa: N818 - an outcome, not an error
    """A server that answered and cannot be used; the text says why."""


def entering(
    options: Options, seen: Seen, old: Session | None, deadline: float | None
) -> Steps[Session]:
    """Until there is a session: `old`, taken up again, or a new one; then `old` has ended at the
    server. The link of the last Connect is the session's. ConnectError at the deadline
    (time.monotonic; None: tries for ever), naming every server and what it said."""
    backoff = Backoff()
    try_s = FIRST_TRY_S
    with Seeker(str(options.address)) as seeker:
        while True:
            seeker.looks()
            endpoints, problems = options.address.endpoints()
            try_s = min(2 * try_s, TRY_S) if len(endpoints) > 1 else TRY_S
            for endpoint in endpoints:
                place = _Place(endpoint, try_s, len(endpoints) == 1, seeker)
                try:
                    session = yield from _enter_somehow(place, options, seen, old, deadline)
                    seen.problems = ()
                    return session
                except NoVerbs as problem:
                    if problem.here and old is None:  # no server could help
                        raise ConnectError(_at(endpoint, str(problem))) from None
                    problems.append(_at(endpoint, str(problem)))
                except (LinkError, Unfit, Unreached, UnicodeError) as problem:
                    problems.append(_at(endpoint, str(problem)))
                except Refusal as refusal:
                    problems.append(_at(endpoint, _ADVICE.get(refusal.status, str(refusal))))
            seen.problems = tuple(problems)
            if _left_s(deadline) <= 0:
                raise ConnectError(_unreachable(options.address, problems))
            pause_s = min(backoff.pause_s(), _left_s(deadline))
            if old is None:
                yield Pause(pause_s)
            else:  # With others of this process that have lost a server there.
                yield Pause(pause_s if seeker.join() else REST_S, seeker)


def _left_s(deadline: float | None) -> float:
    return float("inf") if deadline is None else deadline - time.monotonic()


def _at(endpoint: Endpoint, problem: str) -> str:
    return problem if str(endpoint) in problem else f"{endpoint}: {problem}"


def _unreachable(address: Address, problems: list[str]) -> str:
    said = "; ".join(problems) or "it names no server"
    return (f"no dlock server could be reached at {address} in time ({said}). Is it running "
            f"(`dlock serve`), and is this its address? connect(address) or DLOCK_ADDRESS name it")


@dataclass(frozen=True, slots=True)
class _Place:
    """One server, how long it may take to accept a connection, whether there is no other, and for
    whom it is looked for."""

    endpoint: Endpoint
    try_s: float
    only: bool
    seeker: Seeker


def _enter_somehow(
    place: _Place, options: Options, seen: Seen, old: Session | None, deadline: float | None
) -> Steps[Session]:
    """At one server; if it is not reached over a queue pair, a second time."""
    try:
        session = yield from _enter(place, options, seen, old, deadline)
    except Unreached as problem:
        options.log.warning("%s", _at(place.endpoint, str(problem)))
        if not problem.again:
            raise
        try:
            session = yield from _enter(place, options, seen, old, deadline)
        except BaseException:
            problem.forget()
            raise
    said = how(options.wish, str(place.endpoint), session.transport, seen.transport)
    if said:
        options.log.info("%s", said)
    seen.transport = session.transport
    return session


def _enter(
    place: _Place, options: Options, seen: Seen, old: Session | None, deadline: float | None
) -> Steps[Session]:
    """At one server."""
    host: str = yield Connect(place.endpoint, max(0.01, min(place.try_s, _left_s(deadline))))
    place.seeker.found()
    if old is not None and not old.ended:
        request = ClientReinit(
            *VERSIONS, old.id, old.secret, seen.epoch, seen.incarnation, 1, options.info)
        welcome = yield from _ask_until_ready(request, place, deadline)
        if welcome.status is _ROLE_TAKEN:
            raise Superseded(options.role)
        if welcome.status is not _REMOVED:
            _check(welcome, seen)
            old.endpoint = place.endpoint
            yield from _take_up(old, options.wish, host, welcome)
            return old
    # A primary of the past must not end a session, so nothing is believed before its Welcome.
    init: Opening = ClientInit(*VERSIONS, options.info)
    if options.role:  # Who had it before, and has lost it, does not take it from another.
        init = EnterRole(*VERSIONS, options.role, int(old is None), options.info)
    welcome = yield from _ask_until_ready(init, place, deadline)
    if welcome.status is _ROLE_TAKEN:
        raise Superseded(options.role)
    expect_success(welcome.status)
    try:
        _check(welcome, seen)
        return (yield from _begin(place.endpoint, options, host, welcome))
    except (NoVerbs, Unfit, Unreached):
        yield [ClientDeinit()]
        raise


def _ask_until_ready(
    request: Opening, place: _Place, deadline: float | None
) -> Steps[Welcome]:
    """The server itself says when to ask again."""
    backoff = Backoff()
    ready: object = None
    for _ in range(ASKS_MAX if place.only else 2):
        (welcome,) = yield [request]
        left_s = _left_s(deadline)
        if welcome.status is not _NOT_READY or left_s <= WORTH_S:
            break
        if ready is DlockStatus.SUCCESS:  # and yet it is not
            yield Pause(min(backoff.pause_s(), left_s))
        # With room for the answer: it shall be heard why there was no session in time.
        (reply,) = yield [AwaitReady(math.ceil(min(READY_S, left_s / 2) * 1000))]
        ready = reply.status
    answer: Welcome = welcome
    return answer


def _check(welcome: Welcome, seen: Seen) -> None:
    expect_success(welcome.status)
    if not VERSIONS[0] <= welcome.version <= VERSIONS[1]:
        raise Refusal(DlockStatus.PROTO_VERSION_NEGOTIATION_FAIL)
    seen.check(welcome)


def _begin(
    endpoint: Endpoint, options: Options, host: str, welcome: Welcome
) -> Steps[Session]:
    session = Session(options.wait_mode)
    session.endpoint = endpoint
    session.welcome(welcome)
    try:
        yield from _attach(session, options.wish, host, welcome, TRY_S)
    except (NoVerbs, Unfit, Unreached):
        session.end()
        raise
    session.home = (welcome.epoch, welcome.incarnation)
    return session


def _take_up(session: Session, wish: Wish, host: str, welcome: Welcome) -> Steps[None]:
    """The session goes on. One primary may have to be told several times, if a link is lost before
    it has said that it knows everything: what it knows already stays as it is. Once it has said so
    it is not told again: there may be holds by now that it has granted itself, which are no claims
    of a former one's."""
    primary = (welcome.epoch, welcome.incarnation)
    session.welcome(welcome)
    if primary != session.home:
        session.ready = False
        session.objects.clear()  # a new primary has none of them
    if primary not in (session.home, session.told):
        yield from claiming(session)
        session.told = primary
    yield from _attach_again(session, wish, host, welcome)
    lib.dlk_client_unverify(session.client)
    status = yield Settle(session, SETTLE_S)
    # A recovering server answers debts with NOT_READY: they are kept and sent again later.
    if status not in (DlockStatus.SUCCESS, DlockStatus.NOT_READY):
        raise Unfit("it does not answer on its data port")
    (done,) = yield [ReinitDone()]
    expect_success(done.status)
    session.home = primary
    lib.dlk_client_verify(session.client)


def _attach_again(session: Session, wish: Wish, host: str, welcome: Welcome) -> Steps[None]:
    """The data link. While none can be had, the control plane keeps the session alive."""
    timeout_s = min(max(welcome.session_ttl_ms / 4000, ATTACH_LEAST_S), TRY_S)
    try:
        yield from _attach(session, wish, host, welcome, timeout_s)
    except (NoVerbs, Unfit, Unreached):
        yield from session.beat()
        raise


def _attach(
    session: Session, wish: Wish, host: str, welcome: Welcome, timeout_s: float
) -> Steps[None]:
    """Over a queue pair, or TCP. NoVerbs; Unreached; Unfit."""
    where = str(session.endpoint)
    way = yield from pairing(wish, where, welcome)
    own = way if isinstance(way, OwnEnd) else None
    before = session.transport
    # Said first: a call that waited for this link may be answered over it before Attach is over.
    session.transport = way.transport if isinstance(way, OwnEnd) else way
    status = None
    try:
        status = yield Attach(session, host, welcome, timeout_s, own)
    finally:
        if own is not None:
            own.free()
        if status != DlockStatus.SUCCESS:
            session.transport = before
    if status == DlockStatus.SUCCESS:
        return
    if own is None or session.ended:  # one that was closed meanwhile says nothing about the device
        raise _no_data_link(welcome)
    raise unreached(wish, where, own)


def _no_data_link(welcome: Welcome) -> Unfit:
    return Unfit(f"its data port {welcome.data_port} does not answer")


def is_ready(session: Session) -> None:
    """Its primary serves everything: what is held without being confirmed is asked for, and what
    the primary was not ready for is asked again."""
    session.ready = True
    lib.dlk_client_verify(session.client)


def awaiting_ready(session: Session) -> Steps[None]:
    """Until the primary of a session that was taken up serves everything, or the session's links
    are lost. LinkError."""
    backoff = Backoff()
    while session.attached and not session.ready:
        (reply,) = yield [AwaitReady(round(READY_S * 1000))]
        if reply.status is DlockStatus.SUCCESS:
            is_ready(session)
        elif reply.status is not _NOT_READY:
            yield Pause(backoff.pause_s())


def leaving(options: Options, seen: Seen, session: Session, deadline: float) -> Steps[None]:
    """A client goes whose links are lost: a server that knows its session is told so, if one is
    found by then. Else that server, or a new primary, would wait for one that never comes."""
    backoff = Backoff()
    while _left_s(deadline) > WORTH_S:
        for endpoint in options.address.endpoints()[0]:
            try:
                yield Connect(endpoint, max(WORTH_S, min(TRY_S, _left_s(deadline))))
                reinit = ClientReinit(
                    *VERSIONS, session.id, session.secret, seen.epoch, seen.incarnation, 1,
                    options.info)
                # Together, so that it counts also when the answer comes too late.
                welcome, gone = yield [reinit, ClientDeinit()]
                if welcome.status is DlockStatus.SUCCESS and gone.status is _NOT_READY:
                    yield [ClientDeinit()]  # one that recovers had to open the session first
                if welcome.status in (DlockStatus.SUCCESS, _REMOVED):
                    return
            except (LinkError, UnicodeError):
                continue
        yield Pause(min(backoff.pause_s(), max(_left_s(deadline), 0)))


def no_answer(options: Options, seen: Seen, session: Session, whole: bool) -> str:
    """What ConnectionLost says."""
    if whole and not session.ready:
        return (f"the dlock server at {options.address} recovers: it waits for clients of its "
                f"predecessor that still could believe to hold a lock, and serves this one only "
                f"then. `dlock recover` shows for whom")
    said = f" ({'; '.join(seen.problems)})" if seen.problems and not whole else ""
    return (f"the dlock server at {options.address} did not answer in time{said}; what was asked "
            f"of it is undone when the link is back")
