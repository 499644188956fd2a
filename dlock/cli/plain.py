"""What `dlock top` shows, as rows of text: for --once as they are, for the screen in colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from dlock.cli.activity import Activity, HotLock
from dlock.cli.ls import holders
from dlock.cli.show import who
from dlock.cli.text import NOTHING, duration, number, safe, table

BARS: Final = " ▁▂▃▄▅▆▇█"


class Part(NamedTuple):
    """One table: its title, its columns, which of them stand to the right, its rows, and how many
    rows there are in all."""

    title: str
    head: Sequence[str]
    right: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: int

    def headline(self, rows: int) -> str:
        """The title, when so many rows are shown."""
        return self.title if rows >= self.total else f"{self.title} ({rows} of {self.total})"


def parts(activity: Activity) -> tuple[Part, Part, Part]:
    """The three tables."""
    return (
        Part("HOT LOCKS", ("NAME", "KIND", "A SECOND", "HELD", "WAIT", "HOLDER", "SINCE"),
             ("A SECOND", "HELD", "WAIT", "SINCE"),
             [_hot(one) for one in activity.hot], activity.busy),
        Part("WAITS", ("NAME", "IN LINE", "FIRST IN LINE", "SINCE"), ("IN LINE", "SINCE"),
             [_wait(one) for one in activity.crowded], activity.lines),
        Part("CLIENTS", ("CLIENT", "USER", "JOB", "OVER", "NAMES", "AGE"), ("NAMES", "AGE"),
             [(who(one), safe(one.user) or NOTHING, safe(one.job) or NOTHING, one.transport,
               str(one.locks),
               duration(one.since_s) + ("" if one.connected else " (away)"))
              for one in activity.clients], activity.sessions),
    )


def _hot(one: HotLock) -> tuple[str, ...]:
    summary = one.summary
    first = one.details.holders[0] if one.details and one.details.holders else None
    return (safe(summary.key), summary.kind, _rate(one.rate), holders(summary),
            str(summary.waiters), who(first) if first else NOTHING,
            duration(first.since_s) if first else NOTHING)


def _rate(rate: float) -> str:
    return f"{rate:.1f}" if 0 < rate < 9.95 else number(rate)


def _wait(one: HotLock) -> tuple[str, ...]:
    first = one.details.waiters[0] if one.details and one.details.waiters else None
    return (safe(one.summary.key), str(one.summary.waiters), who(first) if first else NOTHING,
            duration(first.since_s) if first else NOTHING)


def rates(activity: Activity) -> str:
    """One line: how much happens a second."""
    return "   ".join(f"{name} {number(rate)}/s" for name, rate in activity.rates.items())


def gauges(activity: Activity) -> str:
    """One line: how much there is, and what has gone wrong since the start."""
    return "   ".join(f"{name.replace('_', ' ').lower()} {number(value)}" for name, value in
                      [*activity.gauges.items(), *activity.faults.items()])


def state(activity: Activity) -> str:
    """Some words: epoch, whether it serves, and whether over RDMA too."""
    ready = "ready" if activity.ready else "settling after a restart"
    return f"epoch {activity.epoch}, {ready}{', RDMA' * activity.verbs}"


def bars(values: Sequence[float]) -> str:
    """A small picture of the last values."""
    most = max(values, default=0.0) or 1.0
    return "".join(BARS[min(round(value / most * (len(BARS) - 1)), len(BARS) - 1)]
                   for value in values)


def text(activity: Activity) -> str:
    """One interval as text."""
    lines = [state(activity), rates(activity), gauges(activity)]
    if activity.partial:
        lines.append("there are many locks: only busy ones were looked at, and not all of them")
    for part in parts(activity):
        if part.rows:
            lines += ["", part.headline(len(part.rows)), table(part.head, part.rows, part.right)]
    return "\n".join(lines)
