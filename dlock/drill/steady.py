"""Does a quantity that was sampled for a long time grow? A function of the samples: it knows no
processes, no files and no clock.

What is looked at is growth: the slope of the samples times the time that was observed. The slope is
the median of the slopes between all pairs of points (Theil and Sen), and its interval of confidence
comes from Kendall's count of pairs (Sen 1968). So neither a few wild samples nor how they are
distributed matter. The points are medians of equal pieces of the time: neighbouring samples of a
process' memory resemble one another, and taken one by one would make the interval too narrow.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import median
from typing import Final

PIECES: Final = 24
PIECES_MIN: Final = 6  # with fewer of them nothing can be said
CONFIDENCE_Z: Final = 1.96  # 95 % between both ends
HOUR_S: Final = 3600.0


class Verdict(enum.Enum):
    """What the samples say about a bound."""

    FLAT = "flat"  # even the upper end of the interval is within the bound
    GROWS = "grows"  # even the lower end of the interval is beyond the bound
    OPEN = "open"  # the bound lies within the interval: observe for longer
    FEW = "too few samples"


@dataclass(frozen=True, slots=True)
class Trend:
    """What became of a quantity. `growth`: over the time observed, `low` and `high` the ends of its
    interval; `observed_s`: that time. All but `verdict` and times in the quantity's own unit."""

    verdict: Verdict
    bound: float
    growth: float
    low: float
    high: float
    observed_s: float
    samples: int
    first: float
    last: float
    least: float
    greatest: float

    @property
    def per_hour(self) -> float:
        """The slope."""
        return self.growth * HOUR_S / self.observed_s if self.observed_s else 0.0


Sample = tuple[float, float]  # seconds, value


def trend(samples: Sequence[Sample], bound: float) -> Trend:
    """Judges samples in the order of their times. `bound`: by how much the quantity may grow over
    the time observed; warm-up is not to be among the samples."""
    points = _pieces(samples)
    values = [value for _, value in samples]
    observed_s = samples[-1][0] - samples[0][0] if samples else 0.0
    slope, low, high = _slope(points) if len(points) >= PIECES_MIN else (0.0, 0.0, 0.0)
    growth, low, high = slope * observed_s, low * observed_s, high * observed_s
    if len(points) < PIECES_MIN:
        verdict = Verdict.FEW
    elif low > bound:
        verdict = Verdict.GROWS
    else:
        verdict = Verdict.FLAT if high <= bound else Verdict.OPEN
    return Trend(
        verdict, bound, growth, low, high, observed_s, len(samples),
        points[0][1] if points else 0.0, points[-1][1] if points else 0.0,
        min(values, default=0.0), max(values, default=0.0))


def _pieces(samples: Sequence[Sample]) -> list[Sample]:
    """Medians of equal pieces of the time; the samples themselves where there are not more."""
    if len(samples) <= PIECES:
        return list(samples)
    start, end = samples[0][0], samples[-1][0]
    pieces: list[list[Sample]] = [[] for _ in range(PIECES)]
    for one in samples:
        pieces[min(int((one[0] - start) / (end - start) * PIECES), PIECES - 1)].append(one)
    return [(median(time for time, _ in piece), median(value for _, value in piece))
            for piece in pieces if piece]


def _slope(points: Sequence[Sample]) -> tuple[float, float, float]:
    """The median slope between all pairs, and the ends of its interval."""
    slopes = sorted(
        (late[1] - early[1]) / (late[0] - early[0])
        for number, early in enumerate(points) for late in points[number + 1:]
        if late[0] > early[0])
    count = len(points)
    # Ties are not taken off the variance: the interval gets wider by them, never narrower.
    half = CONFIDENCE_Z * sqrt(count * (count - 1) * (2 * count + 5) / 18)
    below = max(int((len(slopes) - half) / 2), 0)
    above = min(int((len(slopes) + half) / 2) + 1, len(slopes) - 1)
    return median(slopes), slopes[below], slopes[above]
