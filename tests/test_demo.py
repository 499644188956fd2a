"""The demonstration runs and can fail: its judges are shown what must not happen."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import demo  # noqa: E402

Hold = tuple[int, int, bool]


@pytest.mark.parametrize(
    ("held", "found"),
    [
        ([], 0),
        ([(0, 10, True), (10, 20, True)], 0),
        ([(0, 10, False), (5, 20, False), (20, 30, True)], 0),
        ([(0, 10, True), (9, 20, True)], 1),
        ([(0, 10, False), (9, 20, True)], 1),
        ([(9, 20, False), (0, 10, True)], 1),
        ([(0, 100, True), (10, 20, False), (30, 40, True)], 2),
    ],
)
def test_overlaps_are_counted(held: Sequence[Hold], found: int) -> None:
    assert demo.overlaps(held) == found


def works(held: Sequence[Hold], writes: int, counted: Sequence[int]) -> list[object]:
    turns = demo.Turns([1] * len(held), list(held), writes)
    kinds = {kind.name: turns for kind in demo.DlockType}
    return [demo.Work(0, kinds, list(counted), [1] * len(counted), len(counted))]


def test_the_judges_see_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    kind = demo.DlockType.ATOMIC
    apart: list[Hold] = [(0, 1, True), (2, 3, True)]
    assert demo.judge_kind(kind, works(apart, 2, [0]), 2, 1.0) == []
    assert demo.judge_kind(kind, works(apart, 2, [0]), 1, 1.0)
    assert demo.judge_kind(kind, works([(0, 3, True), (2, 3, True)], 2, [0]), 2, 1.0)
    assert demo.judge_count(works(apart, 2, [0, 1, 2]), 1.0) == []
    assert demo.judge_count(works(apart, 2, [0, 1, 1]), 1.0)
    assert "ATOMIC" in capsys.readouterr().out


def test_the_demonstration_passes() -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "examples" / "demo.py"),
            "--processes",
            "4",
            "--seconds",
            "0.3",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no count was lost" in done.stdout
