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
WHO_CHARACTERS_MAX: Final = 80


class RosterEntry(Frozen):
    """A session. `lease_ms`: the longest lease that it declared, 0: none; `ended`: it is over but
    for leased holds; `verifier`: what its secret is checked against; `who`: host and pid, as it
    said them itself."""

    client_id: int
    lease_ms: int
    ended: bool
    verifier: bytes
    who: str


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
