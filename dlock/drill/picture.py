"""A drill as a picture: on top how long each failure kept everybody waiting, below some rounds in
full, with a lane for the primaries and one for each client, and their holds as bars.

Needs matplotlib (`pip install 'dlock[picture]'`), which is imported when something is drawn and not
before. It draws without a display and changes no settings of matplotlib.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dlock.drill.judge import Verdict
from dlock.drill.picture_lanes import ENDS, Lane, client_lanes, primary_lanes
from dlock.drill.records import FaultBegun, FaultEnded, Record, RoundBegun, RoundEnded
from dlock.drill.report import rounds_to_tell, verdict_in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MISSING: Final = ("a picture needs matplotlib, which is not installed: "
                  "pip install 'dlock[picture]'")
SUFFIXES: Final = (".png", ".svg", ".pdf")
PANELS: Final = 5  # rounds that are drawn in full
BEFORE_S, AFTER_S = 0.3, 0.15  # what is drawn around a failure and the end of its round
WIDTH_IN, OVERVIEW_IN, LANE_IN, EDGE_IN = 13.0, 2.4, 0.3, 0.85
DPI: Final = 110
NS: Final = 1e9
INK, PALE, FAULT, GRANT, WRONG = "#22303c", "#7b8a97", "#d9534f", "#2e8b57", "#d0021b"


class PictureError(Exception):
    """It cannot be drawn; the text says why and what to do."""


def draw(records: Sequence[Record], verdict: Verdict, path: Path) -> None:
    """Writes the picture. `records` in the order of time; what `path` ends with says what it
    becomes. PictureError: another ending, no matplotlib, nothing to draw, or no place for it."""
    if path.suffix.lower() not in SUFFIXES:
        raise PictureError(f"{path}: a picture ends with {', '.join(SUFFIXES)}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PictureError(MISSING) from None
    rounds = _chosen(verdict, records)
    if not rounds and not verdict.failures:
        raise PictureError("nothing failed in this drill, so there is nothing to draw")
    windows = [_window(records, verdict, number) for number in rounds]
    wrong = [record for one in verdict.found for record in one.violation.records]
    lanes = [[*primary_lanes(records, window), *client_lanes(records, window, wrong)]
             for window in windows]
    heights = [OVERVIEW_IN, *(EDGE_IN + LANE_IN * max(len(one), 2) for one in lanes)]
    figure = Figure(figsize=(WIDTH_IN, sum(heights) + 0.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    seed = f", seed {verdict.begun.seed}" if verdict.begun else ""
    figure.suptitle(
        f"dlock drill: {len(verdict.rounds)} rounds{seed}: {verdict_in_words(verdict)}",
        color=WRONG if verdict.counts else INK, fontsize=12, fontweight="bold")
    _overview(panels[0], verdict)
    for panel, number, window, of_round in zip(panels[1:], rounds, windows, lanes, strict=True):
        _panel(panel, records, verdict, number, window, of_round)
    if lanes:
        _legend(panels[-1])
    try:
        figure.savefig(path)
    except OSError as problem:
        raise PictureError(f"{path} cannot be written: {problem.strerror}") from None


def _chosen(verdict: Verdict, records: Sequence[Record]) -> list[int]:
    """Rounds with a violation first, then those with the longest waits, in their own order."""
    told = rounds_to_tell(verdict, records)
    violated = {one.round for one in verdict.found}
    waits: dict[int, float] = defaultdict(float)
    for one in verdict.failures:
        waits[one.round] = max(waits[one.round], one.grant_s or 0.0)
    told.sort(key=lambda number: (number not in violated, -waits[number]))
    return sorted(told[:PANELS])


def _window(records: Iterable[Record], verdict: Verdict, number: int) -> tuple[int, int]:
    """From when until when a round is drawn: from a little before its first failure, or its first
    violation, on."""
    of_round = [one for one in records
                if isinstance(one, RoundBegun | RoundEnded | FaultBegun | FaultEnded)
                and one.round == number]
    failed = [one.t_ns for one in of_round if isinstance(one, FaultBegun)]
    wrong = [one.violation.t_ns for one in verdict.found if one.round == number]
    begin_ns = min([*failed, *wrong], default=of_round[0].t_ns)
    return (begin_ns - int(BEFORE_S * NS),
            max([*(one.t_ns for one in of_round), *wrong]) + int(AFTER_S * NS))


# ---- The whole drill -----------------------------------------------------------------------------


def _overview(panel: Axes, verdict: Verdict) -> None:
    """When each failure was, and how long it took until the first grant."""
    start_ns = verdict.begun.t_ns if verdict.begun else 0
    faults = sorted({one.fault for one in verdict.failures})
    for number, fault in enumerate(faults):
        of_one = [one for one in verdict.failures
                  if one.fault == fault and one.grant_s is not None]
        panel.scatter([(one.t_ns - start_ns) / NS for one in of_one],
                      [max(one.grant_s or 0.0, 1e-3) for one in of_one], s=22,
                      marker="os^Dv<>"[number % 7], color=f"C{number % 10}", label=fault,
                      zorder=3)
    never = [(one.t_ns - start_ns) / NS for one in verdict.failures if one.grant_s is None]
    panel.scatter(never, [1e-3] * len(never), s=30, marker="x", color=PALE, zorder=3,
                  label="nothing was asked for" if never else None)
    for one in verdict.found:
        panel.axvline(one.seconds, color=WRONG, linewidth=1.2, zorder=1)
    panel.set_yscale("log")
    panel.set_ylim(bottom=8e-4)
    panel.set_ylabel("first grant after\nthe failure, s", fontsize=8, color=INK)
    panel.set_xlabel("s after the drill began", fontsize=8, color=INK)
    panel.grid(axis="y", color="#e6eaed", linewidth=0.7)
    panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.005, 0.5), frameon=False)
    _plain(panel)


# ---- One round -----------------------------------------------------------------------------------


def _panel(panel: Axes, records: Sequence[Record], verdict: Verdict, number: int,
           window: tuple[int, int], lanes: Sequence[Lane]) -> None:
    failed = [one for one in verdict.failures if one.round == number]
    zero_ns = failed[0].t_ns if failed else window[0]

    def at(t_ns: int) -> float:
        return (t_ns - zero_ns) / NS

    left, right = at(window[0]), at(window[1])
    for row, lane in enumerate(reversed(lanes)):
        _lane(panel, row, lane, [(at(one.begin_ns), at(one.end_ns)) for one in lane.bars])
    for begun_ns, ended_ns in _spans(records, number, window):
        panel.axvspan(at(begun_ns), at(ended_ns), color=FAULT, alpha=0.10, linewidth=0, zorder=0)
    for one in failed:
        panel.axvline(at(one.t_ns), color=FAULT, linewidth=1.4, zorder=4)
        if one.grant_s is not None:
            panel.axvline(at(one.t_ns) + one.grant_s, color=GRANT, linewidth=1.2,
                          linestyle=(0, (4, 2)), zorder=4)
    for found in verdict.found:
        if found.round == number:
            panel.axvline(at(found.violation.t_ns), color=WRONG, linewidth=1.6, zorder=5)
    panel.set_xlim(left, right)
    panel.set_ylim(-0.6, max(len(lanes), 2) - 0.4)
    panel.set_yticks(range(len(lanes)), [one.name for one in reversed(lanes)], fontsize=7)
    panel.set_xlabel("s after the failure", fontsize=8, color=INK)
    panel.set_title(_title(verdict, number, records), fontsize=9, loc="left", color=INK)
    _plain(panel)


def _title(verdict: Verdict, number: int, records: Iterable[Record]) -> str:
    """What failed, and what came of it."""
    fault = next(one.fault for one in records
                 if isinstance(one, RoundBegun) and one.round == number)
    failed = [one for one in verdict.failures if one.round == number]
    details = ", then ".join(dict.fromkeys(one.detail for one in failed if one.detail))
    words = f"round {number}: {fault}" + (f" ({details})" if details else "")
    wrong = sum(one.round == number for one in verdict.found)
    if wrong:
        return f"{words}: {wrong} VIOLATION{'S' * (wrong > 1)}"
    if failed:
        first = failed[0]
        words += f": {first.held} held, {first.kept} kept, {first.lost} lost and told"
    return words


def _lane(panel: Axes, row: int, lane: Lane, spans: Sequence[tuple[float, float]]) -> None:
    """The bars of one lane, in as many rows as overlap; a bar is never too thin to be seen."""
    height = 0.8 / lane.rows
    by_look: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for bar, (begin, end) in zip(lane.bars, spans, strict=True):
        by_look[bar.look, bar.row].append((begin, end - begin))
    for (look, sub), widths in by_look.items():
        panel.broken_barh(
            widths, (row - 0.4 + sub * height, height * (0.86 if lane.rows < 40 else 1.0)),
            facecolors=ENDS[look][0], edgecolors=ENDS[look][0], linewidth=0.6, zorder=2)
    wrong = [(bar.row, begin, end)
             for bar, (begin, end) in zip(lane.bars, spans, strict=True) if bar.wrong]
    for sub, begin, end in wrong:
        panel.broken_barh(
            [(begin, end - begin)], (row - 0.4 + sub * height, height), facecolors="none",
            edgecolors=WRONG, linewidth=1.8, zorder=6)
    panel.axhline(row - 0.5, color="#eef1f3", linewidth=0.6, zorder=0)


def _spans(records: Sequence[Record], number: int, window: tuple[int, int]
           ) -> list[tuple[int, int]]:
    """From each failure of a round until the drill had put everything back in its place."""
    times = attrgetter("t_ns")
    of_round = records[bisect_left(records, window[0], key=times):
                       bisect_right(records, window[1], key=times)]
    begun = [one.t_ns for one in of_round if isinstance(one, FaultBegun) and one.round == number]
    ended = [one.t_ns for one in of_round if isinstance(one, FaultEnded) and one.round == number]
    return [(begun[0], max(ended, default=window[1]))] if begun else []


def _legend(panel: Axes) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks = [*(Patch(color=color, label=label) for color, label in ENDS.values()),
             Patch(color=FAULT, alpha=0.2, label="until the drill had put things back"),
             Line2D([], [], color=FAULT, label="a failure"),
             Line2D([], [], color=GRANT, linestyle="--", label="the first grant after it"),
             Line2D([], [], color=WRONG, linewidth=2.2, label="a violation, and its holds")]
    panel.figure.legend(handles=marks, fontsize=7, loc="outside lower center", ncols=6,
                        frameon=False)


def _plain(panel: Axes) -> None:
    """Little ink for what is not data."""
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color(PALE)
    panel.tick_params(colors=INK, labelsize=7, length=2)
