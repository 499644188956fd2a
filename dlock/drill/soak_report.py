"""What a long run found: the verdict over its samples, as text and as JSON. It starts nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from dlock.cli.text import duration, number, table
from dlock.drill.sample import Usage
from dlock.drill.steady import Sample, Trend, Verdict, trend

MIB: Final = 1 << 20
# By how much each may grow in the time that is judged, whatever its length.
BOUNDS: Final = {
    "memory": 4.0 * MIB, "descriptors": 2.0, "threads": 1.0,
    "clients": 2.0, "connections": 4.0, "locks": 200.0, "objects": 20.0, "sessions_leaving": 2.0,
    "commands_under_way": 4.0, "files": 2.0, "bytes": 16.0 * 1024,
}
OF_PROCESSES: Final = ("memory", "descriptors", "threads")
GAUGES: Final = ("clients", "connections", "locks", "objects", "sessions_leaving",
                 "commands_under_way")
EMPTY_AT_THE_END: Final = ("clients", "locks", "sessions_leaving")
LIFE_SAMPLES_MIN: Final = 3
IN_A_LIFE: Final = ", at most in a life"
HEADS: Final = ("WHO", "WHAT", "FIRST", "LAST", "LEAST", "GREATEST", "GROWTH", "95 %", "BOUND", "")


@dataclass
class Series:
    """Samples of one quantity: seconds since the load began, value."""

    who: str
    what: str
    samples: list[Sample] = field(default_factory=list)


@dataclass
class Life:
    """One life of a primary that is killed now and then: what it used at most."""

    began_s: float
    samples: int = 0
    memory_bytes: int = 0
    descriptors: int = 0
    threads: int = 0

    def sample(self, found: Usage) -> None:
        """One look at it."""
        self.samples += 1
        self.memory_bytes = max(self.memory_bytes, found.memory_bytes)
        self.descriptors = max(self.descriptors, found.descriptors)
        self.threads = max(self.threads, found.threads)


@dataclass(frozen=True)
class Done:
    """What a client process says that it has done, and the first error of each name."""

    counts: dict[str, int]
    said: dict[str, str]


@dataclass
class Run:
    """All that a run found. `lives` by service, of those whose primary fails."""

    seconds: float
    warm_up_s: float
    series: list[Series]
    problems: list[str]
    done: dict[str, Done]
    lives: dict[str, list[Life]]
    victims: dict[str, int]


@dataclass(frozen=True)
class Line:
    """One quantity and what became of it."""

    who: str
    what: str
    trend: Trend


@dataclass(frozen=True)
class Judged:
    """The verdict. `status` is the exit code."""

    status: int
    lines: list[Line]
    problems: list[str]
    doubts: list[str]

    @property
    def word(self) -> str:
        """The verdict in a word or two."""
        return {0: "flat", 1: "not flat", 2: "not decided"}[self.status]


def judge(run: Run) -> Judged:
    """0: everything is flat; 1: something grows, or something went wrong; 2: too short to tell."""
    lines = [Line(one.who, one.what, trend(after_warm_up(one, run.warm_up_s), BOUNDS[one.what]))
             for one in run.series if not _starts_anew(one, run)]
    lines += [line for name, lives in run.lives.items() for line in _over_lives(name, lives)]
    grown = [f"{one.who}: {one.what} grows by {amount(one.what, one.trend.growth)} in "
             f"{duration(one.trend.observed_s)} (bound {amount(one.what, one.trend.bound)})"
             for one in lines if one.trend.verdict is Verdict.GROWS]
    doubts = [f"{one.who}: {one.what}: " + (
        f"the bound {amount(one.what, one.trend.bound)} lies within the interval of its growth"
        if one.trend.verdict is Verdict.OPEN else one.trend.verdict.value)
        for one in lines if one.trend.verdict is Verdict.OPEN or (
            one.trend.verdict is Verdict.FEW and not one.who.endswith(IN_A_LIFE))]
    problems = run.problems + grown
    idle = [name for name, done in run.done.items() if not done.counts]
    problems += [f"{name} did nothing" for name in idle]
    return Judged(1 if problems else 2 if doubts else 0, lines, problems, doubts)


def after_warm_up(series: Series, warm_up_s: float) -> list[Sample]:
    """The samples that count."""
    return [one for one in series.samples if one[0] >= warm_up_s]


def _starts_anew(series: Series, run: Run) -> bool:
    """A process that is killed now and then has no slope over its lives."""
    return series.what in OF_PROCESSES and series.who in {
        f"primary, {name}" for name in run.lives}


def _over_lives(name: str, lives: list[Life]) -> list[Line]:
    """What each life of a primary used at most, over its lives: the first is the warm-up, and the
    last one may have been short. A short run has too few lives for a verdict, and says so."""
    whole = [one for one in lives[1:-1] if one.samples >= LIFE_SAMPLES_MIN]
    found = {"memory": [(one.began_s, float(one.memory_bytes)) for one in whole],
             "descriptors": [(one.began_s, float(one.descriptors)) for one in whole],
             "threads": [(one.began_s, float(one.threads)) for one in whole]}
    return [Line(f"primary, {name}{IN_A_LIFE}", what, trend(samples, BOUNDS[what]))
            for what, samples in found.items()]


def done_by(folder: Path, service: str) -> dict[str, Done]:
    """The last line of each client process of a service."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        if path.stem == "victim":
            continue
        lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        last = json.loads(lines[-1]) if lines else {"counts": {}, "said": {}}
        found[f"{path.stem}, {service}"] = Done(last["counts"], last["said"])
    return found


# ---- As text and JSON ----------------------------------------------------------------------------


def amount(what: str, value: float) -> str:
    """For people: bytes as MiB, all else as a number."""
    if what == "memory":
        return f"{value / MIB:.2f} MiB"
    if what == "bytes":
        return f"{value / 1024:.1f} KiB"
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def text(run: Run, judged: Judged, facts: Mapping[str, Any]) -> str:
    """What an operator reads."""
    total = sum(sum(done.counts.values()) for done in run.done.values())
    failures = sum(len(lives) - 1 for lives in run.lives.values())
    head = [
        f"dlock soak: {duration(run.seconds)}, the last {duration(run.seconds - run.warm_up_s)} "
        f"of it judged; seed {facts['seed']}",
        f"{number(total)} operations ({total / run.seconds:,.0f} a second), {failures} failures of "
        f"a primary, {sum(run.victims.values())} clients killed",
    ]
    rows = [_row(one) for one in judged.lines]
    parts = ["\n".join(head), table(HEADS, rows, HEADS[2:9]), _counts(run)]
    if judged.problems:
        parts.append("NOT FLAT\n" + "\n".join(f"  {one}" for one in judged.problems))
    if judged.doubts:
        parts.append("NOT DECIDED (run it for longer)\n"
                     + "\n".join(f"  {one}" for one in judged.doubts))
    parts.append({0: "FLAT: nothing grows beyond its bound, nothing was left over.",
                  1: "NOT FLAT.", 2: "NOT DECIDED."}[judged.status])
    return "\n\n".join(parts)


def _row(line: Line) -> tuple[str, ...]:
    one, what = line.trend, line.what
    return (line.who, what, *(amount(what, value) for value in (
        one.first, one.last, one.least, one.greatest, one.growth)),
        f"{amount(what, one.low)} .. {amount(what, one.high)}", amount(what, one.bound),
        one.verdict.value)


def _counts(run: Run) -> str:
    """How much each process did; what it was told besides."""
    rows = []
    for name, done in run.done.items():
        told = {what: count for what, count in done.counts.items() if what[:1].isupper()}
        said = ", ".join(f"{what} {count:,}" for what, count in sorted(told.items()))
        rows.append((name, f"{sum(done.counts.values()):,}", said))
    return table(("CLIENT", "TURNS", "ANSWERS BY NAME"), rows, ("TURNS",))


def as_json(run: Run, judged: Judged, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, with all samples."""
    return {
        **facts, "status": judged.status, "problems": judged.problems, "doubts": judged.doubts,
        "observed_s": run.seconds, "warm_up_s": run.warm_up_s,
        "done": {who: asdict(done) for who, done in run.done.items()},
        "victims": run.victims,
        "lives": {name: [asdict(one) for one in lives] for name, lives in run.lives.items()},
        "lines": [{"who": one.who, "what": one.what, **asdict(one.trend),
                   "verdict": one.trend.verdict.value, "per_hour": one.trend.per_hour}
                  for one in judged.lines],
        "samples": [{"who": one.who, "what": one.what, "values": one.samples}
                    for one in run.series],
    }
