"""The calls of the mirror that bring a client back: after a broken link, or at a new primary
(specification, sections 4 and 7).

A client that is re-initialised keeps its id and what it believes to hold; only its two links are
made anew. At a new primary it reports its locks, and what it did not report is not got any more
from `client_reinit_done` on. Whatever remakes or ends a session holds the client's `lifecycle`
lock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Final

from dlock import _core, _mirror_data
from dlock._core import lib
from dlock._info import client_info
from dlock._mirror_attach import attach, entered
from dlock._mirror_check import bad_address
from dlock._mirror_client import STATUSES, VERSIONS, MirrorClient, judge
from dlock._mirror_data import Claims
from dlock._mirror_enter import Refusal, enter_client
from dlock.control.link import ControlLink, LinkError
from dlock.control.messages import (
    ClientReinit,
    LockClaim,
    ReinitDone,
    Statuses,
    UpdateLocks,
    Welcome,
)
from dlock.types import DlockStatus

_log = logging.getLogger("dlock.client")

_BATCH: Final = _core.DLK_BATCH_MAX
# What a LockClaim says after descriptor and size, out of a claim of C.
_after_size: Final = itemgetter(*map(_core.Claim._fields.index, LockClaim._fields[2:]))
_FIRST_PAUSE_S: Final = 0.01
_LONGEST_PAUSE_S: Final = 0.2

# What client_reinit says of a data connection; whatever else became of it may pass.
_SAID_OF_LINKS: Final = frozenset({
    DlockStatus.SUCCESS, DlockStatus.ERROR, DlockStatus.SERVER_NO_RESOURCE,
    DlockStatus.CLIENT_REMOVED_BY_SERVER,
})

# What the book is told where the server has the lock and this client has got it. FAIL is among
# them: the hold is lost, but the local state stays until `lock_extend`, or the first call on a rw
# lock, asks and hears so (section 7).
_KNOWN: Final = frozenset({DlockStatus.SUCCESS, DlockStatus.FAIL})


# ---- New links -----------------------------------------------------------------------------------


def client_reinit(client_id: int, ip_str: str | None) -> DlockStatus:
    """Makes the links of a client anew, after BAD_RESPONSE or at a new primary.

    Locks, tickets and re-entry counts stay. EINVAL (no address, unknown client); NOT_READY (no
    server answers, or one that is older than what this client has seen); CLIENT_REMOVED_BY_SERVER;
    SERVER_NO_RESOURCE; where RDMA is asked for, this and ERROR as in client_init. Sections 4 and 7.
    """
    try:
        client = enter_client(client_id, lambda: bad_address(ip_str), counts_invalid=False)
    except Refusal as refusal:
        unknown = refusal.status is DlockStatus.CLIENT_NOT_INIT
        return DlockStatus.EINVAL if unknown else refusal.status
    assert ip_str is not None
    with client.lifecycle:
        client.end_async()
        reopened = entered(f"client_reinit of {client_id}", partial(_reopen, client, ip_str))
        status = client.said(reopened)
    client.count(status)
    return status


def _reopen(client: MirrorClient, address: str) -> DlockStatus:
    deadline = time.monotonic() + client.settings.reply_timeout_s
    asked = _ask_to_return(client, address, deadline)
    if asked is None:
        return DlockStatus.NOT_READY
    welcome, link = asked
    taken = False
    try:
        status = judge(welcome)
        if status is DlockStatus.ERROR or _is_older(client, welcome, status):
            _log.warning(
                "client_reinit of %d: the server at %s is older than one that it has seen (epoch "
                "%d), or another of the same epoch; ask the newest primary",
                client.id, address, client.epoch,
            )
            return DlockStatus.NOT_READY
        if status is not DlockStatus.SUCCESS:
            return status
        taken = True
        return _take_up(client, welcome, link)
    finally:
        if not taken:
            link.close()


def _ask_to_return(
    client: MirrorClient, address: str, deadline: float
) -> tuple[Welcome, ControlLink] | None:
    """The answer to ClientReinit and its link; None: nobody answers, or nobody can say yet.

    A primary without a state directory that is shown an epoch begins anew with a higher one: its
    answer is NOT_READY, or none. So whoever breaks off or is not ready is asked again."""
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            left_s = max(deadline - time.monotonic(), 0.001)
            link = ControlLink.connect(address, client.settings.port, left_s)
        except LinkError as problem:
            _log.info("client_reinit of %d: %s", client.id, problem)
            return None
        answered = False
        try:
            welcome = link.request(_request(client), max(deadline - time.monotonic(), 0.001))
            answered = welcome.status is not DlockStatus.NOT_READY
            if answered:
                return welcome, link
        except LinkError as problem:
            _log.info("client_reinit of %d: %s", client.id, problem)
        finally:
            if not answered:
                link.close()
        if time.monotonic() + pause_s >= deadline:
            return None
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _request(client: MirrorClient) -> ClientReinit:
    return ClientReinit(
        *VERSIONS, client.id, client.secret, client.epoch, client.incarnation, 0, client_info()
    )


def _is_older(client: MirrorClient, welcome: Welcome, status: DlockStatus) -> bool:
    """A client that has seen an epoch never again obeys a lower one, nor the same of another
    server."""
    if status is not DlockStatus.SUCCESS:
        return False
    other = welcome.incarnation != client.incarnation
    return welcome.epoch < client.epoch or (welcome.epoch == client.epoch and other)


def _take_up(client: MirrorClient, welcome: Welcome, link: ControlLink) -> DlockStatus:
    if client.link is not None:
        client.link.close()
    if welcome.epoch != client.epoch:
        client.forget_objects()
    client.reported.clear()
    client.reinitialising = True
    client.welcome(welcome, link)
    try:
        attached = attach(client, welcome, link)
    finally:
        lib.dlk_client_unverify(client.pointer)
    return attached if attached in _SAID_OF_LINKS else DlockStatus.NOT_READY


# ---- The end of a re-initialisation --------------------------------------------------------------


def client_reinit_done(client_id: int) -> DlockStatus:
    """Ends a re-initialisation: unlocks and cancels without an answer are sent again first. At a
    new primary, locks that were not reported are not got any more.
    CLIENT_NOT_INIT; BAD_RESPONSE; ERROR (not re-initialising). Sections 4 and 7."""
    try:
        client = enter_client(client_id, lambda: False)
    except Refusal as refusal:
        return refusal.status
    with client.lifecycle:
        status = _end_reinit(client)
    client.count(status)
    return status


def _end_reinit(client: MirrorClient) -> DlockStatus:
    if not client.reinitialising:
        return DlockStatus.ERROR
    timeout_ms = round(client.settings.reply_timeout_s * 1000)
    settled = _mirror_data.settle(client.pointer, timeout_ms)
    # A recovering server answers debts with NOT_READY: they are kept and sent again later.
    if settled in (DlockStatus.SUCCESS, DlockStatus.NOT_READY):
        settled = _seal(client)
    if settled != DlockStatus.SUCCESS:
        removed = settled == DlockStatus.CLIENT_REMOVED_BY_SERVER
        return client.said(STATUSES[settled]) if removed else DlockStatus.BAD_RESPONSE
    reply = client.ask(ReinitDone())
    if reply is None:
        return DlockStatus.BAD_RESPONSE
    if reply.status is DlockStatus.SUCCESS:
        client.reinitialising = False
    return client.said(_of_recovery_call(reply.status))


def _seal(client: MirrorClient) -> int:
    """At a new primary, once: what was not claimed is not got any more. Before ReinitDone, since
    that may be what the primary waits for to hand out new ids, which begin above those that were
    claimed. Not for one that is dead: the next may hear what this one did not; a status."""
    if client.sealed_epoch == client.epoch:
        return DlockStatus.SUCCESS
    alive = _mirror_data.ping(client.pointer)
    if alive == DlockStatus.SUCCESS:
        _mirror_data.seal(client.pointer)
        client.sealed_epoch = client.epoch
    return alive


def _of_recovery_call(status: DlockStatus) -> DlockStatus:
    """A primary that recovers answers recovery calls. One that does not is about to begin anew,
    above the epoch of another client: what it has heard so far is void."""
    return DlockStatus.BAD_RESPONSE if status is DlockStatus.NOT_READY else status


# ---- What a client reports -----------------------------------------------------------------------


def update_all_locks(client_id: int) -> DlockStatus:
    """Tells the server which locks this client has got and holds, in batches of 31.

    SUCCESS: all were reported; what the server did not take over, the first call on it tells.
    CLIENT_NOT_INIT; BAD_RESPONSE; EAGAIN (not all were sent within `reply_timeout`: call again, it
    goes on where it stopped). The requests leave from a thread of their own while the caller's
    takes in the answers. Sections 4 and 7.
    """
    try:
        client = enter_client(client_id, lambda: False)
    except Refusal as refusal:
        return refusal.status
    with client.lifecycle:
        status = client.said(_report(client, _mirror_data.claims(client.pointer)))
    client.count(status)
    return status


def _report(client: MirrorClient, claims: Claims) -> DlockStatus:
    """Sends what was not sent yet, and tells the book what came of it."""
    indices = [
        index
        for index, claim in enumerate(claims.items)
        if claim.lock_id in client.locks and claim.lock_id not in client.reported
    ]
    batches = [indices[at : at + _BATCH] for at in range(0, len(indices), _BATCH)]
    requests = [UpdateLocks(tuple(_claim(client, claims, index) for index in batch))
                for batch in batches]
    answers = _send(client, requests)
    if answers is None:
        return DlockStatus.BAD_RESPONSE
    for batch, reply in zip(batches, answers, strict=False):
        if reply.status is not DlockStatus.SUCCESS:
            return _of_recovery_call(reply.status)
        if len(reply.statuses) != len(batch):
            return DlockStatus.BAD_RESPONSE
        _enter_answers(client, claims, batch, reply.statuses)
    if len(answers) < len(batches):
        return DlockStatus.EAGAIN
    client.reported.clear()  # the next call begins anew
    return DlockStatus.SUCCESS


def _claim(client: MirrorClient, claims: Claims, index: int) -> LockClaim:
    claim = claims.items[index]
    return LockClaim._make((client.locks[claim.lock_id].descriptor, 1, *_after_size(claim)))


def send_s(client: MirrorClient) -> float:
    """For how long one call sends; then it says EAGAIN."""
    return client.settings.reply_timeout_s


def _send(client: MirrorClient, requests: list[UpdateLocks]) -> list[Statuses] | None:
    """The answers to as many requests as could be sent in time; None: the link is gone."""
    link = client.link
    if link is None:
        return None
    try:
        return link.stream(requests, send_s(client), client.settings.reply_timeout_s)
    except LinkError as problem:
        _log.info("update_all_locks of %d: %s", client.id, problem)
        return None


def _enter_answers(
    client: MirrorClient, claims: Claims, batch: list[int], statuses: Sequence[DlockStatus]
) -> None:
    if client.sealed_epoch != client.epoch:
        answered = zip(batch, statuses, strict=True)
        known = [index for index, status in answered if status in _KNOWN]
        array = _mirror_data.select(claims, known)
        _mirror_data.claimed(client.pointer, array, [DlockStatus.SUCCESS] * len(known))
    client.reported.update(claims.items[index].lock_id for index in batch)
