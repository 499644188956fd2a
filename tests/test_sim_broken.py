"""The test of the test: what is planted is found, and nothing is found where nothing is planted.

`make sim-broken` does the same and shows the table; sim/broken says how.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sim.broken.__main__ import line_of  # noqa: E402
from sim.broken.faults import FAULTS, Fault  # noqa: E402
from sim.broken.finders import Outcome, look_at_none, look_for, what_found  # noqa: E402
from sim.broken.tree import FaultError, Tree  # noqa: E402

NEEDED = 19  # deliberate faults, at least

needs_a_compiler = pytest.mark.skipif(
    shutil.which("cc") is None or shutil.which("cmake") is None, reason="needs cc and cmake")


def named(fault: Fault) -> str:
    return fault.name


# ---- The list ------------------------------------------------------------------------------------


def test_there_are_enough() -> None:
    names = Counter(fault.name for fault in FAULTS)
    assert len(FAULTS) >= NEEDED
    assert max(names.values()) == 1


@pytest.mark.parametrize("fault", FAULTS, ids=named)
def test_each_is_where_it_is_planted_once(fault: Fault) -> None:
    assert (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old) == 1
    assert fault.old != fault.new


def test_each_is_in_the_document() -> None:
    document = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert [fault.name for fault in FAULTS if f"`{fault.name}`" not in document] == []


# ---- Planting ------------------------------------------------------------------------------------


def small_tree(tmp_path: Path) -> Tree:
    source = tmp_path / "source"
    (source / "dlock").mkdir(parents=True)
    (source / "dlock" / "one.py").write_text("a = 1\nb = 2\n")
    (source / "CMakeLists.txt").write_text("project(nothing)\n")
    tree = Tree(tmp_path / "copy", source)
    tree.refresh()
    return tree


def test_a_fault_is_planted_in_the_copy_and_taken_out_again(tmp_path: Path) -> None:
    tree = small_tree(tmp_path)
    copy, original = tmp_path / "copy/dlock/one.py", tmp_path / "source/dlock/one.py"
    with tree.with_planted("dlock/one.py", "b = 2", "b = 3"):
        assert copy.read_text() == "a = 1\nb = 3\n"
        assert original.read_text() == "a = 1\nb = 2\n"
    assert copy.read_text() == original.read_text()


@pytest.mark.parametrize("old", ["b = 4", "= "])
def test_what_is_not_there_once_is_not_planted(tmp_path: Path, old: str) -> None:
    tree = small_tree(tmp_path)
    with pytest.raises(FaultError, match="times, not once"), tree.with_planted(
            "dlock/one.py", old, "c"):
        pass
    assert (tmp_path / "copy/dlock/one.py").read_text() == "a = 1\nb = 2\n"


def test_what_has_not_changed_is_not_compiled_again(tmp_path: Path) -> None:
    tree = small_tree(tmp_path)
    copy, source = tmp_path / "copy/dlock/one.py", tmp_path / "source/dlock"
    before = copy.stat().st_mtime_ns
    tree.refresh()
    assert copy.stat().st_mtime_ns == before
    (source / "one.py").unlink()
    (source / "two.py").write_text("")
    tree.refresh()
    assert [one.name for one in copy.parent.iterdir()] == ["two.py"]


def test_the_table_says_what_was_not_found() -> None:
    fault = FAULTS[0]
    assert "NOT FOUND" in line_of(Outcome(fault, ""))
    assert "seventeen" in line_of(Outcome(fault, "seventeen", 17, 4, 4))
    by_histories = replace(fault, histories="a test")
    assert f"{fault.seeds} histories" in line_of(Outcome(by_histories, ""))


def test_what_was_found_is_looked_at_without_the_fault() -> None:
    fault = FAULTS[0]
    by_histories = replace(fault, histories="a test")
    outcomes = [Outcome(fault, "found", 9, 4), Outcome(fault, "found", 2, 3), Outcome(fault, ""),
                Outcome(by_histories, "found", 7, 8), Outcome(by_histories, "found", 3, 4)]
    assert what_found(outcomes) == ([2, 9], {"a test": 8})


# ---- Histories -----------------------------------------------------------------------------------

HISTORIES = """
import os
import pytest

@pytest.mark.parametrize("seed", range(int(os.environ["DLOCK_ORACLE_SEEDS"])))
def test_one(seed):
    assert seed != 3, "three"

def test_not_a_history():
    assert False

@pytest.mark.parametrize("tens", range(1, 1 + int(os.environ["DLOCK_HISTORIES"]), 10))
def test_ten(tens):
    assert tens != 11, "seed 17: go stay: two"

@pytest.mark.parametrize("seed", range(2))
def test_no_law(seed):
    raise ValueError(seed)
"""


class NothingToBuild(Tree):
    def build(self) -> None:
        """There is no C in it."""


@pytest.fixture
def played(tmp_path: Path) -> Tree:
    (tmp_path / "copy" / "tests").mkdir(parents=True)
    (tmp_path / "copy" / "tests" / "test_small.py").write_text(HISTORIES)
    return NothingToBuild(tmp_path / "copy", tmp_path / "source")


def of_histories(test: str, seeds: int) -> Fault:
    return Fault("small", "", "tests/test_small.py", "def test_not_a_history", "def test_other",
                 seeds=seeds, histories=f"tests/test_small.py::{test}")


@pytest.mark.parametrize(("test", "seeds", "seed", "worlds", "law"), [
    ("test_one", 3, 0, 3, ""),
    ("test_one", 9, 3, 4, "three"),
    ("test_ten", 10, 0, 10, ""),
    ("test_ten", 30, 17, 17, "two"),
])
def test_histories_are_played_until_one_goes_wrong(
    played: Tree, test: str, seeds: int, seed: int, worlds: int, law: str
) -> None:
    outcome = look_for(of_histories(test, seeds), played)
    assert (outcome.seed, outcome.worlds) == (seed, worlds)
    assert outcome.law.partition("assert")[0].strip() == law
    without = look_at_none(played, [], {f"tests/test_small.py::{test}": seeds})
    assert without.law == outcome.law


@pytest.mark.parametrize("test", ["test_no_law", "test_not_a_history", "test_nowhere"])
def test_what_is_no_law_is_not_found(played: Tree, test: str) -> None:
    with pytest.raises(FaultError, match="does not run with small"):
        look_for(of_histories(test, 4), played)


# ---- Finding -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree() -> Tree:
    copy = Tree(ROOT / "build" / "broken")
    copy.refresh()
    return copy


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    """Of the faults so far."""
    return []


@pytest.mark.evidence
@pytest.mark.timeout(1800)
@needs_a_compiler
@pytest.mark.parametrize("fault", FAULTS, ids=named)
def test_what_is_planted_is_found(tree: Tree, fault: Fault, outcomes: list[Outcome]) -> None:
    outcome = look_for(fault, tree)
    print(line_of(outcome))
    assert outcome.found, line_of(outcome)
    outcomes.append(outcome)


@pytest.mark.evidence
@pytest.mark.timeout(1800)
@needs_a_compiler
def test_the_same_is_good_without_a_fault(tree: Tree, outcomes: list[Outcome]) -> None:
    worlds, histories = what_found(outcomes)
    outcome = look_at_none(tree, worlds or [0], histories)
    assert not outcome.found, f"seed {outcome.seed}: {outcome.law}"
