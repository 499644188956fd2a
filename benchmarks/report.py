"""Figures: one value a run, their median, the CPU that it took, and the target; as table and JSON.

A figure is printed with its runs' least and greatest value, so that a reader sees what the machine
did in the meantime. CPU is in cores kept busy: CPU seconds a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

HEADINGS: Final = (
    "what", "median", "unit", "least .. greatest", "CPU server", "CPU client", "target", "",
)


@dataclass(frozen=True)
class Target:
    """What a figure is to reach: at least or at most so much."""

    at_least: bool
    bound: float

    def met(self, value: float) -> bool:
        """True if this value is good enough."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {number(self.bound)}"


def at_least(bound: float) -> Target:
    """The target `>= bound`."""
    return Target(True, bound)


def at_most(bound: float) -> Target:
    """The target `<= bound`."""
    return Target(False, bound)


@dataclass
class Figure:
    """One row: the same thing measured once a run."""

    part: str
    name: str
    unit: str
    target: Target | None = None
    note: str = ""
    runs: list[float] = field(default_factory=list)
    server_cores: list[float] = field(default_factory=list)
    client_cores: list[float] = field(default_factory=list)

    def add(self, value: float, server_cores: float | None = None,
            client_cores: float | None = None) -> None:
        """One run's value, and the CPU that it took."""
        self.runs.append(value)
        if server_cores is not None:
            self.server_cores.append(server_cores)
        if client_cores is not None:
            self.client_cores.append(client_cores)

    @property
    def value(self) -> float:
        """The median of the runs."""
        return median(self.runs)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        return None if self.target is None or not self.runs else self.target.met(self.value)

    def as_json(self) -> dict[str, Any]:
        """For the results file."""
        return {
            **asdict(self),
            "target": str(self.target) if self.target else None,
            "median": self.value if self.runs else None,
            "met": self.met,
        }


class Figures:
    """The figures of one part, by name, in the order of their first mention."""

    def __init__(self, part: str) -> None:
        self.part = part
        self._by_name: dict[str, Figure] = {}

    def __iter__(self) -> Any:
        return iter(self._by_name.values())

    def row(self, name: str, unit: str, target: Target | None = None, note: str = "") -> Figure:
        """The figure of this name."""
        if name not in self._by_name:
            self._by_name[name] = Figure(self.part, name, unit, target, note)
        return self._by_name[name]

    def skip(self, name: str, reason: str) -> None:
        """A row that says why there is nothing in it."""
        self.row(name, "", note=f"skipped: {reason}")


def number(value: float) -> str:
    """Three or four digits that count, with thousands separated."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def _cores(values: Sequence[float]) -> str:
    return f"{median(values):.2f}" if values else ""


def _cells(figure: Figure) -> tuple[str, ...]:
    if not figure.runs:
        return (figure.name, "", figure.unit, figure.note, "", "", "", "")
    verdict = {None: "", True: "met", False: "MISSED"}[figure.met]
    spread = f"{number(min(figure.runs))} .. {number(max(figure.runs))}"
    return (
        figure.name, number(figure.value), figure.unit, spread, _cores(figure.server_cores),
        _cores(figure.client_cores), str(figure.target or ""),
        " ".join(filter(None, (verdict, figure.note))),
    )


def table(figures: Iterable[Figure]) -> str:
    """All figures as Markdown, a section a part."""
    lines: list[str] = []
    part = None
    for figure in figures:
        if figure.part != part:
            part = figure.part
            lines += ["", f"### {part}", "", _row(HEADINGS), _row(["---"] * len(HEADINGS))]
        lines.append(_row(_cells(figure)))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write(path: Path, facts: dict[str, Any], figures: Iterable[Figure]) -> None:
    """The results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": facts, "figures": [figure.as_json() for figure in figures]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
