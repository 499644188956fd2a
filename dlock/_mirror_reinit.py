"""The calls of the mirror that bring a client back: after a broken link, or at a new primary
(specification, sections 4 and 7).

A client that is re-initialised keeps its id and what it believes to hold; only its two links are
made anew. Whatever remakes or ends a session holds the client's `lifecycle` lock.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import Final

from dlock import _core, _mirror_data
from dlock._core import lib
from dlock._info import client_info
from dlock._mirror_check import bad_address
from dlock._mirror_client import STATUSES, VERSIONS, MirrorClient, judge
from dlock._mirror_enter import Refusal, enter_client
from dlock.control.link import ControlLink, LinkError
from dlock.control.messages import ClientReinit, LockClaim, ReinitDone, UpdateLocks
from dlock.types import DlockStatus

_log = logging.getLogger("dlock.client")

_CLAIM_FIELDS: Final = frozenset(LockClaim._fields) - {"descriptor", "size"}


def client_reinit(client_id: int, ip_str: str | None) -> DlockStatus:
    """Makes the links of a client anew, after BAD_RESPONSE or at a new primary.

    Locks, tickets and re-entry counts stay. EINVAL (no address, unknown client); NOT_READY (no
    server answers); CLIENT_REMOVED_BY_SERVER; SERVER_NO_RESOURCE. Sections 4 and 7.
    """
    try:
        client = enter_client(client_id, lambda: bad_address(ip_str), counts_invalid=False)
    except Refusal as refusal:
        unknown = refusal.status is DlockStatus.CLIENT_NOT_INIT
        return DlockStatus.EINVAL if unknown else refusal.status
    assert ip_str is not None
    with client.lifecycle:
        client.end_async()
        status = client.said(_reopen(client, ip_str))
    client.count(status)
    return status


def _reopen(client: MirrorClient, address: str) -> DlockStatus:
    timeout_s = client.settings.reply_timeout_s
    try:
        link = ControlLink.connect(address, client.settings.port, timeout_s)
    except LinkError as problem:
        _log.info("client_reinit of %d: %s", client.id, problem)
        return DlockStatus.NOT_READY
    taken = False
    try:
        request = ClientReinit(
            *VERSIONS, client.id, client.secret, client.epoch, client.incarnation, 0,
            client_info(),
        )
        try:
            welcome = link.request(request, timeout_s)
        except LinkError as problem:
            _log.info("client_reinit of %d: %s", client.id, problem)
            return DlockStatus.NOT_READY
        status = judge(welcome)
        if status is not DlockStatus.SUCCESS:
            return status
        same_server = (welcome.epoch, welcome.incarnation) == (client.epoch, client.incarnation)
        if client.link is not None:
            client.link.close()
        taken = True
        if not same_server:
            client.forget_objects()
        attached = client.welcome(welcome, link)
        lib.dlk_client_unverify(client.pointer)
        client.reinitialising = True
        if attached != DlockStatus.SUCCESS:
            return DlockStatus.NOT_READY
        return DlockStatus.SUCCESS
    finally:
        if not taken:
            link.close()


def client_reinit_done(client_id: int) -> DlockStatus:
    """Ends a re-initialisation: unlocks and cancels without an answer are sent again first.
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
    if settled not in (DlockStatus.SUCCESS, DlockStatus.NOT_READY):
        removed = settled == DlockStatus.CLIENT_REMOVED_BY_SERVER
        return client.said(STATUSES[settled]) if removed else DlockStatus.BAD_RESPONSE
    reply = client.ask(ReinitDone())
    if reply is None:
        return DlockStatus.BAD_RESPONSE
    if reply.status is DlockStatus.SUCCESS:
        client.reinitialising = False
    return client.said(reply.status)


def update_all_locks(client_id: int) -> DlockStatus:
    """Tells the server which locks this client has got and holds, in batches of 31.

    CLIENT_NOT_INIT; BAD_RESPONSE; EAGAIN (not all were sent: call again). The requests leave from
    a thread of their own while the caller's takes in the answers. Sections 4 and 7.
    """
    try:
        client = enter_client(client_id, lambda: False)
    except Refusal as refusal:
        return refusal.status
    with client.lifecycle:
        status = client.said(_report(client, _lock_claims(client)))
    client.count(status)
    return status


def _lock_claims(client: MirrorClient) -> list[LockClaim]:
    claims = []
    for claim in _mirror_data.claims(client.pointer):
        lock = client.locks.get(claim.lock_id)
        if lock is not None:
            shared = {name: getattr(claim, name) for name in _CLAIM_FIELDS}
            claims.append(LockClaim(descriptor=lock.descriptor, size=1, **shared))
    return claims


def _report(client: MirrorClient, claims: list[LockClaim]) -> DlockStatus:
    """Sends the claims; the first status that is no SUCCESS ends it."""
    size = _core.DLK_BATCH_MAX
    batches = [tuple(claims[at : at + size]) for at in range(0, len(claims), size)]
    answers: queue.SimpleQueue[DlockStatus] = queue.SimpleQueue()
    given_up = threading.Event()
    deadline = time.monotonic() + client.settings.reply_timeout_s

    def send() -> None:
        for batch in batches:
            if given_up.is_set() or time.monotonic() >= deadline:
                answers.put(DlockStatus.EAGAIN)
                return
            reply = client.ask(UpdateLocks(batch))
            answers.put(DlockStatus.BAD_RESPONSE if reply is None else reply.status)
        answers.put(DlockStatus.DONE)

    threading.Thread(target=send, name="dlock-claims", daemon=True).start()
    try:
        while (answer := answers.get()) is not DlockStatus.DONE:
            if answer is not DlockStatus.SUCCESS:
                return answer
        return DlockStatus.SUCCESS
    finally:
        given_up.set()
