"""A driver for tooz, the coordination library of OpenStack: `dlock://HOST:PORT[/NAMESPACE]`.

    coordinator = tooz.coordination.get_coordinator("dlock://node7:21616/cinder", b"host-1")

Locks are reader-writer locks of dlock, everything else is said in held locks
(dlock/_tooz_groups.py). The library keeps a coordinator's session alive by itself; `heartbeat` only
says how it is. Options of the URL: `connect_timeout` (seconds), `address_file` (in the place of
HOST:PORT), `executor` as for other drivers. Importing this module needs tooz: `dlock[tooz]`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import tooz
from tooz import coordination, locking, utils
from tooz.coordination import Characteristics, CoordinatorResult

import dlock
from dlock._tooz_groups import Capabilities, Groups, name_of, take_away

_CONNECT_TIMEOUT_S: Final = 10.0
_NAMESPACE: Final = "default"

T = TypeVar("T")


@contextlib.contextmanager
def _as_tooz() -> Iterator[None]:
    """Errors of dlock become errors of tooz."""
    try:
        yield
    except dlock.ConnectError as error:
        raise coordination.ToozConnectionError(str(error), cause=error) from error
    except dlock.DlockError as error:
        raise tooz.ToozError(str(error), cause=error) from error


class DlockLock(locking.Lock):
    """A lock of the driver: exclusive, or shared with others who ask for that. An object may be
    acquired shared several times; each acquisition is released once."""

    def __init__(self, driver: DlockDriver, client: dlock.Client, name: bytes, key: str) -> None:
        super().__init__(name)
        self._driver = driver
        self._client = client
        self._key = key
        lock = client.rwlock(key)
        self._write, self._read = lock.write(), lock.read()

    def acquire(
        self, blocking: bool | float | str = True, shared: bool = False,
        timeout: float | None = None,
    ) -> bool:
        """`blocking` may be a number: the seconds to wait. ToozConnectionError; ToozError: the wait
        would never end, since those in the way wait for what this thread holds."""
        waits, seconds = utils.convert_blocking(blocking, timeout)
        face = self._read if shared else self._write
        with _as_tooz():
            acquired = face.acquire(waits, -1 if seconds is None or not waits else seconds)
        if acquired:
            self._driver.keep(self)
        return acquired

    def release(self) -> bool:
        """False: it was not held, or not any more."""
        with _as_tooz():
            for face in (self._write, self._read):
                try:
                    face.release()
                except dlock.NotHeld:
                    continue
                except dlock.LockLost:
                    return False
                finally:
                    if not (self._write.tokens or self._read.tokens):
                        self._driver.let_go(self)
                return True
        return False

    def break_(self) -> bool:
        """Takes the lock from whoever holds it, and returns when they know or can no longer believe
        in it. False: nobody held it."""
        with _as_tooz():
            return take_away(self._client, self._key)

    def is_still_owner(self) -> bool:
        """By this client's own clock; no question to the server."""
        return self._write.held or self._read.held

    @property
    def acquired(self) -> bool:
        """Does this object hold the lock?"""
        return self.is_still_owner()


class DlockDriver(
    coordination.CoordinationDriverCachedRunWatchers, coordination.CoordinationDriverWithExecutor
):
    """One coordinator: a client of dlock, from `start` to `stop`."""

    # What every operation keeps. Locks and leaders are linearizable besides; a list of members is
    # not, when the server has more locks than it looks through at a time (4096). NON_TIMEOUT_BASED
    # as etcd and ZooKeeper have it: nobody has to beat, the end of a session ends what it held.
    CHARACTERISTICS = (
        Characteristics.NON_TIMEOUT_BASED,
        Characteristics.DISTRIBUTED_ACROSS_THREADS,
        Characteristics.DISTRIBUTED_ACROSS_PROCESSES,
        Characteristics.DISTRIBUTED_ACROSS_HOSTS,
        Characteristics.SAME_VIEW_UNDER_PARTITIONS,
        Characteristics.SAME_VIEW_ACROSS_CLIENTS,
    )

    def __init__(self, member_id: bytes, parsed_url: Any, options: dict[str, Any]) -> None:
        super().__init__(member_id, parsed_url, options)
        self._member = utils.to_binary(member_id, "utf-8")
        self._address = self._options.get("address_file") or parsed_url.netloc or None
        if "address_file" in self._options:
            self._address = f"file:{self._address}"
        self._namespace = parsed_url.path.strip("/") or _NAMESPACE
        self._timeout = float(self._options.get("connect_timeout", _CONNECT_TIMEOUT_S))
        self._client: dlock.Client | None = None
        self._groups: Groups | None = None
        self._changing = threading.Lock()
        self._acquired: set[DlockLock] = set()

    # ---- Its life --------------------------------------------------------------------------------

    def _start(self) -> None:
        name = f"tooz {self._member.decode('utf-8', 'backslashreplace')}"
        with _as_tooz():
            try:
                client = dlock.connect(self._address, timeout=self._timeout, name=name)
            except ValueError as error:
                raise tooz.ToozError(str(error), cause=error) from error
        self._client = client
        self._groups = Groups(client, self._namespace, self._member)

    def _stop(self) -> None:
        """Everything that this coordinator held or led is free when this returns."""
        client, self._client, self._groups = self._client, None, None
        if client is not None:
            client.close()
        for lock in self._acquired.copy():
            self.let_go(lock)

    def _started_client(self) -> dlock.Client:
        if self._client is None:
            raise tooz.ToozError("the dlock coordinator has not been started")
        return self._client

    def heartbeat(self) -> float:
        """Seconds until the next one is of use. The library beats by itself, so nothing depends on
        it; ToozConnectionError when the server has been silent for a session's time."""
        left_s = self._started_client().session_left
        if left_s <= 0:
            raise coordination.ToozConnectionError(
                "the dlock server is silent: locks and memberships could have ended")
        return left_s

    # ---- Locks -----------------------------------------------------------------------------------

    def get_lock(self, name: bytes) -> DlockLock:
        """A lock of this name; each object excludes the others."""
        key = name_of(self._namespace, "lock", utils.to_binary(name, "utf-8"))
        return DlockLock(self, self._started_client(), name, key)

    def keep(self, lock: DlockLock) -> None:
        """It is held until it is released or the coordinator stops, also if nobody refers to it."""
        self._acquired.add(lock)

    def let_go(self, lock: DlockLock) -> None:
        """The contrary of `keep`."""
        self._acquired.discard(lock)

    # ---- Groups ----------------------------------------------------------------------------------

    def _submit(self, work: Callable[[Groups], T]) -> CoordinatorResult[T]:
        groups = self._groups
        if groups is None:
            raise tooz.ToozError("the dlock coordinator has not been started")

        def run() -> T:
            with _as_tooz(), self._changing:
                return work(groups)

        return CoordinatorResult(self._executor.submit(run))

    def create_group(self, group_id: bytes) -> CoordinatorResult[None]:
        """It exists while a coordinator runs that has created or joined it."""
        return self._submit(lambda groups: groups.create(_bytes(group_id)))

    def get_groups(self) -> CoordinatorResult[list[bytes]]:
        """All groups of the namespace."""
        return self._submit(lambda groups: groups.names())

    def delete_group(self, group_id: bytes) -> CoordinatorResult[None]:
        """A group without members, whoever has created it."""
        return self._submit(lambda groups: groups.delete(_bytes(group_id)))

    def join_group(
        self, group_id: bytes, capabilities: Capabilities | None = None
    ) -> CoordinatorResult[None]:
        """`capabilities`: some 300 bytes, they are part of a name."""

        def join(groups: Groups) -> None:
            groups.join(_bytes(group_id), capabilities)
            self._joined_groups.add(group_id)

        return self._submit(join)

    def leave_group(self, group_id: bytes) -> CoordinatorResult[None]:
        """Also puts out another coordinator with the same member id."""

        def leave(groups: Groups) -> None:
            self._joined_groups.discard(group_id)
            groups.leave(_bytes(group_id))

        return self._submit(leave)

    def get_members(self, group_id: bytes) -> CoordinatorResult[set[bytes]]:
        """The ids of all members."""
        return self._submit(lambda groups: groups.existing(_bytes(group_id)).members)

    def get_member_capabilities(
        self, group_id: bytes, member_id: bytes
    ) -> CoordinatorResult[Capabilities | None]:
        """What the member said of itself; nothing: an empty dict."""
        group, member = _bytes(group_id), _bytes(member_id)
        return self._submit(
            lambda groups: groups.existing_with(group, member).capabilities(member))

    def get_members_with_capabilities(
        self, group_id: bytes
    ) -> CoordinatorResult[dict[bytes, Capabilities | None]]:
        """All members and what they said of themselves, in one question to the server."""

        def collect(groups: Groups) -> dict[bytes, Capabilities | None]:
            view = groups.existing(_bytes(group_id))
            return {member: view.capabilities(member) for member in view.members}

        return self._submit(collect)

    def get_member_info(
        self, group_id: bytes, member_id: bytes
    ) -> CoordinatorResult[dict[str, Any]]:
        """Capabilities, host, pid, user, job, and since how many seconds."""
        return self._submit(lambda groups: groups.about(_bytes(group_id), _bytes(member_id)))

    def update_capabilities(
        self, group_id: bytes, capabilities: Capabilities
    ) -> CoordinatorResult[None]:
        """In the place of the former ones."""
        return self._submit(lambda groups: groups.update(_bytes(group_id), capabilities))

    # ---- Leaders ---------------------------------------------------------------------------------

    def get_leader(self, group_id: bytes) -> CoordinatorResult[Any]:
        """The member that leads, as bytes; None: nobody."""
        return self._submit(lambda groups: groups.leader(_bytes(group_id)))

    def stand_down_group_leader(self, group_id: bytes) -> bool:
        """False: it did not lead."""
        stood: bool = self._submit(lambda groups: groups.stand_down(_bytes(group_id))).get()
        return stood

    def run_elect_coordinator(self) -> None:
        """Tries to lead each group whose election is watched; calls back where that is new."""
        for group_id in list(self._hooks_elected_leader):
            if self._elected(group_id):
                self._hooks_elected_leader[group_id].run(
                    coordination.LeaderElected(group_id, self._member_id))

    def _elected(self, group_id: bytes) -> bool:
        elected: bool = self._submit(lambda groups: groups.run_for(_bytes(group_id))).get()
        return elected

    def run_watchers(self, timeout: float | None = None) -> list[Any]:
        """Joined and left members since the last time, then the election."""
        result: list[Any] = super().run_watchers(timeout=timeout)
        self.run_elect_coordinator()
        return result


def _bytes(one: bytes | str) -> bytes:
    found: bytes = utils.to_binary(one, "utf-8")
    return found
