"""The checks before a call of the mirror, in the order of the specification (section 5): library,
arguments, client, running asynchronous operation, lock, lease.

A check that fails raises Refusal, which no caller of the mirror ever sees: each call turns it into
its status. Refusals are counted at the client when they are raised.
"""

from __future__ import annotations

from collections.abc import Callable

from dlock import _mirror_check, _mirror_table
from dlock._mirror_client import LockEntry, MirrorClient
from dlock.types import DlockStatus, LockRequest, State


class Refusal(Exception):  # noqa: N818 - an outcome, not an error
    """A call ends here: with this status, and the last known state of its lock."""

    def __init__(self, status: DlockStatus, state: State | None = None) -> None:
        self.status = status
        self.state = state

    @property
    def result(self) -> tuple[DlockStatus, State | None]:
        """As lock calls return it."""
        return self.status, self.state


def refuse(client: MirrorClient, status: DlockStatus, lock: LockEntry | None = None) -> Refusal:
    """The refusal of a lock call, counted at its client."""
    client.count_lock(status)
    return Refusal(status, None if lock is None else client.state_of(lock))


def enter_client(
    client_id: int | None, bad: Callable[[], bool], *, counts_invalid: bool = True
) -> MirrorClient:
    """Library, arguments, client. `bad` says whether an argument is missing or impossible;
    `counts_invalid`: it is a lock call, whose EINVAL has a counter."""
    if not _mirror_table.is_open(client_id):
        raise Refusal(DlockStatus.CLIENTMGR_NOT_INIT)
    if _mirror_table.missing(client_id) | bad():
        client = None if client_id is None else _mirror_table.find(client_id)
        if client is not None and counts_invalid:
            client.count_lock(DlockStatus.EINVAL)
        raise Refusal(DlockStatus.EINVAL)
    assert client_id is not None  # `missing` says so
    client = _mirror_table.find(client_id)
    if client is None:
        raise Refusal(DlockStatus.CLIENT_NOT_INIT)
    if client.removed:
        raise Refusal(DlockStatus.CLIENT_REMOVED_BY_SERVER)
    return client


def enter_lock(
    client_id: int | None, lock_id: int | None, bad: Callable[[], bool]
) -> tuple[MirrorClient, LockEntry]:
    """What `enter_client` checks, then that nothing asynchronous runs, then the lock."""
    client = enter_client(client_id, bad)
    lock = client.locks.get(-1 if lock_id is None else lock_id)
    if client.running is not None:
        raise refuse(client, DlockStatus.EASYNC, lock)
    if lock is None:
        raise refuse(client, DlockStatus.LOCK_NOT_GET)
    return client, lock


def enter_request(
    client_id: int | None,
    request: LockRequest | None,
    bad: Callable[[LockRequest | None], bool],
) -> tuple[MirrorClient, LockEntry, LockRequest]:
    """What `enter_lock` checks, then the lease."""
    lock_id = request.lock_id if isinstance(request, LockRequest) else None
    client, lock = enter_lock(client_id, lock_id, lambda: bad(request))
    assert request is not None  # `bad` says so
    if request.lock_op != _mirror_check.UNLOCK:
        status = client.lease_refusal(lock, request.expire_time)
        if status is not None:
            raise refuse(client, status, lock)
    return client, lock, request
