"""Session tokens: 32 letters and digits, from the system's source of randomness."""

from __future__ import annotations

import os
from typing import Final

TOKEN_CHARACTERS: Final = 32
_ALPHABET: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_EVEN: Final = 256 - 256 % len(_ALPHABET)  # bytes from here on would favour some characters
_TABLE: Final = bytes(_ALPHABET[number % len(_ALPHABET)] for number in range(256))
_DROPPED: Final = bytes(range(_EVEN, 256))
_POOL_BYTES: Final = 8192


class Tokens:
    """Makes tokens. Randomness is fetched for many at once."""

    __slots__ = ("_next", "_pool")

    def __init__(self) -> None:
        self._pool = ""
        self._next = 0

    def new(self) -> str:
        """A token that nobody can guess."""
        start, end = self._next, self._next + TOKEN_CHARACTERS
        if end > len(self._pool):
            self._pool = os.urandom(_POOL_BYTES).translate(_TABLE, _DROPPED).decode("ascii")
            start, end = 0, TOKEN_CHARACTERS
        self._next = end
        return self._pool[start:end]
