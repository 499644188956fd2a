"""The state directory: a primary that takes over from one that may still live, on this machine or
on another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from state_dir_children import TTL_MS, entered, entry, files, ids, on_disk, opened

from dlock.control import state_dir as module
from dlock.control.registry_effects import PersistEpoch, PersistSession
from dlock.control.roster import with_margin_ms
from dlock.control.state_dir import StateDirError, StateDirLostError
from dlock.control.state_file import State, changed, encode_state


def test_the_one_that_was_replaced_notices(tmp_path: Path) -> None:
    first = opened(tmp_path)
    entered(first, 5)
    second = opened(tmp_path, 2, take_over=True)
    assert second.former is not None
    assert not second.former.stopped
    assert second.former.serves_ms == with_margin_ms(TTL_MS // 4)
    with pytest.raises(StateDirLostError, match=r"took over .* it has epoch 2, this one has 1"):
        first.confirm()
    second.forget_former()
    with pytest.raises(StateDirLostError, match="took over"):
        first.confirm()
    second.confirm()


def test_what_it_still_writes_reaches_nobody(tmp_path: Path) -> None:
    """It was stopped between its look and its write. The session that it enters is not answered
    for, and the file of the new one is what it was."""
    first = opened(tmp_path)
    second = opened(tmp_path, 2, take_over=True)
    entered(second, 8)
    after = (tmp_path / "state-2").read_bytes()
    first.apply(PersistSession(entry(5)))
    with pytest.raises(StateDirLostError, match="took over"):
        first.commit()
    assert (tmp_path / "state-2").read_bytes() == after
    first.apply(PersistEpoch(2))
    with pytest.raises(StateDirLostError):
        first.commit()
    assert (tmp_path / "state-2").read_bytes() == after
    second.confirm()


def test_sessions_that_it_entered_meanwhile_are_found(tmp_path: Path) -> None:
    first = opened(tmp_path)
    entered(first, 5, 6, 7)
    second = opened(tmp_path, 2, take_over=True)
    assert second.former is not None
    assert second.former.roster == (entry(5), entry(6), entry(7))
    # By the file alone: it had looked at the directory before the second was there.
    late = changed(on_disk(tmp_path), epoch=1, incarnation=1, late=(),
                   roster={5: entry(5, 4096), 7: entry(7), 9: entry(9)})
    (tmp_path / "state-1").write_bytes(encode_state(late))
    assert second.read_former_again() == (entry(5, 4096), entry(7), entry(9))


def test_what_a_replaced_one_has_forgotten_is_not_missed(tmp_path: Path) -> None:
    """The second took over from the first, and was ready a moment after the third had taken over
    from it, before it noticed."""
    first = opened(tmp_path)
    entered(first, 5)
    second = opened(tmp_path, 2, take_over=True)
    third = opened(tmp_path, 3, take_over=True)
    assert on_disk(tmp_path).late == (2, 1)
    second.read_former_again()
    second.forget_former()
    assert "state-1" not in files(tmp_path)
    assert third.read_former_again() == (entry(5),)
    fourth = opened(tmp_path, 4, take_over=True)
    assert fourth.former is not None
    assert fourth.former.roster == (entry(5),)
    for state in (first, second, third, fourth):
        state.close()


def test_one_that_dies_before_it_has_looked_again_leaves_that_to_the_next(tmp_path: Path) -> None:
    """A session that only the first knows may have been struck by the second: it is waited for, but
    not taken back."""
    first = opened(tmp_path)
    entered(first, 5)
    second = opened(tmp_path, 2, take_over=True)
    assert on_disk(tmp_path).late == (1,)
    first.apply(PersistSession(entry(9)))
    with pytest.raises(StateDirLostError):
        first.commit()
    second.close()
    with pytest.raises(StateDirError, match="in use"):
        opened(tmp_path, 3)
    third = opened(tmp_path, 3, take_over=True)
    assert third.former is not None
    assert third.former.roster == (entry(5), entry(9, ended=True))
    assert not third.former.stopped
    assert on_disk(tmp_path).late == (1,)
    first.close()
    third.close()
    fourth = opened(tmp_path, 4)
    assert fourth.former is not None
    assert fourth.former.stopped
    fourth.read_former_again()
    entered(fourth, 10)
    assert on_disk(tmp_path).late == ()
    fourth.close()
    assert ids(tmp_path) == {5, 9, 10}


def test_an_older_file_that_goes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is ready in the moment in which the third reads what the first has left."""
    first = opened(tmp_path)
    entered(first, 5)
    second = opened(tmp_path, 2, take_over=True)
    second.read_former_again()
    before_reading(tmp_path / "state-1", second.forget_former, monkeypatch)
    third = opened(tmp_path, 3, take_over=True)
    assert "state-1" not in files(tmp_path)
    assert third.former is not None
    assert third.former.roster == (entry(5),)
    assert on_disk(tmp_path).late == (2,)


def test_the_newest_file_goes_while_a_start_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one has passed it, and is ready: it begins anew, above that one."""
    first = opened(tmp_path)
    entered(first, 5)
    others = []

    def another() -> None:
        others.append(opened(tmp_path, 9, take_over=True))
        others[0].read_former_again()
        entered(others[0], 6)
        others[0].forget_former()

    before_reading(tmp_path / "state-1", another, monkeypatch)
    last = opened(tmp_path, 2, take_over=True)
    assert (others[0].epoch, last.epoch) == (3, 4)
    assert last.former is not None
    assert last.former.roster == (entry(5), entry(6))
    assert files(tmp_path) >= {"state-3", "state-4"}


def test_a_file_that_stays_away(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.close()
    (tmp_path / "state-1").unlink()
    (tmp_path / "state-1").symlink_to("nothing")
    with pytest.raises(StateDirError, match="cannot be used"):
        opened(tmp_path, 2)
    (tmp_path / "state-1").unlink()
    state = opened(tmp_path, 2)
    third = opened(tmp_path, 3, take_over=True)
    (tmp_path / f"state-{state.epoch}").unlink()
    with pytest.raises(StateDirError, match="Nobody but a primary"):
        third.read_former_again()
    fourth = opened(tmp_path, 4, take_over=True)
    fourth.forget_former()
    with pytest.raises(StateDirLostError, match="took over"):
        third.read_former_again()


def before_reading(
    path: Path, happens: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It happens once, before this file is read, and after it was seen to be there."""
    real = Path.read_bytes

    def read_bytes(file: Path) -> bytes:
        if file == path:
            monkeypatch.setattr(Path, "read_bytes", real)
            happens()
        return real(file)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)


def test_a_free_lock_proves_nothing_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(tmp_path)
    entered(first, 5)
    first.close()
    boot = tmp_path / "boot_id"
    boot.write_text("another\n")
    monkeypatch.setattr(module, "BOOT_ID", boot)
    second = opened(tmp_path, 2)
    assert second.former is not None
    assert not second.former.stopped
    assert second.former.roster == (entry(5),)
    assert on_disk(tmp_path).machine == "another"


def test_who_hangs_in_its_start_is_passed_over(tmp_path: Path) -> None:
    """It has the lock of the next epoch, and no file. It may go on at any time: then it loses."""
    hanging = module._lock(tmp_path / "lock-1")
    assert hanging is not None
    with pytest.raises(StateDirError, match="in use"):
        opened(tmp_path)
    state = opened(tmp_path, take_over=True)
    assert state.epoch == 2
    assert module._create(tmp_path, State(1, 9), encode_state(State(1, 9)))
    state.confirm()
    os.close(hanging)


def test_a_file_that_is_not_ours_any_more(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.confirm()
    (tmp_path / "state-1").write_bytes(encode_state(State(1, 2)))
    with pytest.raises(StateDirLostError, match="is not this one's any more"):
        first.confirm()
    (tmp_path / "state-1").write_bytes(b"")
    with pytest.raises(StateDirLostError, match="cannot be confirmed"):
        first.confirm()
    (tmp_path / "state-1").unlink()
    with pytest.raises(StateDirLostError, match="cannot be confirmed"):
        first.confirm()
    shutil.rmtree(tmp_path)
    with pytest.raises(StateDirLostError, match="cannot be confirmed"):
        first.confirm()
