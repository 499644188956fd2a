"""What the command line prints: names made safe, durations, aligned tables, JSON.

A lock's name is bytes that somebody else chose. Nothing of it may reach a terminal as a control
sequence, and what is printed must tell any two names apart.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

ESCAPES: Final = {"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
NOTHING: Final = "-"
MINUTE, HOUR, DAY = 60, 3600, 86400


def safe(name: bytes | str) -> str:
    """The name for a terminal. Bytes that are no UTF-8 become \\xff, characters that are not
    printable (controls, direction marks) \\n, \\x1b or \\u202e, a backslash two."""
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if character in ESCAPES:
        return ESCAPES[character]
    if character.isprintable():
        return character
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # how surrogateescape keeps a byte that is no UTF-8
        return f"\\x{number - 0xDC00:02x}"
    if number < 0x80:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def columns_of(text: str) -> int:
    """How many columns a terminal needs for it."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(one) else
               2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def shortened(text: str, columns: int) -> str:
    """The text in at most so many columns; "…" stands for what was cut off."""
    if columns_of(text) <= columns:
        return text
    kept, used = "", 0
    for one in text:
        used += columns_of(one)
        if used > columns - 1:
            break
        kept += one
    return kept + "…"


def duration(seconds: float | None) -> str:
    """450ms, 12.3s, 4m05s, 3h20m, 5d04h; "-" if there is none."""
    if seconds is None:
        return NOTHING
    seconds = max(seconds, 0.0)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < MINUTE - 0.05:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < HOUR:
        return f"{whole // MINUTE}m{whole % MINUTE:02d}s"
    if whole < DAY:
        return f"{whole // HOUR}h{whole % HOUR // MINUTE:02d}m"
    return f"{whole // DAY}d{whole % DAY // HOUR:02d}h"


def number(value: float) -> str:
    """A count for people: 950, 1,234, 56.7k, 1.2M."""
    if value < 10_000:
        return f"{value:,.0f}"
    for unit, size in (("k", 1e3), ("M", 1e6), ("G", 1e9)):
        if value < 999.5 * size:
            return f"{value / size:.{1 if value < 99.95 * size else 0}f}{unit}"
    return f"{value / 1e12:,.1f}T"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = (),
          width: int | None = None) -> str:
    """Aligned columns, two blanks between them. `right` are the heads of columns that stand to the
    right; the first column gives way if the whole is wider than `width`."""
    to_right = [one in right for one in head]
    cells = [list(head), *([*row] for row in rows)]
    widths = [max(columns_of(row[k]) for row in cells) for k in range(len(head))]
    if width is not None:
        spare = width - sum(widths) - 2 * (len(widths) - 1)
        widths[0] = max(min(widths[0], 8), widths[0] + min(spare, 0))
    lines = []
    for row in cells:
        row[0] = shortened(row[0], widths[0])
        filled = [" " * (size - columns_of(cell)) for cell, size in zip(row, widths, strict=True)]
        lines.append("  ".join(
            fill + cell if aside else cell + fill
            for cell, fill, aside in zip(row, filled, to_right, strict=True)).rstrip())
    return "\n".join(lines)


def name_fields(name: bytes) -> dict[str, str]:
    """A name in JSON: `name`; with bytes that are no UTF-8 these are escaped in it, and `name_hex`
    has it whole."""
    try:
        return {"name": name.decode()}
    except UnicodeDecodeError:
        return {"name": safe(name), "name_hex": name.hex()}


def as_json(value: Any) -> str:
    """One line. Everything beyond ASCII is escaped, so that no name can steer a terminal."""
    return json.dumps(value, ensure_ascii=True)
