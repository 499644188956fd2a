"""Pauses between tries: short at first, bounded, spread by chance."""

from __future__ import annotations

import pytest

from dlock._retry import Backoff


def test_pauses_double_up_to_a_bound() -> None:
    backoff = Backoff(lambda: 1.0)
    assert [backoff.pause_s() for _ in range(4)] == [0.05, 0.1, 0.2, 0.2]
    backoff.reset()
    assert backoff.pause_s() == 0.05


def test_chance_spreads_them() -> None:
    backoff = Backoff(iter((0.0, 0.5, 0.25)).__next__)
    assert [backoff.pause_s() for _ in range(3)] == pytest.approx([0.0, 0.05, 0.05])
    pauses = {Backoff().pause_s() for _ in range(20)}
    assert len(pauses) > 10
    assert all(0 <= one <= 0.05 for one in pauses)
