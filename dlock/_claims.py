"""What a session says to a new primary: every name that it has got, what it holds of it, and for
what it waits. What the primary does not take over is gone, and said to be.

The steps are those of _session.py. A claim tells a hold as LIVE or as lapsed, and that must be true
when it is sent: claims that are sent later than the first are judged again.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Final

from dlock import _core
from dlock._core import Claim, ffi, lib
from dlock._handle import Name
from dlock._session import Session, Steps, expect_success
from dlock.control.link import LinkError
from dlock.control.messages import BATCH_MAX, LockClaim, UpdateLocks
from dlock.types import DlockStatus

WINDOW: Final = 64 * BATCH_MAX  # claims that are under way together

_FREE: Final[int] = _core.DLK_ENTRY_FREE
_HELD: Final[int] = _core.DLK_ENTRY_HELD

# What a message has of a claim, in its order: everything but the name.
assert LockClaim._fields[:2] == ("descriptor", "size")
_of_claim: Final = attrgetter(*LockClaim._fields[2:])


def claiming(session: Session) -> Steps[None]:
    """Claims everything. Afterwards the table has only names that the primary has too, and nothing
    is sent with another lock id. Refusal; LinkError: it is to be begun anew."""
    claims = _everything(session)
    taken_over: set[int] = set()
    for start in range(0, len(claims), WINDOW):
        window = claims[start : start + WINDOW]
        if start:
            window = [(name, _judged(session, claim)) for name, claim in window]
        messages = [_message(name, claim) for name, claim in window]
        replies = yield [
            UpdateLocks(tuple(messages[at : at + BATCH_MAX]))
            for at in range(0, len(messages), BATCH_MAX)
        ]
        for reply in replies:
            expect_success(reply.status)
        statuses = [status for reply in replies for status in reply.statuses]
        if len(statuses) != len(window):
            raise LinkError("the server answered another number of claims than were made")
        lib.dlk_client_claimed(
            session.client, _core.claims_array([claim for _, claim in window]),
            ffi.new("int32_t[]", list(map(int, statuses))), len(window))
        taken_over.update(
            name.lock_id for (name, _), status in zip(window, statuses, strict=True)
            if status is DlockStatus.SUCCESS)
    session.names.keep(taken_over)
    lib.dlk_client_seal(session.client)


def _everything(session: Session) -> list[tuple[Name, Claim]]:
    """What is held and waited for; and of each name of which there is nothing, that it was got."""
    names = session.names.known()
    claims = [
        (name, claim) for claim in _core.claims_of(session.client)
        if claim.state != _FREE and (name := names.get(claim.lock_id)) is not None
    ]
    claimed = {claim.lock_id for _, claim in claims}
    claims += [(name, _got(name)) for name in names.values() if name.lock_id not in claimed]
    return claims


def _got(name: Name) -> Claim:
    fields = dict.fromkeys(Claim._fields, 0)
    fields.update(lock_id=name.lock_id, slot=name.slot, kind=name.key[1])
    return Claim(**fields)


def _message(name: Name, claim: Claim) -> LockClaim:
    descriptor, _kind, size = name.key
    return LockClaim(descriptor, size, *_of_claim(claim))


def _judged(session: Session, claim: Claim) -> Claim:
    """The same claim, a moment later."""
    if claim.state != _HELD:
        return claim
    call = ffi.new("struct dlk_call *")
    call.verb, call.lock_id, call.owner = lib.DLK_VERB_LOOK, claim.lock_id, claim.owner
    known = lib.dlk_client_call(session.client, call) == DlockStatus.SUCCESS
    left_ms = call.left_ms if known and call.token == claim.token else 0
    return claim._replace(
        lapsed=0 if left_ms else 1,
        remaining_ms=min(claim.remaining_ms, left_ms) if claim.leased else 0)
