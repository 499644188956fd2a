"""One line of the roster: what a primary writes down of each session before it answers for it.

A primary that starts after it waits for those who stand there, believes a lapsed session only if it
stands there, and lets only the one with the right secret take it up. The state directory keeps the
lines, the registry says what they are. Pure; no secret is ever written.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Final

from dlock._frozen import Frozen

VERIFIER_BYTES: Final = 16
ROLE_BYTES_MAX: Final = 128
WHO_CHARACTERS_MAX: Final = 80
# What clocks may differ by: 0.1 s for their grain, 0.2 % for two that are 0.1 % off.
MARGIN_MS: Final = 100
DRIFT_DIVISOR: Final = 500


class RosterEntry(Frozen):
    """A session. `lease_ms`: the longest lease that it declared, 0: none; `ended`: it is over but
    for leased holds; `verifier`: what its secret is checked against; `who`: host and pid, as it
    said them itself; `role`: which at most one session has; empty: none."""

    client_id: int
    lease_ms: int
    ended: bool
    verifier: bytes
    who: str
    role: str = ""


def verifier_of(secret: bytes) -> bytes:
    """What may be written down of a secret of 16 random bytes."""
    return hashlib.sha256(secret).digest()[:VERIFIER_BYTES]


def is_secret_of(entry: RosterEntry, secret: bytes) -> bool:
    """Is this the secret of that session?"""
    return hmac.compare_digest(entry.verifier, verifier_of(secret))


def who_of(info: Mapping[str, object]) -> str:
    """Host and pid out of what a client says of itself: one line that can be printed."""
    text = " ".join(str(info[key]) for key in ("host", "pid") if key in info)
    return "".join(one if one.isprintable() else "?" for one in text)[:WHO_CHARACTERS_MAX]


def with_margin_ms(base_ms: int) -> int:
    """A duration by another machine's clock, for certain."""
    return base_ms + MARGIN_MS + -(-base_ms // DRIFT_DIVISOR)


def believed_ms(session_ttl_ms: int, lease_ms: int) -> int:
    """How long after the start of a new primary a client may still believe in what a former one
    granted it: the longest of session and lease, from the last moment at which the former may have
    served without noticing that it was replaced (session_ttl / 4)."""
    return with_margin_ms(max(session_ttl_ms, lease_ms) + -(-session_ttl_ms // 4))
