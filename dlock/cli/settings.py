"""Settings that a flag, the environment or a TOML file may give, each declared once.

From one table of `Setting` come the flag `--max-locks`, the variable `DLOCK_MAX_LOCKS`, the TOML
key `max-locks` and the row of the documentation. A flag stands over the environment, the
environment over the file, the file over the default. What is written there is checked by the same
function, whichever of the three it came from, and a fault names the place that it came from.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX: Final = "DLOCK_"
CONFIG_VARIABLE: Final = "DLOCK_CONFIG"
FILE_BYTES_MAX: Final = 1 << 20
DEFAULT: Final = "default"


class SettingError(Exception):
    """A setting cannot be used; the text says which, where it stands, why, and what to write."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a value is. `parse` makes it of a text, or raises ValueError with the reason; `toml` are
    the types that TOML may write it in; `unparse` turns a value back to what TOML would say.
    `implied`: what a flag without a value says; None: it needs one. With `of_table` (from a table
    and the folder of its file; ValueError) and `as_table` there may be several, as a tuple: the
    flag repeated, a line each in the variable, an array of tables in TOML."""

    expected: str
    parse: Callable[[str], Any]
    toml: tuple[type, ...] = (str,)
    unparse: Callable[[Any], str | int | float] = str
    choices: tuple[str, ...] = ()
    implied: str | None = None
    of_table: Callable[[Mapping[str, Any], Path], Any] | None = None
    as_table: Callable[[Any], Mapping[str, object]] | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """One row. `shown` is the default in words, where the value does not say it."""

    name: str
    metavar: str
    kind: Kind
    default: Any
    help: str
    shown: str = ""

    @property
    def flag(self) -> str:
        """--max-locks"""
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """DLOCK_MAX_LOCKS"""
        return PREFIX + self.name.replace("-", "_").upper()

    @property
    def attribute(self) -> str:
        """max_locks"""
        return self.name.replace("-", "_")

    @property
    def default_text(self) -> str:
        """The default, for people."""
        if isinstance(self.default, bool):
            return "yes" if self.default else "no"
        return self.shown or str(self.kind.unparse(self.default))


@dataclass(frozen=True, slots=True)
class Value:
    """A value and where it was written."""

    value: Any
    source: str


# ---- Kinds ---------------------------------------------------------------------------------------


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def _milliseconds(text: str) -> int:
    try:
        return round(float(text) * 1000)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no number of seconds") from None


def _seconds(milliseconds: int) -> int | float:
    return milliseconds // 1000 if milliseconds % 1000 == 0 else milliseconds / 1000


def _path(text: str) -> Path:
    return Path(text)


def _yes_or_no(text: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise ValueError(f"{text!r} is neither yes nor no")
    return known[text.lower()]


COUNT: Final = Kind("a whole number", _count, (int,), int)
SECONDS: Final = Kind("a number of seconds", _milliseconds, (int, float), _seconds)
TEXT: Final = Kind("a text", str)
PATH: Final = Kind("a path", _path)
YES_OR_NO: Final = Kind("yes or no", _yes_or_no, (bool,), bool, implied="yes")


def one_of(*words: str) -> Kind:
    """One of these words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}{nearest(text, words)}")
        return text

    return Kind(f"one of {', '.join(words)}", parse, choices=words)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a name that is wrong: "; did you mean ...?", or nothing if none is near."""
    near = difflib.get_close_matches(name.lower(), list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


# ---- Flags ---------------------------------------------------------------------------------------


def add_flags(parser: argparse.ArgumentParser, settings: Sequence[Setting]) -> None:
    """One flag for each, and --config. A flag that is not given leaves None."""
    parser.add_argument("--config", metavar="FILE", type=Path,
                        help=f"TOML with any of these settings; also {CONFIG_VARIABLE}")
    for setting in settings:
        parser.add_argument(
            setting.flag, action="append" if setting.kind.of_table else "store",
            metavar=setting.metavar, dest=setting.attribute, type=_flag_type(setting),
            choices=setting.kind.choices or None, const=_implied(setting),
            nargs="?" if setting.kind.implied else None,
            help=f"{setting.help} (default {setting.default_text})".replace("%", "%%"))


def _implied(setting: Setting) -> Any:
    return setting.kind.parse(setting.kind.implied) if setting.kind.implied else None


def _flag_type(setting: Setting) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return setting.kind.parse(text)
        except ValueError as problem:
            raise argparse.ArgumentTypeError(str(problem)) from None

    return parse


# ---- Where values come from ----------------------------------------------------------------------


def resolve(settings: Sequence[Setting], arguments: argparse.Namespace,
            environment: Mapping[str, str]) -> dict[str, Value]:
    """Every setting by attribute, with its source; SettingError names the first that is wrong."""
    values = {one.attribute: Value(one.default, DEFAULT) for one in settings}
    file = arguments.config or environment.get(CONFIG_VARIABLE)
    if file:
        values.update(_from_file(settings, Path(file)))
    values.update(_from_environment(settings, environment))
    for one in settings:
        given = getattr(arguments, one.attribute)
        if given is not None:
            values[one.attribute] = Value(tuple(given) if one.kind.of_table else given, one.flag)
    return values


def _from_environment(settings: Sequence[Setting],
                      environment: Mapping[str, str]) -> dict[str, Value]:
    """An empty variable is one that is not set."""
    found = {}
    for one in settings:
        text = environment.get(one.variable)
        if text:
            try:
                found[one.attribute] = Value(_of_text(one.kind, text), one.variable)
            except ValueError as problem:
                raise SettingError(f"{one.variable}: {problem}; it takes {one.kind.expected}"
                                   ) from None
    return found


def _of_text(kind: Kind, text: str) -> Any:
    if kind.of_table is None:
        return kind.parse(text)
    return tuple(kind.parse(line.strip()) for line in text.splitlines() if line.strip())


def _from_file(settings: Sequence[Setting], path: Path) -> dict[str, Value]:
    by_name = {one.name: one for one in settings}
    found = {}
    for name, written in _read_toml(path).items():
        if name not in by_name:
            hint = nearest(name, by_name) or f"; there are {', '.join(by_name)}"
            raise SettingError(f"{path}: there is no setting {name!r}{hint}")
        setting = by_name[name]
        source = f"{path}: {name}"
        found[setting.attribute] = Value(_of_toml(setting, written, path.parent, source), source)
    return found


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as problem:
        raise SettingError(f"the configuration {path} cannot be read: {problem.strerror}") from None
    if len(content) > FILE_BYTES_MAX:
        raise SettingError(f"the configuration {path} is longer than {FILE_BYTES_MAX} bytes")
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise SettingError(f"the configuration {path} is no TOML: {problem}") from None


def _of_toml(setting: Setting, written: object, folder: Path, source: str) -> Any:
    """The value; a path is seen from the folder of the file, and may begin with ~."""
    expected = setting.kind.toml
    fits = isinstance(written, expected) and (bool in expected or not isinstance(written, bool))
    if not fits:
        raise SettingError(f"{source} is {written!r}; it takes {setting.kind.expected}")
    if setting.kind.of_table is not None:
        return _of_tables(setting.kind.of_table, written, folder, source)
    try:
        value = setting.kind.parse(str(written))
    except ValueError as problem:
        raise SettingError(f"{source}: {problem}; it takes {setting.kind.expected}") from None
    return folder / value.expanduser() if isinstance(value, Path) else value


def _of_tables(of_table: Callable[[Mapping[str, Any], Path], Any], written: Any, folder: Path,
               source: str) -> tuple[Any, ...]:
    made = []
    for number, table in enumerate(written, 1):
        if not isinstance(table, dict):
            raise SettingError(f"{source} {number} is {table!r}; it takes a table")
        try:
            made.append(of_table(table, folder))
        except ValueError as problem:
            raise SettingError(f"{source} {number}: {problem}") from None
    return tuple(made)


# ---- Showing -------------------------------------------------------------------------------------


def as_toml(settings: Sequence[Setting], values: Mapping[str, Value]) -> str:
    """The settings as a file that says the same, each with where it came from."""
    lines = []
    tables = []  # what stands below one of them is part of it, so they come last
    for one in settings:
        value, source = values[one.attribute].value, values[one.attribute].source
        if one.kind.as_table is not None and value:
            for each in value:
                tables.append(f"\n[[{one.name}]]  # {source}")
                tables += [f"{name} = {_toml(written)}"
                           for name, written in one.kind.as_table(each).items()]
        elif value is None or one.kind.as_table is not None:
            lines.append(f"# {one.name} = ...  # {one.default_text}")
        else:
            lines.append(f"{one.name} = {_toml(one.kind.unparse(value))}  # {source}")
    return "\n".join([*lines, *tables]) + "\n"


def _toml(value: object) -> str:
    """Texts, numbers, yes and no, and lists of them look alike in JSON and in TOML."""
    return json.dumps(value, ensure_ascii=False)


def as_markdown(settings: Sequence[Setting]) -> str:
    """The table of the documentation."""
    rows = ["| flag | environment | TOML | default | what |", "|---|---|---|---|---|"]
    for one in settings:
        rows.append(f"| `{one.flag} {one.metavar}` | `{one.variable}` | `{one.name}` | "
                    f"{one.default_text} | {one.help} |")
    return "\n".join(rows) + "\n"


def stray_variables(settings: Sequence[Setting], known: Iterable[str],
                    environment: Mapping[str, str]) -> list[str]:
    """Hints for DLOCK_ variables that nobody reads but that look like one of the settings."""
    read = {one.variable for one in settings} | {CONFIG_VARIABLE, *known}
    names = {one.variable.lower() for one in settings}
    hints = []
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in read:
            near = difflib.get_close_matches(name.lower(), names, 1, 0.8)
            hints += [f"{name} is not read; did you mean {near[0].upper()}?"] if near else []
    return hints
