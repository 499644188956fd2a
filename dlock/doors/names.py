"""The names of doors: which descriptor at the server is which name of a protocol. Pure.

    NS:name            an exclusive lock, also one of LDLM's, of any size
    NS+shared:name     a lock that several hold together (glockd's counted ones)
    NS+long:digest     a name that would make the descriptor longer than 512 bytes: its SHA-256
    NS+shared+long:... the same for the shared ones

No namespace can hold a plus or a colon, so that two names never meet in one descriptor. Any bytes
are a name, also none at all.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, NamedTuple

KINDS: Final = {
    "glockd": "dlock.doors.glockd",
    "ldlm": "dlock.doors.ldlm",
    "doubledutch": "dlock.doors.doubledutch",
}
NAMESPACE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
DESCRIPTOR_BYTES_MAX: Final = 512
ROLE: Final = "door:{kind}:{namespace}"


class Named(NamedTuple):
    """A name at the server. `text`: the whole name with its namespace, where the descriptor has
    only its digest; empty where the descriptor says it."""

    descriptor: bytes
    text: bytes = b""


class Names:
    """The names of one namespace. ValueError: this is none."""

    __slots__ = ("_exclusive", "_shared", "namespace")

    def __init__(self, namespace: str) -> None:
        self.namespace = checked(namespace)
        self._exclusive = namespace.encode()
        self._shared = self._exclusive + b"+shared"

    def exclusive(self, name: bytes) -> Named:
        """A lock that one holds, or N slots."""
        return _named(self._exclusive, name)

    def shared(self, name: bytes) -> Named:
        """A lock that several hold together."""
        return _named(self._shared, name)


def checked(namespace: str) -> str:
    """The namespace itself. ValueError if it cannot be one."""
    if not NAMESPACE.fullmatch(namespace):
        raise ValueError(f"{namespace!r} is no namespace: 1 to 64 of A-Z, a-z, 0-9, dot, dash and "
                         f"underscore")
    return namespace


def _named(prefix: bytes, name: bytes) -> Named:
    descriptor = prefix + b":" + name
    if len(descriptor) <= DESCRIPTOR_BYTES_MAX:
        return Named(descriptor)
    return Named(prefix + b"+long:" + hashlib.sha256(name).hexdigest().encode(), descriptor)
