"""The bytes of a state file: what a primary has promised, for the one that comes after it. Pure.

The first line says whose it is, behind a checksum of all that follows; then there is one line a
session, kept as bytes by a running primary, so that it writes the file by joining them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

from dlock._frozen import Frozen
from dlock.control.fields import U32_MAX, U64_MAX
from dlock.control.messages_base import EPOCH_MAX, ID_MAX
from dlock.control.registry_effects import (
    Persist,
    PersistEnded,
    PersistLease,
    PersistSession,
    PersistStruck,
)
from dlock.control.roster import (
    ROLE_BYTES_MAX,
    VERIFIER_BYTES,
    WHO_CHARACTERS_MAX,
    RosterEntry,
    believed_ms,
)

FORMAT: Final = 2
HEADER_BYTES_MAX: Final = 4096
STATE_BYTES_MAX: Final = 1 << 26  # 100,000 sessions with the longest lines need less

class State(Frozen):
    """The content of a file. `machine`: the boot of the machine that it was written on; `late`: the
    epochs of former primaries that may not have stopped, whose files are to be read again;
    `durable`: there is a durable store beside it (durable_files)."""

    epoch: int
    incarnation: int
    session_ttl_ms: int = 0
    machine: str = ""
    late: tuple[int, ...] = ()
    roster: Mapping[int, RosterEntry] = MappingProxyType({})
    durable: bool = False


Value = TypeVar("Value", bound=Frozen)


def changed(value: Value, **changes: Any) -> Value:
    """The same but for these fields."""
    return type(value)(**{**vars(value), **changes})


def encode_entry(entry: RosterEntry) -> bytes:
    """One line of the roster. A session without a role has no field for it: that is how earlier
    versions wrote their lines, and how they can read them."""
    fields = [entry.client_id, entry.lease_ms, int(entry.ended), entry.verifier.hex(), entry.who]
    return json.dumps([*fields, entry.role] if entry.role else fields).encode()


def encode_state(state: State, lines: Iterable[bytes] | None = None) -> bytes:
    """The file's bytes; `lines`: its roster, if that is encoded already."""
    if lines is None:
        lines = map(encode_entry, state.roster.values())
    header = json.dumps({"format": FORMAT, "epoch": state.epoch, "incarnation": state.incarnation,
                         "session_ttl_ms": state.session_ttl_ms, "machine": state.machine,
                         "late": state.late,
                         **({"durable": True} if state.durable else {})})
    body = b"\n".join([header.encode(), *lines, b""])
    return b"%08x " % zlib.crc32(body) + body


def decode_state(data: bytes) -> State:
    """ValueError says what is wrong."""
    if len(data) > STATE_BYTES_MAX:
        raise ValueError(f"it has more than {STATE_BYTES_MAX} bytes")
    checksum, space, body = data.partition(b" ")
    if not space or checksum != b"%08x" % zlib.crc32(body) or not body.endswith(b"\n"):
        raise ValueError("its checksum is wrong")
    first, *lines = body[:-1].split(b"\n")
    entries = map(_decode_entry, json.loads(b"[" + b",".join(lines) + b"]"))
    return changed(decode_header(first), roster={one.client_id: one for one in entries})


def decode_header(line: bytes) -> State:
    fields = json.loads(line)
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise ValueError(f"it is not of format {FORMAT}")
    durable = fields.pop("durable", False)
    if type(durable) is not bool or fields.keys() != {
            "epoch", "incarnation", "session_ttl_ms", "machine", "late"}:
        raise ValueError("its fields are not the known ones")
    for name, high in (
        ("epoch", EPOCH_MAX), ("incarnation", U64_MAX), ("session_ttl_ms", U32_MAX)
    ):
        _check_number(name, fields[name], high)
    if not isinstance(fields["machine"], str) or not isinstance(fields["late"], list):
        raise ValueError("machine is no text or late no list")
    for epoch in fields["late"]:
        _check_number("late", epoch, EPOCH_MAX)
    return State(**{**fields, "late": tuple(fields["late"]), "durable": durable})


def _decode_entry(line: Any) -> RosterEntry:
    if not isinstance(line, list) or len(line) not in (5, 6):
        raise ValueError("a line of the roster is not of five or six fields")
    client_id, lease_ms, ended, verifier, who, role = line if len(line) == 6 else [*line, ""]
    for name, value, high in (
        ("a client id", client_id, ID_MAX), ("a lease", lease_ms, U32_MAX), ("ended", ended, 1)
    ):
        _check_number(name, value, high)
    if not isinstance(verifier, str) or len(bytes.fromhex(verifier)) != VERIFIER_BYTES:
        raise ValueError("a verifier is not of 16 bytes")
    if not isinstance(who, str) or len(who) > WHO_CHARACTERS_MAX:
        raise ValueError(f"a name is no text of at most {WHO_CHARACTERS_MAX} characters")
    if not isinstance(role, str) or len(role.encode("utf-8", "surrogatepass")) > ROLE_BYTES_MAX:
        raise ValueError(f"a role is no text of at most {ROLE_BYTES_MAX} bytes")
    return RosterEntry(client_id, lease_ms, bool(ended), bytes.fromhex(verifier), who, role)


def _check_number(name: str, value: object, high: int) -> None:
    if type(value) is not int or not 0 <= value <= high:
        raise ValueError(f"{name} is not in 0..{high}")


# ---- The sessions of a primary -------------------------------------------------------------------


class Roster:
    """Who has a session here, and each one's line, so that a file is written by joining them."""

    def __init__(self, entries: Mapping[int, RosterEntry] | None = None) -> None:
        self.entries: dict[int, RosterEntry] = dict(entries or {})
        self.lines = {one: encode_entry(entry) for one, entry in self.entries.items()}

    def apply(self, effect: Persist) -> None:
        """Carries out in memory what is to be on disk."""
        if isinstance(effect, PersistSession):
            self._put(effect.entry)
        elif isinstance(effect, PersistStruck):
            self.entries.pop(effect.client_id, None)
            self.lines.pop(effect.client_id, None)
        elif isinstance(effect, PersistLease | PersistEnded):
            entry = self.entries.get(effect.client_id)
            if entry is not None and isinstance(effect, PersistLease):
                self._put(changed(entry, lease_ms=max(entry.lease_ms, effect.lease_ms)))
            elif entry is not None:
                self._put(changed(entry, ended=True))

    def _put(self, entry: RosterEntry) -> None:
        self.entries[entry.client_id] = entry
        self.lines[entry.client_id] = encode_entry(entry)


# ---- Format 1 ------------------------------------------------------------------------------------


class Format1(Frozen):
    """What a primary of an earlier version left: that there may be clients, not who. For settle_ms
    from the start of the next one they could believe in what it granted."""

    epoch: int
    settle_ms: int


def decode_format_1(data: bytes) -> Format1:
    """ValueError says what is wrong."""
    checksum, _, body = data.rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % zlib.crc32(body):
        raise ValueError("its checksum is wrong")
    fields = json.loads(body)
    if not isinstance(fields, dict) or fields.get("format") != 1:
        raise ValueError("it is not of format 1")
    for name, high in (("epoch", EPOCH_MAX), ("session_ttl_ms", U32_MAX),
                       ("longest_lease_ms", U32_MAX)):
        _check_number(name, fields.get(name), high)
    settle_ms = believed_ms(fields["session_ttl_ms"], fields["longest_lease_ms"])
    return Format1(fields["epoch"], settle_ms if fields.get("sessions_open") else 0)
