"""The command line of glockd, read as Go's `flag` package reads one.

A flag may have one dash or two; its value follows as the next word or after `=`. A flag that is
true or false takes no next word. Reading ends at the first word that is no flag, or after `--`, and
what is left is not looked at. Pure: what is wrong comes back as an exception with its exit code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

BAD_FLAGS: Final = 2
_TRUE: Final = ("1", "t", "T", "TRUE", "true", "True")
_FALSE: Final = ("0", "f", "F", "FALSE", "false", "False")
_INT_MAX: Final = (1 << 63) - 1


@dataclass(frozen=True)
class Flags:
    """What glockd is told."""

    dump: bool = True
    host: str = ""  # not of the original
    pidfile: str = ""
    port: int = 9999
    registry: bool = True
    unix: str = ""
    verbose: bool = False
    ws: int = 9998


_MEANINGS: Final = {
    "dump": "Answer d, sd, dump and who.",
    "host": "Address to listen on with -port and -ws; '': all of this machine.",
    "pidfile": "File for the process id, locked while the door runs (required).",
    "port": "TCP port to listen on; 0: none.",
    "registry": "Let connections give themselves names.",
    "unix": "Path of a unix socket to listen on; '': none.",
    "verbose": "Print what connections do.",
    "ws": "TCP port to listen on for websockets; 0: none.",
}


class FlagsError(Exception):
    """The flags ask for help (code 0), or are wrong: the text is for stderr."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.text = text
        self.code = code


def usage() -> str:
    """What -h prints."""
    shown = ["Usage of glockd:"]
    for field in fields(Flags):
        default = field.default
        kind = {"bool": "", "int": " int", "str": " string"}[str(field.type)]
        shown.append(f"  -{field.name}{kind}")
        end = f" (default {str(default).lower()})" if default else ""
        shown.append(f"    \t{_MEANINGS[field.name]}{end}")
    return "\n".join([*shown, ""])


def _refused(problem: str) -> FlagsError:
    return FlagsError(f"{problem}\n{usage()}", BAD_FLAGS)


def _int(text: str) -> int:
    """As Go reads an int: also 0x1F, 0b1, 0o17, 017 and 1_000. ValueError says what is wrong."""
    digits = text.lstrip("+-")
    if len(text) - len(digits) > 1 or not digits.isascii() or digits != digits.strip():
        raise ValueError("parse error")
    old_octal = len(digits) > 1 and digits[0] == "0" and digits[1] in "01234567_"
    try:
        value = int(f"0o{digits[1:]}" if old_octal else digits, 0)
    except ValueError:
        raise ValueError("parse error") from None
    value = -value if text.startswith("-") else value
    if not -_INT_MAX - 1 <= value <= _INT_MAX:
        raise ValueError("value out of range")
    return value


def parse(words: Sequence[str]) -> Flags:
    """Reads the words after the program's name. FlagsError."""
    kinds = {field.name: str(field.type) for field in fields(Flags)}
    found: dict[str, bool | int | str] = {}
    left = list(words)
    while left and len(left[0]) > 1 and left[0][0] == "-":
        word = left.pop(0)
        if word == "--":
            break
        text = word[2:] if word.startswith("--") else word[1:]
        if not text or text[0] in "-=":
            raise _refused(f"bad flag syntax: {word}")
        name, equals, value = text.partition("=")
        if name not in kinds:
            if name in ("h", "help"):
                raise FlagsError(usage(), 0)
            raise _refused(f"flag provided but not defined: -{name}")
        if kinds[name] == "bool":
            given = value if equals else "true"
            if given not in (*_TRUE, *_FALSE):
                raise _refused(f'invalid boolean value "{given}" for -{name}: parse error')
            found[name] = given in _TRUE
            continue
        if not equals:
            if not left:
                raise _refused(f"flag needs an argument: -{name}")
            value = left.pop(0)
        try:
            found[name] = _int(value) if kinds[name] == "int" else value
        except ValueError as problem:
            raise _refused(f'invalid value "{value}" for flag -{name}: {problem}') from None
    return Flags(**found)  # type: ignore[arg-type] # each was read as its field's kind
