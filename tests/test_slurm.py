"""The example of a batch job runs under a real Slurm: it brings its primary and takes it away."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_tools import ask, program, slurm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import slurm_task  # noqa: E402

SBATCH = ("--parsable", "--wait", "--ntasks=3", "--open-mode=append")

pytestmark = pytest.mark.hpc


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with slurm() as environment:
        dlock = shutil.which("dlock", path=str(Path(sys.executable).parent)) or "dlock"
        yield {**environment, "PYTHON": sys.executable, "DLOCK": dlock,
               "LISTEN": "127.0.0.1:0", "EXAMPLES": str(ROOT / "examples")}


def submit(cluster: dict[str, str], shared: Path, script: Path) -> tuple[str, str]:
    """Its job id and what it printed; it has ended."""
    out = shared / "job.out"
    try:
        said = ask([str(program("sbatch")), *SBATCH, f"--output={out}", f"--chdir={shared}",
                    str(script)], {**cluster, "SHARED": str(shared)}, 250)
    except AssertionError as problem:
        raise AssertionError(f"{problem}\n{out.read_text() if out.exists() else ''}") from None
    return said.strip(), out.read_text(encoding="utf-8")


def test_a_job_brings_its_primary_and_takes_it_away(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    job, out = submit(cluster, tmp_path, ROOT / "examples" / "slurm_job.sh")
    tasks = {int(task): int(pieces) for task, pieces in re.findall(r"task (\d) on .*: (\d+)", out)}
    assert sorted(tasks) == [0, 1, 2], out
    assert sum(tasks.values()) == slurm_task.PIECES
    lines = (tmp_path / f"dlock-{job}.results").read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"(\d+) (\d+) by task \d", line) for line in lines]
    assert [(int(one[1]), int(one[2])) for one in found if one] == [
        (piece, piece * piece) for piece in range(slurm_task.PIECES)]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"job.out", f"dlock-{job}.results"}, "the primary has ended and tidied up"


def test_a_lock_tells_which_job_and_rank_holds_it(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "job.sh"
    example = (ROOT / "examples" / "slurm_job.sh").read_text(encoding="utf-8")
    first, srun, _ = example.rpartition("srun ")
    assert srun, "the example starts its tasks with srun"
    inner = '"$DLOCK" run held -- "$DLOCK" show held --json'
    script.write_text(f"{first}srun sh -c '{inner}'\n", encoding="utf-8")
    job, out = submit(cluster, tmp_path, script)
    told = set(re.findall(r'"job": "([^"]+)"', out))
    assert {f"{job} rank {rank}" for rank in range(3)} <= told, out
