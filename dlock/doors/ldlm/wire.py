"""LDLM's messages as protobuf: one table, from which the message classes are made when the first
door needs them. No generated file, and no protoc. Pure: bytes in, values out.

A field is (name, number, type); a type with `?` has presence of its own (`optional` in proto3), so
that "not said" and 0 are two things. tests/clients/ldlm.proto says the same for the clients.
"""

from __future__ import annotations

import functools
from typing import Any, Final, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from dlock.doors.ldlm.problems import Answer

PACKAGE: Final = "ldlm"
SERVICE: Final = "ldlm.LDLM"

Fields = tuple[tuple[str, int, str], ...]

MESSAGES: Final[dict[str, Fields]] = {
    "Error": (("code", 1, "ErrorCode"), ("message", 2, "string")),
    "LockRequest": (
        ("name", 1, "string"), ("wait_timeout_seconds", 3, "int32?"),
        ("lock_timeout_seconds", 100, "int32?"), ("size", 4, "int32?")),
    "TryLockRequest": (
        ("name", 1, "string"), ("lock_timeout_seconds", 100, "int32?"), ("size", 4, "int32?")),
    "LockResponse": (
        ("locked", 1, "bool"), ("name", 2, "string"), ("key", 3, "string"), ("error", 4, "Error?")),
    "UnlockRequest": (("name", 1, "string"), ("key", 2, "string")),
    "UnlockResponse": (("unlocked", 1, "bool"), ("name", 2, "string"), ("error", 3, "Error?")),
    "RenewRequest": (
        ("name", 1, "string"), ("key", 2, "string"), ("lock_timeout_seconds", 100, "int32")),
}
ERROR_CODES: Final = (
    "Unknown", "LockDoesNotExist", "InvalidLockKey", "LockWaitTimeout", "NotLocked",
    "LockDoesNotExistOrInvalidKey", "LockSizeMismatch", "InvalidLockSize")


class Undecodable(Exception):  # noqa: N818 - what happened, in the words that the client is told
    """These bytes are not such a message."""


class Lock(NamedTuple):
    """LockRequest; None where nothing was said."""

    name: str
    wait_timeout_s: int | None
    lock_timeout_s: int | None
    size: int | None


class TryLock(NamedTuple):
    """TryLockRequest; None where nothing was said."""

    name: str
    lock_timeout_s: int | None
    size: int | None


class Unlock(NamedTuple):
    """UnlockRequest"""

    name: str
    key: str


class Renew(NamedTuple):
    """RenewRequest"""

    name: str
    key: str
    lock_timeout_s: int


@functools.cache
def classes() -> dict[str, Any]:
    """The message classes by their names."""
    described = descriptor_pb2.FileDescriptorProto(
        name="dlock/doors/ldlm.proto", package=PACKAGE, syntax="proto3")
    enum = described.enum_type.add(name="ErrorCode")
    for number, name in enumerate(ERROR_CODES):
        enum.value.add(name=name, number=number)
    for name, fields in MESSAGES.items():
        message = described.message_type.add(name=name)
        for field in fields:
            _describe(message, *field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(described)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in MESSAGES
    }


def _describe(message: Any, name: str, number: int, kind: str) -> None:
    """Adds a field to the description of a message."""
    scalar = kind.rstrip("?")
    field = message.field.add(name=name, number=number, label=1)  # LABEL_OPTIONAL
    if scalar in ("string", "int32", "bool"):
        field.type = {"string": 9, "int32": 5, "bool": 8}[scalar]
    else:
        field.type = 14 if scalar == "ErrorCode" else 11
        field.type_name = f".{PACKAGE}.{scalar}"
    if kind.endswith("?"):
        # Presence is said by a oneof with this one member.
        field.proto3_optional = True
        field.oneof_index = len(message.oneof_decl)
        message.oneof_decl.add(name=f"_{name}")


def _parsed(name: str, body: bytes) -> Any:
    try:
        return classes()[name].FromString(body)
    except DecodeError as problem:
        raise Undecodable(str(problem)) from None


def _said(message: Any, field: str) -> int | None:
    return getattr(message, field) if message.HasField(field) else None


def lock(body: bytes) -> Lock:
    """Undecodable"""
    found = _parsed("LockRequest", body)
    return Lock(found.name, _said(found, "wait_timeout_seconds"),
                _said(found, "lock_timeout_seconds"), _said(found, "size"))


def try_lock(body: bytes) -> TryLock:
    """Undecodable"""
    found = _parsed("TryLockRequest", body)
    return TryLock(found.name, _said(found, "lock_timeout_seconds"), _said(found, "size"))


def unlock(body: bytes) -> Unlock:
    """Undecodable"""
    found = _parsed("UnlockRequest", body)
    return Unlock(found.name, found.key)


def renew(body: bytes) -> Renew:
    """Undecodable"""
    found = _parsed("RenewRequest", body)
    return Renew(found.name, found.key, found.lock_timeout_seconds)


def lock_response(answer: Answer) -> bytes:
    """LockResponse, of Lock, TryLock and Renew."""
    made = classes()["LockResponse"](locked=answer.ok, name=answer.name, key=answer.key)
    return _with_error(made, answer)


def unlock_response(answer: Answer) -> bytes:
    """UnlockResponse"""
    made = classes()["UnlockResponse"](unlocked=answer.ok, name=answer.name)
    return _with_error(made, answer)


def _with_error(made: Any, answer: Answer) -> bytes:
    if answer.error is not None:
        made.error.code = answer.error.code
        made.error.message = answer.error.message
    encoded: bytes = made.SerializeToString()
    return encoded
