"""Whether a measured curve rises: a robust line through its later part, without assumptions on the noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Curve: TypeAlias = Sequence[tuple[float, float]]
"""Points (seconds since the check began, value)."""

WARM_UP = 1 / 3
"""The part of the time that is not looked at: caches fill and devices warm up."""
MIN_POINTS = 10
"""Fewer points than this say nothing about a trend."""
MAX_POINTS = 200
"""More are brought together first: the number of pairs, and so the work, grows with the square."""
MIN_RISING_PAIRS = 0.7
"""Of all pairs of points, this part must rise; 0.5 is what pure noise does, 1.0 a curve that never falls."""


@dataclass(frozen=True, slots=True)
class Trend:
    """A line through a curve: `level` at its begin, `rise` over its `seconds`, and how steadily it rises."""

    level: float
    rise: float
    seconds: float
    rising_pairs: float


@dataclass(frozen=True, slots=True)
class Allowance:
    """How far a curve may rise before it counts as growing: the larger of a fraction of its level and a floor."""

    fraction: float
    floor: float

    def exceeded_by(self, trend: Trend) -> bool:
        """Whether the curve rises by more than that, and steadily."""
        return trend.rising_pairs >= MIN_RISING_PAIRS and trend.rise > max(self.fraction * trend.level, self.floor)


def trend(curve: Curve) -> Trend | None:
    """Fit the Theil-Sen line (median of the slopes of all pairs) to the last two thirds of the curve's time.

    Up to 29 % of the points may be arbitrarily far off without moving it. None if too few points are left.
    """
    if not curve:
        return None
    points = np.asarray(sorted(curve), dtype=np.float64)
    first_s, last_s = points[0, 0], points[-1, 0]
    later = thinned(points[points[:, 0] >= first_s + WARM_UP * (last_s - first_s)], MAX_POINTS)
    seconds = float(later[-1, 0] - later[0, 0])
    if len(later) < MIN_POINTS or seconds <= 0:
        return None
    earlier_of, later_of = np.triu_indices(len(later), k=1)
    apart = later[later_of] - later[earlier_of]
    apart = apart[apart[:, 0] > 0]
    slope = float(np.median(apart[:, 1] / apart[:, 0]))
    level = float(np.median(later[:, 1] - slope * (later[:, 0] - later[0, 0])))
    # Ties count half, so that a constant curve is at 0.5 like noise.
    rising = float(np.mean((np.sign(apart[:, 1]) + 1) / 2))
    return Trend(level=level, rise=slope * seconds, seconds=seconds, rising_pairs=rising)


def thinned(curve: Curve | NDArray[np.float64], points: int) -> NDArray[np.float64]:
    """Return at most so many points: medians of neighbours, in order of time."""
    ordered = np.asarray(curve, dtype=np.float64).reshape(-1, 2)
    ordered = ordered[np.argsort(ordered[:, 0], kind="stable")]
    if len(ordered) <= points:
        return ordered
    return np.asarray([np.median(part, axis=0) for part in np.array_split(ordered, points)])
