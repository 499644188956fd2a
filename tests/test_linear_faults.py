"""Long, concurrent histories with everything that may go wrong around a service are explained; and
each of its own faults, planted once in the midst of such a history, is found."""

from __future__ import annotations

import pytest
from linear_world import DELAY, LockWorld, NumberWorld

from dlock import linear
from dlock.linear import history as h

OPERATIONS = 2000
SEEDS = 2
WAIT = 40 * DELAY

LOCK_FAULTS = [
    (h.MUTEX, "second holder"),
    (h.MUTEX, "refused though free"),
    (h.MUTEX, "lower token"),
    (h.MUTEX, "same token"),
    (h.MUTEX, "overtaken"),
    (h.MUTEX, "ended early"),
    (h.MUTEX, "confirmed though passed on"),
    (h.MUTEX, "a killed holder's promise is broken"),
    (h.REENTRANT, "second holder"),
    (h.REENTRANT, "another owner enters"),
    (h.REENTRANT, "free before its last release"),
    (h.RW, "reader beside writer"),
    (h.RW, "writer among readers"),
    (h.RW, "second writer"),
    (h.FAIR, "overtaken"),
    (h.SEMAPHORE, "slot too many"),
    (h.SEMAPHORE, "refused though free"),
]
NUMBER_FAULTS = ["lost update", "made twice", "unknown made twice", "old value read", "swap missed",
                 "outlived its primary"]


@pytest.mark.parametrize("kind", [h.MUTEX, h.REENTRANT, h.RW, h.FAIR, h.SEMAPHORE])
def test_a_lock_without_faults_is_explained(kind: str) -> None:
    for seed in range(SEEDS):
        operations = LockWorld(kind, seed, OPERATIONS).run()
        verdict = linear.check(operations)
        assert verdict.ok, f"seed {seed}\n{verdict}"


def test_a_number_without_faults_is_explained() -> None:
    for seed in range(SEEDS):
        verdict = linear.check(NumberWorld(seed, OPERATIONS).run())
        assert verdict.ok, f"seed {seed}\n{verdict}"


@pytest.mark.parametrize(("kind", "fault"), LOCK_FAULTS)
def test_a_fault_of_a_lock_is_found(kind: str, fault: str) -> None:
    for seed in range(SEEDS):
        world = LockWorld(kind, seed, OPERATIONS, fault)
        operations = world.run()
        assert world.planted is not None, f"seed {seed}: there was no place for it"
        _found(operations, world.planted, seed)


@pytest.mark.parametrize("fault", NUMBER_FAULTS)
def test_a_fault_of_a_number_is_found(fault: str) -> None:
    for seed in range(SEEDS):
        world = NumberWorld(seed, OPERATIONS, fault)
        operations = world.run()
        assert world.planted is not None, f"seed {seed}: there was no place for it"
        _found(operations, world.planted, seed)


def _found(operations: list[h.Operation], planted: int, seed: int) -> None:
    verdict = linear.check(operations)
    assert verdict.violated, f"seed {seed}: the fault at {planted} was not found"
    (fault,) = verdict.faults
    assert fault.operation.end_ns is not None
    # Not before there was one; but which token one who waits is going to get is known beforehand.
    assert fault.operation.end_ns >= planted - WAIT, f"seed {seed}\n{verdict}"
    assert fault.reasons
