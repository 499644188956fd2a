"""FenceGuard: a late writer is refused, whatever it believes."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest

import dlock
from dlock.fence import TOKEN_MAX, FenceGuard


@dataclass
class Hold:
    token: int
    exclusive: bool = True


def test_a_lower_token_is_refused_and_the_same_may_write_again() -> None:
    guard = FenceGuard()
    assert guard.check(5) == 5
    assert guard.check(5) == 5
    assert guard.check(7) == 7
    with pytest.raises(dlock.StaleToken, match="5 is older than 7"):
        guard.check(5)
    assert guard.check(7) == 7


def test_a_held_lock_stands_for_its_token() -> None:
    guard = FenceGuard()
    assert guard.check(Hold(9)) == 9
    with pytest.raises(dlock.StaleToken):
        guard.check(Hold(8))


def test_a_shared_hold_fences_nothing() -> None:
    with pytest.raises(TypeError, match="not exclusive"):
        FenceGuard().check(Hold(9, exclusive=False))


@pytest.mark.parametrize("token", [0, -1, TOKEN_MAX + 1])
def test_what_is_no_token_is_refused(token: int) -> None:
    with pytest.raises(ValueError, match="no fencing token"):
        FenceGuard().check(token)


def test_what_is_no_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="int or a held lock"):
        FenceGuard().check("9")  # type: ignore[arg-type]


def test_the_token_is_kept_where_the_resource_says() -> None:
    row = {"token": 0}

    def write(token: int) -> None:
        row["token"] = token

    FenceGuard(lambda: row["token"], write).check(4)
    assert row == {"token": 4}
    with pytest.raises(dlock.StaleToken):
        FenceGuard(lambda: row["token"], write).check(3)
    assert row == {"token": 4}


def test_half_a_place_for_the_token_is_refused() -> None:
    with pytest.raises(ValueError, match="both"):
        FenceGuard(read=lambda: 0)


def test_admit_keeps_check_and_write_together() -> None:
    guard = FenceGuard()
    written: list[int] = []
    inside = threading.Event()

    def late() -> None:
        inside.wait()
        with pytest.raises(dlock.StaleToken), guard.admit(1):
            written.append(1)

    thread = threading.Thread(target=late)
    thread.start()
    with guard.admit(2):
        inside.set()
        thread.join(0.05)
        assert thread.is_alive()  # it stands before the guard until this write is over
        written.append(2)
    thread.join()
    assert written == [2]
