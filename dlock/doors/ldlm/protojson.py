"""Bodies of LDLM's REST gateway: JSON as protobuf reads and writes it. Pure.

Read: names in snake_case or camelCase; whole numbers also as text, or as 4.0 and 4e0; null is as
good as absent; what is not known is passed over; what follows the first value too; nothing at all
is an empty message. Written: every field, only `error` is left out where there is none.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NoReturn

from dlock.doors.ldlm.problems import Answer, Problem

INT32_MAX: Final = 2**31 - 1
NUMBER_CHARS_MAX: Final = 64
DEPTH_MAX: Final = 100
# Fields of the requests that the gateway knows: is it an int32, else text.
TRY_LOCK: Final = {"name": False, "lock_timeout_seconds": True, "size": True}
UNLOCK: Final = {"name": False, "key": False}
RENEW: Final = {"name": False, "key": False, "lock_timeout_seconds": True}
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_SPACES: Final = " \t\r\n"


def read(body: bytes, fields: dict[str, bool]) -> dict[str, Any]:
    """The fields that the body has. ValueError: it is no such message."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise ValueError("proto: syntax error: invalid UTF-8 in string") from None
    text = text.lstrip(_SPACES)
    if not text:
        return {}
    try:
        found, _ = _DECODER.raw_decode(text)
    except json.JSONDecodeError as problem:
        if problem.pos >= len(text.rstrip(_SPACES)) or "Unterminated" in problem.msg:
            raise ValueError("unexpected EOF") from None
        raise ValueError(f"proto: syntax error (line {problem.lineno}:{problem.colno}): "
                         f"{problem.msg}") from None
    except RecursionError:
        raise ValueError("proto: exceeded max recursion depth") from None
    if not isinstance(found, _Pairs):
        raise ValueError(f"proto: syntax error (line 1:1): unexpected token {_token(found)}")
    _check_depth(found)
    return _message(found, fields)


def answer_body(answer: Answer, *, unlocking: bool) -> bytes:
    """LockResponse, or UnlockResponse."""
    if unlocking:
        said: dict[str, Any] = {"unlocked": answer.ok, "name": answer.name}
    else:
        said = {"locked": answer.ok, "name": answer.name, "key": answer.key}
    if answer.error is not None:
        said["error"] = _error(answer.error)
    return json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()


def status_body(code: int, message: str) -> bytes:
    """What the gateway itself refuses."""
    said = {"code": code, "message": message, "details": []}
    return json.dumps(said, ensure_ascii=False, separators=(", ", ":")).encode("utf-8", "replace")


def _error(problem: Problem) -> dict[str, str]:
    return {"code": problem.code_name, "message": problem.message}


class _Pairs(list[tuple[str, Any]]):
    """An object, with all its pairs."""


class _Number(str):
    """A number as it stands there."""

    __slots__ = ()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"proto: syntax error: invalid value {name}")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_Pairs, parse_int=_Number, parse_float=_Number,
    parse_constant=_refuse_constant)


def _message(pairs: _Pairs, fields: dict[str, bool]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for written, value in pairs:
        name = _SNAKE.get(written, written)
        if name not in fields or value is None:
            continue
        if name in values:
            raise ValueError(f'proto: duplicate field "{written}"')
        values[name] = _int32(value, name) if fields[name] else _text(value, name)
    return values


_SNAKE: Final = {"lockTimeoutSeconds": "lock_timeout_seconds"}


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or isinstance(value, _Number):
        raise ValueError(f"proto: invalid value for string field {name}: {_token(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, written as \\ud800
        raise ValueError(f"proto: field {name} contains invalid UTF-8") from None
    return value


def _int32(value: object, name: str) -> int:
    """A whole number; as text it may not have spaces around it."""
    number: Decimal | None = None
    if isinstance(value, str) and len(value) <= NUMBER_CHARS_MAX and _NUMBER.fullmatch(value):
        try:
            number = Decimal(value)
        except InvalidOperation:  # an exponent beyond all bounds
            number = None
    # abs first: the exponent is not written out before it is known to be small.
    if number is None or abs(number) > INT32_MAX + 1 or number != number.to_integral_value() \
            or not -INT32_MAX - 1 <= number <= INT32_MAX:
        raise ValueError(f"proto: invalid value for int32 field {name}: {_token(value)}")
    return int(number)


def _token(value: object) -> str:
    """A value in a message, not longer than a person reads."""
    if isinstance(value, _Pairs):
        return "{"
    if isinstance(value, list):
        return "["
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = str(value)
    short = text if len(text) <= NUMBER_CHARS_MAX else text[:NUMBER_CHARS_MAX] + "..."
    return short if isinstance(value, _Number) else json.dumps(short)


def _check_depth(found: object) -> None:
    """Deeper than protobuf reads is refused, also in what is passed over."""
    level: list[Any] = [found]
    for _ in range(DEPTH_MAX):
        level = [child for value in level if isinstance(value, list)
                 for child in (_children(value))]
        if not level:
            return
    raise ValueError("proto: exceeded max recursion depth")


def _children(value: list[Any]) -> list[Any]:
    return [pair[1] for pair in value] if isinstance(value, _Pairs) else value
