"""Medians with intervals that assume nothing about the distribution of the samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

_WANTED_COVERAGE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """The median of `samples` values. The true median lies in `low`...`high` with the probability `coverage`."""

    median: float
    low: float
    high: float
    coverage: float
    samples: int

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}}-{self.high:{spec}})"


def median_interval(values: Sequence[float]) -> Interval:
    """Return the median of `values` and the narrowest interval between two of them that covers 95 %.

    Of fewer than six values even the whole range covers less; `coverage` says how much. Raises ValueError without
    values. Source: the interval of the sign test (W. J. Conover, Practical Nonparametric Statistics, section 3.2).
    """
    if not values:
        raise ValueError("There is no median of no values.")
    ordered, count = sorted(values), len(values)
    dropped = 0
    while dropped + 1 < (count + 1) // 2 and _coverage(count, dropped + 1) >= _WANTED_COVERAGE:
        dropped += 1
    return Interval(
        median(ordered), ordered[dropped], ordered[count - 1 - dropped], round(_coverage(count, dropped), 4), count
    )


def _coverage(count: int, dropped: int) -> float:
    """Return how probably the median lies between the values left after dropping `dropped` on either side."""
    outside = sum(math.comb(count, k) for k in range(dropped + 1))
    return 1.0 - 2.0 * outside / float(2**count)
