"""The words of doors: ours and the original's, on the command line of `dlock door` and in what
`dlock serve` is told. Pure; it knows the kinds, and nothing of their protocols."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dlock.cli.settings import Kind, nearest
from dlock.doors.names import KINDS, checked

OPTIONS: Final = ("--connect", "--namespace", "--ready-file")
OF_SERVE: Final = {"--check": 1, "--parent": 2}  # how many words each is
KEYS: Final = ("kind", "namespace", "ready-file", "flags")


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands behind `dlock door`, as ours and the original's. Ours come first; from the first
    word that is none of them on, everything is the original's."""
    ours, rest = list(words[:1]), list(words[1:])
    if ours and ours[0].startswith("-"):
        return list(words), []  # dlock door --help
    while rest:
        name, equals, _ = rest[0].partition("=")
        if rest[0] in OF_SERVE:
            length = OF_SERVE[rest[0]]
        elif name in OPTIONS:
            length = 1 if equals else 2
        else:
            break
        ours += rest[:length]
        rest = rest[length:]
    return ours, rest


@dataclass(frozen=True, slots=True)
class Wish:
    """One door that `dlock serve` is to run: its namespace, its ready file ("": none), and the
    original's words."""

    kind: str
    namespace: str
    ready_file: str = ""
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As `--door` takes it."""
        return f"{self.kind}={shlex.join([*self.ours(), *self.flags])}"

    def ours(self) -> list[str]:
        """Our words, as far as they are not what they are anyway."""
        words = [] if self.namespace == self.kind else ["--namespace", self.namespace]
        return [*words, *(["--ready-file", self.ready_file] if self.ready_file else [])]

    def table(self) -> dict[str, object]:
        """As TOML has it."""
        written = {"kind": self.kind, "namespace": self.namespace, "ready-file": self.ready_file,
                   "flags": list(self.flags)}
        return {name: value for name, value in written.items() if value}


def parse_wish(text: str) -> Wish:
    """The wish in KIND='words'. ValueError says what is wrong with it."""
    kind, equals, words_text = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not KIND='words'; a kind alone is written {text}=")
    try:
        words = shlex.split(words_text)
    except ValueError as problem:
        raise ValueError(f"{words_text!r} cannot be split into words: {problem}") from None
    ours, flags = split([kind, *words])
    given = _given(ours[1:])
    return wish(kind, given.get("--namespace"), given.get("--ready-file", ""), tuple(flags))


def _given(ours: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    rest = list(ours)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name not in OPTIONS:
            raise ValueError(f"{name} is for this program to say, not for its user")
        if name == "--connect":
            raise ValueError("--connect is not to be given: the door serves from this primary")
        if not equals and not rest:
            raise ValueError(f"{name} needs a value")
        found[name] = value if equals else rest.pop(0)
    return found


def wish(kind: str, namespace: str | None, ready_file: str, flags: tuple[str, ...]) -> Wish:
    """ValueError: no such kind, or no such namespace."""
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of door; there are {', '.join(KINDS)}"
                         f"{nearest(kind, KINDS)}")
    return Wish(kind, checked(kind if namespace is None else namespace), ready_file, flags)


def wish_of_table(table: Mapping[str, Any], folder: Path) -> Wish:
    """A [[door]] of TOML; the ready file is seen from this folder. ValueError."""
    for name in table:
        if name not in KEYS:
            raise ValueError(f"there is no key {name!r}; there are {', '.join(KEYS)}")
    texts = {name: table.get(name, "") for name in KEYS[:3]}
    for name, value in texts.items():
        if not isinstance(value, str):
            raise ValueError(f"{name} is {value!r}; it takes a text")
    flags = table.get("flags", [])
    if not isinstance(flags, list) or not all(isinstance(one, str) for one in flags):
        raise ValueError(f"flags is {flags!r}; it takes a list of texts, a word each")
    if "kind" not in table:
        raise ValueError("it has no kind")
    file = str(folder / Path(texts["ready-file"]).expanduser()) if texts["ready-file"] else ""
    return wish(texts["kind"], texts["namespace"] if "namespace" in table else None, file,
                tuple(flags))


def twice(wishes: Sequence[Wish]) -> Wish | None:
    """One whose kind and namespace another one has too: each of them would end the other."""
    seen = set()
    for one in wishes:
        if (one.kind, one.namespace) in seen:
            return one
        seen.add((one.kind, one.namespace))
    return None


DOORS: Final = Kind("KIND='words'", parse_wish, (list,), str, of_table=wish_of_table,
                    as_table=Wish.table)
