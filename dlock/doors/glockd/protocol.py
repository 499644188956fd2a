"""The line protocol of glockd: bytes cut into lines, a line into a verb and a name; the replies.

Pure: it knows of no sockets, no locks and no clock. Names are bytes and pass through untouched,
whatever they are; only white space is made even, and what is white space is Go's matter: that of
ASCII, and what Unicode calls so where it stands in valid UTF-8.

The line ends of the replies are not even (some end with CR LF, some with LF alone). They are kept,
since clients may compare whole replies.
"""

from __future__ import annotations

import re
from typing import Final

LINE_MAX: Final = 256 * 1024  # bytes of a line; who sends longer ones is hung up on

VERBS: Final = frozenset(
    ("g", "r", "i", "sg", "sr", "si", "d", "sd", "dump", "me", "iam", "who", "q")
)

_BY_BYTES: Final = {verb.encode(): verb for verb in VERBS}
_BLANK: Final = (
    rb"(?:[\t\n\x0b\x0c\r ]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]"
    rb"|\xe2\x81\x9f|\xe3\x80\x80)+"
)
_BLANKS: Final = re.compile(_BLANK)


def words(text: bytes) -> list[bytes]:
    """What stands between white space."""
    if text.isascii():
        return text.split()
    return [word for word in _BLANKS.split(text) if word]


def parse(line: bytes) -> tuple[str | None, bytes]:
    """The verb and the name in a line; None for the verb: there is no such command.

    The verb ends at the first blank proper: after a tab nothing is a name, unless a blank follows.
    """
    ascii_only = line.isascii()
    if ascii_only:
        text = line.lstrip()
    else:
        leading = _BLANKS.match(line)
        text = line[leading.end() :] if leading is not None else line
    head, _, rest = text.partition(b" ")
    name = words(rest)
    if not name:  # then the blanks at the end of the line are no part of the verb
        alone = words(head)
        if len(alone) != 1:
            return None, b""
        (head,) = alone
    return _BY_BYTES.get(head), b" ".join(name)


class Lines:
    """Cuts what arrives into lines, whatever the pieces that it arrives in."""

    __slots__ = ("_tail", "overlong")

    def __init__(self) -> None:
        self._tail = bytearray()
        self.overlong = False  # a line is longer than LINE_MAX: nothing is a line from there on

    @property
    def within(self) -> bool:
        """Has a line begun that has no end yet?"""
        return bool(self._tail)

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole now, without their ends."""
        if self.overlong:
            return []
        *whole, last = data.split(b"\n")
        if whole and self._tail:
            whole[0] = bytes(self._tail) + whole[0]
            self._tail.clear()
        for index, line in enumerate(whole):
            if len(line) > LINE_MAX:
                self.overlong = True
                return whole[:index]
        self._tail += last
        if len(self._tail) > LINE_MAX:
            self.overlong = True
            self._tail.clear()
        return whole

    def end(self) -> list[bytes]:
        """After the last byte: the line that has no end, if there is one."""
        last = bytes(self._tail)
        self._tail.clear()
        return [last] if last else []


# ---- Replies -------------------------------------------------------------------------------------

DISABLED: Final = b"0 disabled\n"
OK: Final = b"1 ok\n"


def got(name: bytes) -> bytes:
    """To g: it was free, and is now the asker's."""
    return b"1 Lock Get Success: %b\r\n" % name


def got_before(name: bytes) -> bytes:
    """To g: the asker has it already."""
    return b"1 Lock Get Success: %b\n" % name


def not_got(name: bytes) -> bytes:
    """To g: somebody else has it."""
    return b"0 Lock Get Failure: %b\r\n" % name


def released(name: bytes) -> bytes:
    """To r."""
    return b"1 Lock Release Success: %b\n" % name


def not_released(name: bytes) -> bytes:
    """To r: it is not the asker's."""
    return b"0 Lock Release Failure: %b\n" % name


def locked_by_asker(name: bytes) -> bytes:
    """To i."""
    return b"1 Lock Is Locked: %b\n" % name


def locked(name: bytes) -> bytes:
    """To i: by somebody else."""
    return b"1 Lock Is Locked: %b\r\n" % name


def not_locked(name: bytes) -> bytes:
    """To i."""
    return b"0 Lock Not Locked: %b\r\n" % name


def shared_got(name: bytes, count: int) -> bytes:
    """To sg: `count` holders now."""
    return b"%d Shared Lock Get Success: %b\r\n" % (count, name)


def shared_not_got(name: bytes) -> bytes:
    """To sg: it cannot be had. glockd itself never says so; a client that reads the number of a
    reply understands it."""
    return b"0 Shared Lock Get Failure: %b\r\n" % name


def shared_released(name: bytes) -> bytes:
    """To sr."""
    return b"1 Shared Lock Release Success: %b\r\n" % name


def shared_not_released(name: bytes) -> bytes:
    """To sr: the asker does not hold it."""
    return b"0 Shared Lock Release Failure: %b\r\n" % name


def shared_locked(name: bytes, count: int) -> bytes:
    """To si: `count` holders."""
    if count == 0:
        return b"0 Shared Lock Not Locked: %b\r\n" % name
    return b"%d Shared Lock Is Locked: %b\r\n" % (count, name)


def me(address: bytes, called: bytes) -> bytes:
    """To me."""
    return b"1 %b %b\n" % (address, called)
