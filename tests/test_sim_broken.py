"""The test of the test: what is planted is found, and nothing is found where nothing is planted.

`make sim-broken` does the same and shows the table; sim/broken says how.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sim.broken.__main__ import line_of  # noqa: E402
from sim.broken.faults import FAULTS, Fault  # noqa: E402
from sim.broken.finders import Outcome, look_at_none, look_for  # noqa: E402
from sim.broken.tree import FaultError, Tree  # noqa: E402

NEEDED = 14  # deliberate faults, at least

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


# ---- Finding -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree() -> Tree:
    copy = Tree(ROOT / "build" / "broken")
    copy.refresh()
    return copy


@pytest.fixture(scope="module")
def told_by() -> set[int]:
    """The seeds of the worlds in which something was found."""
    return set()


@pytest.mark.evidence
@pytest.mark.timeout(1800)
@needs_a_compiler
@pytest.mark.parametrize("fault", FAULTS, ids=named)
def test_what_is_planted_is_found(tree: Tree, fault: Fault, told_by: set[int]) -> None:
    outcome = look_for(fault, tree)
    print(line_of(outcome))
    assert outcome.found, line_of(outcome)
    told_by.add(outcome.seed)


@pytest.mark.evidence
@pytest.mark.timeout(1800)
@needs_a_compiler
def test_the_same_worlds_are_good_without_a_fault(tree: Tree, told_by: set[int]) -> None:
    outcome = look_at_none(tree, sorted(told_by) or [0])
    assert not outcome.found, f"seed {outcome.seed}: {outcome.law}"
