"""The picture of a drill: what stands in which lane, and that it is drawn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from drill_records import MS, a_drill, hold, token

from dlock.drill.judge import judge
from dlock.drill.picture import MISSING, PictureError, draw
from dlock.drill.picture_lanes import (
    LANES,
    READY,
    RECOVERING,
    STARTING,
    STOPPED,
    Bar,
    client_lanes,
    primary_lanes,
)
from dlock.drill.records import (
    LOST,
    DrillBegun,
    DrillEnded,
    PrimaryContinued,
    PrimaryStopped,
    Record,
)

WINDOW = (200 * MS, 900 * MS)


def sorted_drill(*records: Record) -> list[Record]:
    return sorted(a_drill(*records), key=lambda one: one.t_ns)


# ---- Lanes ---------------------------------------------------------------------------------------


def test_holds_stand_in_the_lane_of_their_client_cut_to_the_window() -> None:
    records = sorted_drill(
        hold(100, 300, 1), hold(400, 500, 2, ended=LOST), hold(10, 20, 3, client="c9"),
        hold(850, 2000, 4, client="c10"), hold(850, 2000, 5, client="c2"))
    lanes = client_lanes(records, WINDOW)
    assert [one.name for one in lanes] == ["c1", "c2", "c10"]
    assert lanes[0].bars == (
        Bar(200 * MS, 300 * MS, "released"), Bar(400 * MS, 500 * MS, LOST))


def test_holds_at_the_same_time_stand_above_one_another() -> None:
    records = sorted_drill(hold(300, 500, 1, name="a"), hold(350, 400, 2, name="b"),
                           hold(450, 600, 3, name="c"), hold(550, 600, 4, name="d"))
    (lane,) = client_lanes(records, WINDOW)
    assert [one.row for one in lane.bars] == [0, 1, 1, 0]
    assert lane.rows == 2


def test_the_holds_of_a_violation_are_marked() -> None:
    one, other = hold(300, 500, 1), hold(350, 400, 2, client="c2")
    lanes = client_lanes(sorted_drill(one, other, hold(600, 610, 3)), WINDOW, [one, other])
    assert [[bar.wrong for bar in lane.bars] for lane in lanes] == [[True, False], [True]]


def test_very_many_clients_are_drawn_in_part() -> None:
    records = sorted_drill(*(hold(300, 400, n, name=str(n), client=f"c{n}")
                             for n in range(LANES + 3)))
    lanes = client_lanes(records, WINDOW)
    assert len(lanes) == LANES + 1
    assert lanes[-1].name == "and 3 more"


def test_a_primary_starts_recovers_and_is_ready_until_it_is_killed() -> None:
    first, second = primary_lanes(sorted_drill(), (0, 900 * MS))
    assert (first.name, second.name) == ("p1", "p2")
    assert [(one.look, one.begin_ns // MS, one.end_ns // MS) for one in first.bars] == [
        (STARTING, 1, 2), (READY, 2, 201)]
    assert [(one.look, one.begin_ns // MS, one.end_ns // MS) for one in second.bars] == [
        (STARTING, 250, 400), (RECOVERING, 400, 500), (READY, 500, 900)]


def test_a_primary_that_stood_still_goes_on_as_before() -> None:
    records = sorted_drill(PrimaryStopped(600 * MS, "p2"), PrimaryContinued(700 * MS, "p2"))
    second = primary_lanes(records, (0, 900 * MS))[1]
    assert [one.look for one in second.bars] == [STARTING, RECOVERING, READY, STOPPED, READY]


def test_who_is_not_in_the_window_has_no_lane() -> None:
    assert [one.name for one in primary_lanes(sorted_drill(), (600 * MS, 900 * MS))] == ["p2"]


# ---- Drawing -------------------------------------------------------------------------------------


def drawn(path: Path, *records: Record) -> bytes:
    found = sorted_drill(*records)
    draw(found, judge(found), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "magic"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.PDF", b"%PDF")])
def test_a_picture_is_drawn(tmp_path: Path, name: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    written = drawn(tmp_path / name, hold(150, 450, 1), hold(700, 710, 0, token=token(5, 2)))
    assert written.startswith(magic)


def test_a_picture_says_what_is_wrong(tmp_path: Path) -> None:
    """An SVG keeps its words when the font is not drawn as outlines; here the outlines differ."""
    pytest.importorskip("matplotlib")
    clean = drawn(tmp_path / "a.svg", hold(210, 220, 1))
    wrong = drawn(tmp_path / "b.svg", hold(210, 220, 1), hold(215, 217, 2, client="c2"))
    assert b"#d0021b" in wrong
    assert wrong.count(b"#d0021b") > clean.count(b"#d0021b")


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PictureError) as raised:
        drawn(tmp_path / "a.png", hold(1, 2, 1))
    assert str(raised.value) == MISSING
    assert "pip install 'dlock[picture]'" in MISSING


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.txt", "a picture ends with .png, .svg, .pdf"),
     ("no/such/folder/a.png", "cannot be written: No such file")],
)
def test_where_it_cannot_be_written(tmp_path: Path, name: str, text: str) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(PictureError, match=text):
        drawn(tmp_path / name, hold(1, 2, 1))


def test_a_drill_without_failures_has_no_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    fields: dict[str, Any] = {"interrupted": False, "why": ""}
    records = [DrillBegun(0, 7, "dlock drill", "0.1.0", [], 0, 0.0, 1, 1, 1.0, ""),
               hold(1, 2, 1), DrillEnded(5 * MS, **fields)]
    with pytest.raises(PictureError, match="nothing failed"):
        draw(records, judge(records), tmp_path / "a.png")
