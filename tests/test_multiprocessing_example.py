"""The example of a pool of processes runs, however the processes are started."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lock_tools import Service, serving

ROOT = Path(__file__).resolve().parent.parent

# The parent has threads of dlock when it forks; the program must come to its end all the same.
PROGRAM = """
import sys
from pathlib import Path
import multiprocessing_pool as example
if __name__ == "__main__":
    print(*example.run(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
"""


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving() as one:
        yield one


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_no_turn_is_lost(service: Service, tmp_path: Path, method: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, program, service.address, tmp_path / "number", method],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=False,
        env={"PYTHONPATH": str(ROOT / "examples")})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["200", "200"]
