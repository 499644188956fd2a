"""The groups of the tooz driver, said in locks: whatever lasts is a lock that a session holds, so
that it ends with its coordinator and nobody has to sweep up.

    tooz/NAMESPACE/group/GROUP/here               shared by all who created or joined the group
                              /change             held for the moment of a change
                              /member/MEMBER      held by the member's coordinator
                              /member/MEMBER/N/C  C: its capabilities, packed; the highest N counts
                              /leader             held by the leader's coordinator
                              /leads/MEMBER/TOKEN says who that is: the holder of that token

Ids are quoted as in URLs, so that `dlock ls tooz/` can be read. Changes of a group are made under
`change`; who only looks lists the held names that begin with the group's. This file knows the
exceptions of tooz, but no threads, futures or callbacks: that is dlock/tooz_driver.py.
"""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import quote, unquote_to_bytes

import tooz
from tooz import coordination, utils

import dlock

_PAUSE_S: Final = 0.005  # between two looks whether a broken hold has ended; doubled up to:
_PAUSE_MOST_S: Final = 0.2
_NAME_BYTES_MAX: Final = 512

Capabilities = dict[str, Any]


class _Hold(Protocol):
    """A lock object of any kind."""

    @property
    def held(self) -> bool:
        """Is it held now?"""

    def release(self) -> None:
        """Gives it back."""


def name_of(namespace: str, kind: str, one: bytes) -> str:
    """What the server calls this lock or group of the namespace."""
    return f"tooz/{quote(namespace, safe='')}/{kind}/{quote(one, safe='')}"


def take_away(client: dlock.Client, name: str) -> bool:
    """Breaks every hold of this lock, and waits until the holders have heard of it or cannot
    believe in it any more: that is, at most as long as a session lasts. False: nobody held it."""
    tokens = set(client.admin.break_lock(name))
    pause_s, found = _PAUSE_S, bool(tokens)
    while tokens:
        shown = client.admin.show(name)
        tokens &= {holder.token for holder in shown.holders} if shown is not None else set()
        if tokens:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MOST_S)
    return found


def give_back(lock: _Hold | None) -> bool:
    """Releases; False if it was not held any more."""
    try:
        if lock is not None:
            lock.release()
            return True
    except (dlock.NotHeld, dlock.LockLost):
        pass
    return False


@dataclass
class _Member:
    """A membership of this coordinator."""

    lock: dlock.Lock
    capabilities: dlock.Lock | None = None
    version: int = 0


@dataclass
class View:
    """What the server says of a group. `packed`: the capabilities of a member, with their version;
    `stray`: names of capabilities, by member."""

    exists: bool = False
    members: set[bytes] = field(default_factory=set)
    packed: dict[bytes, tuple[int, str]] = field(default_factory=dict)
    stray: dict[bytes, list[str]] = field(default_factory=dict)
    leads: dict[int, bytes] = field(default_factory=dict)

    def capabilities(self, member: bytes) -> Capabilities:
        """Of this member; none were given: an empty dict."""
        if member not in self.packed:
            return {}
        found: Capabilities = utils.loads(base64.urlsafe_b64decode(self.packed[member][1]))
        return found


class Groups:
    """What one coordinator is in and leads. One thread at a time."""

    def __init__(self, client: dlock.Client, namespace: str, member: bytes) -> None:
        self._client = client
        self._namespace = namespace
        self._member = member
        self._here: dict[bytes, _Hold] = {}
        self._members: dict[bytes, _Member] = {}
        self._leading: dict[bytes, tuple[dlock.Lock, dlock.Lock]] = {}

    # ---- Names -----------------------------------------------------------------------------------

    def _name(self, group: bytes, *parts: str) -> str:
        return "/".join((name_of(self._namespace, "group", group), *parts))

    def _lock(self, group: bytes, *parts: str) -> dlock.Lock:
        return self._client.lock(self._name(group, *parts), deadlock=False)

    def _own(self, group: bytes, kind: str, *parts: str) -> dlock.Lock:
        """A lock with the name of this member in it."""
        return self._lock(group, kind, quote(self._member, safe=""), *parts)

    # ---- Looking ---------------------------------------------------------------------------------

    def names(self) -> list[bytes]:
        """Every group there is."""
        prefix = name_of(self._namespace, "group", b"")
        held = self._client.admin.locks(prefix, busy_only=True)
        parts = [(one.name[len(prefix):].split("/"), one.holders) for one in held]
        return [unquote_to_bytes(words[0]) for words, holders in parts
                if words[1:] == ["here"] and holders]

    def view(self, group: bytes) -> View:
        """The group as it is, whether it exists or not."""
        view = View()
        prefix = self._name(group, "")
        for one in self._client.admin.locks(prefix, busy_only=True):
            if one.holders:
                self._enter(view, one.name[len(prefix):].split("/"), one.name)
        return view

    @staticmethod
    def _enter(view: View, words: list[str], name: str) -> None:
        match words:
            case ["here"]:
                view.exists = True
            case ["member", quoted]:
                view.members.add(unquote_to_bytes(quoted))
            case ["member", quoted, version, packed]:
                member = unquote_to_bytes(quoted)
                newest = max(view.packed.get(member, (-1, "")), (int(version), packed))
                view.packed[member] = newest
                view.stray.setdefault(member, []).append(name)
            case ["leads", quoted, token]:
                view.leads[int(token)] = unquote_to_bytes(quoted)

    def existing(self, group: bytes) -> View:
        """The same; GroupNotCreated."""
        view = self.view(group)
        if not view.exists:
            raise coordination.GroupNotCreated(group)
        return view

    def existing_with(self, group: bytes, member: bytes) -> View:
        """The same; GroupNotCreated; MemberNotJoined."""
        view = self.existing(group)
        if member not in view.members:
            raise coordination.MemberNotJoined(group, member)
        return view

    def about(self, group: bytes, member: bytes) -> dict[str, Any]:
        """A member's capabilities, and where and for how long it has been one."""
        view = self.existing_with(group, member)
        about: dict[str, Any] = {"capabilities": view.capabilities(member)}
        shown = self._client.admin.show(self._name(group, "member", quote(member, safe="")))
        for one in shown.holders[:1] if shown is not None else ():
            about.update(host=one.host, pid=one.pid, user=one.user, job=one.job, since=one.since_s)
        return about

    # ---- Changing --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _changing(self, group: bytes) -> Iterator[View]:
        """The group as it stays until the end of the block, but for those whose sessions end."""
        with self._lock(group, "change"):
            yield self.view(group)

    def create(self, group: bytes) -> None:
        """GroupAlreadyExist."""
        with self._changing(group) as view:
            if view.exists:
                raise coordination.GroupAlreadyExist(group)
            self._stay(group)

    def _stay(self, group: bytes) -> None:
        """The group exists as long as this coordinator."""
        here = self._here.get(group)
        if here is None or not here.held:
            fresh = self._client.rwlock(self._name(group, "here"), deadlock=False).read()
            fresh.acquire()
            self._here[group] = fresh
            give_back(here)

    def delete(self, group: bytes) -> None:
        """GroupNotCreated; GroupNotEmpty."""
        with self._changing(group) as view:
            if not view.exists:
                raise coordination.GroupNotCreated(group)
            if view.members:
                raise coordination.GroupNotEmpty(group)
            give_back(self._here.pop(group, None))
            take_away(self._client, self._name(group, "here"))

    def join(self, group: bytes, capabilities: Capabilities | None) -> None:
        """GroupNotCreated; MemberAlreadyExist; ToozError: too long capabilities."""
        with self._changing(group) as view:
            if not view.exists:
                raise coordination.GroupNotCreated(group)
            if self._member in view.members:
                raise coordination.MemberAlreadyExist(group, self._member)
            for name in view.stray.get(self._member, ()):  # of one that was put out by an operator
                take_away(self._client, name)
            self._stay(group)
            joined = _Member(self._own(group, "member"))
            # First, so that a member is never seen without its capabilities.
            joined.capabilities = self._saying(group, joined, capabilities)
            if not joined.lock.acquire(blocking=False):
                give_back(joined.capabilities)
                raise coordination.MemberAlreadyExist(group, self._member)
            self._members[group] = joined

    def _saying(
        self, group: bytes, joined: _Member, capabilities: Capabilities | None
    ) -> dlock.Lock | None:
        """A hold that says what this member can do; None: nothing."""
        if not capabilities:
            return None
        packed = base64.urlsafe_b64encode(utils.dumps(capabilities)).decode()
        words = (quote(self._member, safe=""), str(joined.version), packed)
        length = len(self._name(group, "member", *words))
        if length > _NAME_BYTES_MAX:
            raise tooz.ToozError(
                f"the capabilities of {self._member!r} are {len(packed)} bytes when packed, "
                f"{length - _NAME_BYTES_MAX} more than fit into a name with its ids; put them "
                "elsewhere and a reference here")
        said = self._lock(group, "member", *words)
        said.acquire()
        return said

    def update(self, group: bytes, capabilities: Capabilities) -> None:
        """GroupNotCreated; MemberNotJoined; ToozError: too long capabilities."""
        with self._changing(group) as view:
            joined = self._members.get(group)
            if not view.exists:
                raise coordination.GroupNotCreated(group)
            if joined is None or not joined.lock.held:
                raise coordination.MemberNotJoined(group, self._member)
            joined.version += 1
            former = joined.capabilities
            # None at all is said too, or others would see the former ones for a moment longer.
            joined.capabilities = self._saying(group, joined, capabilities)
            give_back(former)

    def leave(self, group: bytes) -> None:
        """GroupNotCreated; MemberNotJoined. Another coordinator with the same member id is put
        out of the group, if this one is not in it."""
        joined = self._members.pop(group, None)
        if joined is not None:
            was_member = give_back(joined.lock)
            give_back(joined.capabilities)
            if not was_member:
                raise coordination.MemberNotJoined(group, self._member)
            return
        with self._changing(group):
            view = self.existing_with(group, self._member)
            take_away(self._client, self._name(group, "member", quote(self._member, safe="")))
            for name in view.stray.get(self._member, ()):
                take_away(self._client, name)

    # ---- Leading ---------------------------------------------------------------------------------

    def run_for(self, group: bytes) -> bool:
        """True: this coordinator has become the leader just now."""
        leading = self._leading.get(group)
        if leading is not None:
            if not leading[0].lost.is_set():
                return False
            self.stand_down(group)
        leader = self._lock(group, "leader")
        if not leader.acquire(blocking=False):
            return False
        says = self._own(group, "leads", str(leader.token))
        says.acquire()
        self._leading[group] = (leader, says)
        return True

    def stand_down(self, group: bytes) -> bool:
        """False: this coordinator was not the leader."""
        leading = self._leading.pop(group, None)
        if leading is None:
            return False
        leader, says = leading
        give_back(says)
        return give_back(leader)

    def leader(self, group: bytes) -> bytes | None:
        """The member that leads now."""
        shown = self._client.admin.show(self._name(group, "leader"))
        leads = self.view(group).leads
        for holder in shown.holders if shown is not None else ():
            return leads.get(holder.token)
        return None
