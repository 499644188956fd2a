"""Durations as Go's programs write them: "1h2m3s", "300ms", "1.5h", "0". Pure."""

from __future__ import annotations

import re
from typing import Final

UNITS_NS: Final = {
    "ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6,
    "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9,
}
MAX_NS: Final = 2**63 - 1
_PIECE: Final = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|µs|μs|ms|s|m|h)")
_WHOLE: Final = re.compile(rf"(?:{_PIECE.pattern})+")
_DIGITS_MAX: Final = 40  # more say nothing that a duration could hold


def seconds(text: str) -> float:
    """ValueError, in Go's words: it is none."""
    return nanoseconds(text) / 10**9


def nanoseconds(text: str) -> int:
    """The same in whole nanoseconds."""
    sign, rest = (-1, text[1:]) if text[:1] == "-" else (1, text[1:] if text[:1] == "+" else text)
    if rest == "0":
        return 0
    if not rest or not re.match(r"[0-9.]", rest):
        raise _invalid(text)
    if not _WHOLE.fullmatch(rest):
        if re.fullmatch(r"[0-9]*\.?[0-9]*", rest) and re.search(r"[0-9]", rest):
            raise ValueError(f'time: missing unit in duration "{text}"')
        raise _invalid(text)
    total = 0
    for whole, part, unit in _PIECE.findall(rest):
        if (not whole and not part) or len(whole) > _DIGITS_MAX:
            raise _invalid(text)
        part = part[:_DIGITS_MAX]
        scale = UNITS_NS[unit]
        total += int(whole or "0") * scale
        if part:
            total += int(part) * scale // 10 ** len(part)
    if total > MAX_NS:
        raise _invalid(text)
    return sign * total


def _invalid(text: str) -> ValueError:
    return ValueError(f'time: invalid duration "{text}"')


def shown(duration_ns: int) -> str:
    """As Go prints it in a usage: "10m0s", "1h0m0s", "1.5s"."""
    if duration_ns == 0:
        return "0s"
    sign = "-" if duration_ns < 0 else ""
    left_ns = abs(duration_ns)
    for unit in ("ns", "us", "ms"):
        scale = UNITS_NS[unit]
        if left_ns < 1000 * scale:
            return f"{sign}{_decimal(left_ns, scale)}{'µs' if unit == 'us' else unit}"
    minutes, rest_ns = divmod(left_ns, UNITS_NS["m"])
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(rest_ns, UNITS_NS['s'])}s"
    if hours:
        return f"{sign}{hours}h{minutes}m{text}"
    return f"{sign}{minutes}m{text}" if minutes else sign + text


def _decimal(number: int, scale: int) -> str:
    whole, part = divmod(number, scale)
    digits = str(part).rjust(len(str(scale)) - 1, "0").rstrip("0") if part else ""
    return f"{whole}.{digits}" if digits else str(whole)
