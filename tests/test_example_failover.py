"""The demonstration of a failover runs and can fail: its judge is shown what must not happen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import failover  # noqa: E402


def test_the_judge_sees_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    success, fail = failover.S.SUCCESS, failover.S.FAIL
    right = failover.Row("ann", "atomic a", "held", "lock_extend", success, lambda: success)
    wrong = failover.Row("bob", "atomic b", "held", "lock_extend", success, lambda: fail)
    for row in (right, wrong):
        row.said = row.ask()
    assert failover.show([right]) == []
    assert failover.show([right, wrong]) == ["bob, atomic b: FAIL instead of SUCCESS"]
    assert "WRONG" in capsys.readouterr().out


def test_the_demonstration_passes() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "failover.py"), "--locks", "200"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "200 of 200" in done.stdout
    assert "WRONG" not in done.stdout
