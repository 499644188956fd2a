"""The worked examples of fencing run, and the late writer is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lock_tools import Service, serving

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import fencing_file
import fencing_sqlite


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as one:
        yield one


def test_sqlite_refuses_the_late_writer(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fencing_sqlite.run(service.address, tmp_path / "cash.db") == 70
    assert "first writer: refused" in capsys.readouterr().out


def test_a_file_refuses_the_late_writer(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = fencing_file.run(service.address, tmp_path / "results.json")
    assert left == "the second writer's"
    assert "first writer: refused" in capsys.readouterr().out
