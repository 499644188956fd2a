"""Arguments that are missing or impossible whatever the state (specification, section 1).

Each check returns True where the call must return EINVAL, and raises TypeError for a value of a
type that no C caller could pass. None is a missing argument.
"""

from __future__ import annotations

from typing import Final

from dlock import _core
from dlock.types import AtomicDesc, DlockType, LockDesc, LockOp, LockRequest

DESCRIPTOR_BYTES_MAX: Final = _core.DLK_DESCRIPTOR_BYTES_MAX
U32_MAX: Final = 2**32 - 1
U64_MAX: Final = 2**64 - 1
SECONDS_MAX: Final = _core.DLK_WAIT_FOREVER // 1000 - 1  # as milliseconds still less than for ever

LOCK_OPS: Final = frozenset({LockOp.LOCK_EXCLUSIVE, LockOp.LOCK_SHARED})
EXTEND_OPS: Final = frozenset({LockOp.EXTEND_LOCK_EXCLUSIVE, LockOp.EXTEND_LOCK_SHARED})
UNLOCK: Final = LockOp.UNLOCK
ALL_OPS: Final = frozenset(LockOp)


def bad_number(value: object, name: str, low: int, high: int) -> bool:
    """A whole number from low to high."""
    if value is None:
        return True
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    return not low <= value <= high


def bad_id(value: object, name: str) -> bool:
    """The id of a lock or an object; whether it exists is another question."""
    return bad_number(value, name, 0, U32_MAX)


def bad_lock_request(request: LockRequest | None) -> bool:
    """A request of trylock or lock."""
    return _bad_request(request, LOCK_OPS)


def bad_extend_request(request: LockRequest | None) -> bool:
    """A request of lock_extend."""
    return _bad_request(request, EXTEND_OPS)


def bad_async_request(request: LockRequest | None) -> bool:
    """A request of lock_request_async: any operation, but nothing that asks nothing."""
    return _bad_request(request, ALL_OPS) or (
        request is not None and request.lock_op in LOCK_OPS and request.expire_time == 0
    )


def _bad_request(request: LockRequest | None, ops: frozenset[LockOp]) -> bool:
    if request is None:
        return True
    if not isinstance(request, LockRequest):
        raise TypeError(f"a LockRequest is needed, not {type(request).__name__}")
    return (
        bad_id(request.lock_id, "lock_id")
        | bad_number(request.expire_time, "expire_time", 0, U32_MAX)
        | bad_number(request.lock_op, "lock_op", min(ops), max(ops))
    ) or request.lock_op not in ops


def bad_descriptor(value: object) -> bool:
    """The bytes that name a lock or an object."""
    if value is None:
        return True
    if not isinstance(value, bytes):
        raise TypeError(f"p_desc must be bytes, not {type(value).__name__}")
    return not 1 <= len(value) <= DESCRIPTOR_BYTES_MAX


def bad_lock_desc(desc: LockDesc | None) -> bool:
    """A descriptor of a lock that the mirror knows."""
    if desc is None:
        return True
    if not isinstance(desc, LockDesc):
        raise TypeError(f"a LockDesc is needed, not {type(desc).__name__}")
    return (
        bad_descriptor(desc.p_desc)
        | bad_number(desc.lock_type, "lock_type", min(DlockType), max(DlockType))
        | bad_number(desc.lease_time, "lease_time", 0, U32_MAX)
    )


def bad_atomic_desc(desc: AtomicDesc | None) -> bool:
    """A descriptor of an object."""
    if desc is None:
        return True
    if not isinstance(desc, AtomicDesc):
        raise TypeError(f"an AtomicDesc is needed, not {type(desc).__name__}")
    return bad_descriptor(desc.p_desc) | bad_number(desc.lease_time, "lease_time", 0, U32_MAX)


def bad_list(items: object) -> bool:
    """A batch of 1..31 items, in a list or a tuple."""
    if items is None:
        return True
    if not isinstance(items, (list, tuple)):
        raise TypeError(f"a list is needed, not {type(items).__name__}")
    return not 1 <= len(items) <= _core.DLK_BATCH_MAX


def bad_address(ip_str: object) -> bool:
    """The address of a server."""
    if ip_str is None:
        return True
    if not isinstance(ip_str, str):
        raise TypeError(f"ip_str must be a str, not {type(ip_str).__name__}")
    return not ip_str


def bad_seconds(value: object, name: str) -> bool:
    """A length of time, fractions allowed."""
    if value is None:
        return True
    if not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    return not 0 <= value <= SECONDS_MAX
