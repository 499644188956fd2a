"""The screen of `dlock top`, drawn with rich: what there is in a terminal of some size."""

from __future__ import annotations

import time
from typing import Final

from rich.console import ConsoleDimensions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dlock.cli import plain
from dlock.cli.activity import Activity
from dlock.cli.plain import Part
from dlock.cli.text import safe

PART_LINES: Final = 3  # title, column heads, a blank line before
ROWS_LEAST: Final = 1
FLEXIBLE: Final = {"NAME": 3, "HOLDER": 4, "FIRST IN LINE": 4, "CLIENT": 4, "USER": 1, "JOB": 1}


def frame(activity: Activity | None, where: str, problem: str,
          size: ConsoleDimensions) -> RenderableType:
    """One picture, never larger than the terminal."""
    clock = time.strftime("%H:%M:%S")
    title = f"dlock top  {safe(where)}"
    if activity is not None:
        title += f"  {plain.state(activity)}"
    lines: list[RenderableType] = [_line(f"{title}  {clock}", "bold")]
    if problem:
        lines.append(_line(f"no answer, trying again: {safe(problem)}", "bold red"))
    if activity is None:
        return Group(*lines, _line("looking ...", "dim"))
    lines.append(_line(plain.rates(activity), "green"))
    lines.append(_line(plain.gauges(activity), ""))
    if activity.history:
        room = max(size.width - len("grants/s "), 1)
        lines.append(_line(f"grants/s {plain.bars(activity.history[-room:])}", "cyan"))
    if activity.partial:
        lines.append(_line("many locks: only busy ones, and not all of them", "yellow"))
    left = size.height - len(lines)
    if left < 0:
        return Group(*lines[:size.height])
    shown = [part for part in plain.parts(activity) if part.rows]
    for number, part in enumerate(shown):
        behind = len(shown) - number - 1
        rows = min(len(part.rows), _share(left, behind) - PART_LINES)
        if rows < ROWS_LEAST:
            continue
        lines += ["", _line(part.headline(rows), "bold"), _table(part, rows)]
        left -= rows + PART_LINES
    return Group(*lines)


def _share(left: int, behind: int) -> int:
    """The first table may take half of what is left, the second half of that, the last all."""
    return left if not behind else max(left // 2, left - behind * (PART_LINES + 5))


def _line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _table(part: Part, rows: int) -> Table:
    table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0),
                  header_style="reverse")
    for head in part.head:
        table.add_column(head, justify="right" if head in part.right else "left", no_wrap=True,
                         overflow="ellipsis", ratio=FLEXIBLE.get(head))
    for row in part.rows[:rows]:
        table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in row))
    return table
