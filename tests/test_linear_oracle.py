"""The checker against an oracle that tries everything, on thousands of small histories, half of
them wrong: it is exact. tests/linear_tools.py has the oracle."""

from __future__ import annotations

import random

import pytest
from linear_tools import explained, small_cell, small_lock

from dlock.linear import check
from dlock.linear import history as h

HISTORIES = 2000  # of each kind


@pytest.mark.parametrize("kind", [h.MUTEX, h.REENTRANT, h.RW, h.FAIR, h.SEMAPHORE, h.CELL])
def test_it_agrees_with_an_oracle_that_tries_everything(kind: str) -> None:
    good = 0
    for seed in range(HISTORIES):
        chance = random.Random(f"{kind} {seed}")
        operations = small_cell(chance) if kind == h.CELL else small_lock(chance, kind)
        found = check(operations)
        expected = explained(operations)
        assert found.ok == expected, (
            f"{kind}, seed {seed}: the oracle says {expected}\n{found}\n"
            + "\n".join(h.describe(one._replace(
                begin_ns=one.begin_ns * 10**9,
                end_ns=None if one.end_ns is None else one.end_ns * 10**9))
                + f" {one.hold} {one.queued_ns} {one.waiting_ns} {one.waits} {one.again}"
                + f" {one.life}" for one in operations))
        good += expected
    # Both verdicts were tried, often.
    assert HISTORIES // 10 < good < HISTORIES * 9 // 10, good
