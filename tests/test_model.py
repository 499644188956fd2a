"""models/recovery.pml: spin goes through every order of every step, and finds what is planted.

Skipped where spin cannot be had. A fault is looked for breadth first, so its story is a short one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "recovery.pml"
DEPTH_MAX = 100_000
CHECKED_S = 1500  # a model, on a machine on which everything else runs too

pytestmark = [
    pytest.mark.timeout(1600),
    pytest.mark.skipif(
        shutil.which("spin") is None or shutil.which("cc") is None, reason="needs spin and cc"),
]

# Each of them is a model of its own; see the head of the file.
MODELS = ("", "LEASES", "INTERRUPTED", "ENDS", "ENDS INTERRUPTED")

# What is planted, and in which model.
FAULTS = {
    "ANSWERED_BEFORE_WRITTEN": "",
    "FREED_BEFORE_STRUCK": "",
    "ENDED_NOT_LISTED": "LEASES",
    "LEASE_NOT_WAITED": "LEASES",
    "ROSTER_NOT_COPIED": "INTERRUPTED",
    "AUTHORITY_NOT_CHECKED": "",
    "CONFIRMED_AFTER_THE_LOOK": "",
    "TAKE_OVER_AT_ONCE": "",
    "NO_WAIT": "",
    "WAIT_WITHOUT_AUTHORITY": "",
    "EVICTED_NOT_STRUCK": "INTERRUPTED",
    "BACK_WHEN_COME": "",
    "EVICTED_AT_ONCE": "",
    "NOT_READY_RENEWS": "",
    "COUNTED_FROM_RECEIPT": "",
    "LAPSED_LEASE_ACCEPTED": "LEASES",
    "LATE_CLAIM_ACCEPTED": "",
    "LOST_UNTOLD": "",
    "WAITS_FOR_EVER": "ENDS",
}


def checked(folder: Path, defines: str, *, breadth_first: bool = False) -> str:
    """What the checker says of the model with these switches."""
    folder.mkdir()
    switches = [f"-D{name}" for name in defines.split()]
    search = ["-DBFS"] if breadth_first else []
    for command in (
        ["spin", "-a", *switches, str(MODEL)],
        ["cc", "-w", "-O2", "-DSAFETY", "-DNOBOUNDCHECK", *search, "-o", "pan", "pan.c"],
    ):
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=CHECKED_S)
    done = subprocess.run(
        ["./pan", f"-m{DEPTH_MAX}"], cwd=folder, check=True, capture_output=True, text=True,
        timeout=CHECKED_S,
    )
    assert not done.stderr
    return done.stdout


def errors(said: str) -> int:
    found = re.search(r"errors: (\d+)", said)
    assert found, said
    return int(found[1])


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every model without a fault, two at a time."""
    folder = tmp_path_factory.mktemp("models")
    with ThreadPoolExecutor(2) as pool:
        said = pool.map(
            lambda model: checked(folder / f"with-{model.replace(' ', '-')}", model), MODELS)
        return dict(zip(MODELS, said, strict=True))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.lower() or "as it is")
def test_nothing_goes_wrong_in_any_order(outcomes: dict[str, str], model: str) -> None:
    said = outcomes[model]
    assert errors(said) == 0, said
    assert "not completed" not in said, said
    assert "max search depth too small" not in said, said


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.lower() or "as it is")
def test_every_step_is_taken(outcomes: dict[str, str], model: str) -> None:
    """A step that is never possible would prove nothing."""
    never = re.findall(r'recovery\.pml:\d+, state \d+, "(.*)"', outcomes[model])
    assert set(never) <= {"-end-"}, outcomes[model]


@pytest.mark.parametrize("fault", FAULTS, ids=str.lower)
def test_a_planted_fault_is_found(tmp_path: Path, fault: str) -> None:
    said = checked(tmp_path / "model", f"{FAULTS[fault]} {fault}", breadth_first=True)
    assert errors(said) == 1, said
    assert "assertion violated" in said, said


def test_every_planted_fault_is_named_here_and_in_the_document() -> None:
    text = MODEL.read_text(encoding="utf-8")
    switches = set(re.findall(r"(?:#ifn?def |defined\()(\w+)", text))
    no_faults = {"EPOCHS", *(name for model in MODELS for name in model.split())}
    assert switches - no_faults == set(FAULTS)
    document = (ROOT / "docs" / "recovery.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", document)) >= set(FAULTS)
