"""Who holds what at the glockd door, who is called how, and what is counted.

Pure: it answers what glockd's listings and statistics show, from what the service has written down.
Everything is kept in order of arrival, and the listings show it so; the dumps are sorted by name.
"""

from __future__ import annotations

from typing import Final

from dlock.doors.glockd import protocol

_ALWAYS: Final = ("g", "r", "i", "sg", "sr", "si", "d", "sd", "dump", "q")


class Party:
    """One connection, as the others see it."""

    __slots__ = ("address", "name")

    def __init__(self, address: bytes) -> None:
        self.address = address  # as Go prints the peer's, or "unix:N"
        self.name: bytes | None = None  # what it has called itself

    @property
    def called(self) -> bytes:
        """Its name, or its address while it has none."""
        return self.address if self.name is None else self.name


class Tables:
    """The locks of all connections. What a party itself holds stands in the party's own tables, so
    that its end costs what it holds and no more."""

    __slots__ = ("counts", "invalid", "locks", "named", "orphans", "parties", "shared",
                 "shared_orphans")

    def __init__(self) -> None:
        self.locks: dict[bytes, Party] = {}
        self.shared: dict[bytes, dict[Party, None]] = {}
        self.named: dict[Party, None] = {}  # those with a name of their own
        self.parties = 0
        self.counts: dict[str, int] = dict.fromkeys(_ALWAYS, 0)
        self.invalid = 0
        self.orphans = 0
        self.shared_orphans = 0

    # ---- Changes ---------------------------------------------------------------------------------

    def share(self, name: bytes, party: Party) -> int:
        """The party holds this shared lock from now on, if it did not before; how many do."""
        holders = self.shared.setdefault(name, {})
        holders[party] = None
        return len(holders)

    def unshare(self, name: bytes, party: Party) -> None:
        """The party holds it no more."""
        holders = self.shared[name]
        del holders[party]
        if not holders:
            del self.shared[name]

    def call(self, party: Party, name: bytes) -> None:
        """Names a party; an empty name takes its name away."""
        party.name = name or None
        if name:
            self.named[party] = None
        else:
            self.named.pop(party, None)

    # ---- Listings --------------------------------------------------------------------------------

    def list_locks(self, only: bytes) -> bytes:
        """To d: who holds each exclusive lock, or this one."""
        if only:
            holder = self.locks.get(only)
            return b"" if holder is None else b"%b: %b\n" % (only, holder.called)
        return b"".join([b"%b: %b\n" % (name, by.called) for name, by in self.locks.items()])

    def list_shared(self, only: bytes) -> bytes:
        """To sd: each holder of each shared lock, or of this one."""
        wanted = {only: self.shared.get(only, {})} if only else self.shared
        return b"".join(
            [b"%b: %b\n" % (name, by.called) for name, holders in wanted.items() for by in holders]
        )

    def dump(self, what: bytes) -> bytes:
        """To dump: the table as Go prints a map; by addresses, whatever the parties are called."""
        if what == b"shared":
            rows = [
                b"%b:[%b]" % (name, b" ".join([by.address for by in self.shared[name]]))
                for name in sorted(self.shared)
            ]
        else:
            rows = [b"%b:%b" % (name, self.locks[name].address) for name in sorted(self.locks)]
        return b"map[%b]\n" % b" ".join(rows)

    def who(self, only: bytes) -> bytes:
        """To who: the address and name of those who have one, or have this one."""
        return b"".join(
            [
                b"%b: %b\n" % (party.address, party.called)
                for party in self.named
                if not only or party.name == only
            ]
        )

    def me(self, party: Party) -> bytes:
        """To me."""
        return protocol.me(party.address, party.called)

    def statistics(self) -> bytes:
        """To q."""
        shown = {f"command_{verb}": count for verb, count in self.counts.items()}
        shown |= {
            "connections": self.parties,
            "invalid_commands": self.invalid,
            "locks": len(self.locks),
            "orphans": self.orphans,
            "shared_locks": len(self.shared),
            "shared_orphans": self.shared_orphans,
        }
        return "".join([f"{key}: {shown[key]}\n" for key in sorted(shown)]).encode()
