"""The clock of the C core, which a simulation sets."""

from __future__ import annotations

from dlock import _core

HOUR_NS = 3600 * 10**9


def test_the_clock_stands_where_it_was_set_until_it_is_the_machines_again() -> None:
    real_ns = _core.now_ns()
    try:
        _core.set_clock(real_ns + HOUR_NS)
        assert _core.now_ns() == real_ns + HOUR_NS
        assert _core.now_ns() == real_ns + HOUR_NS
        _core.set_clock(1)
        assert _core.now_ns() == 1
    finally:
        _core.set_clock(0)
    assert real_ns <= _core.now_ns() < real_ns + HOUR_NS
