"""Medians with their interval, and percentiles."""

import math
from collections.abc import Sequence
from statistics import median

from bench.records import Estimate

WANTED_COVERAGE = 0.95


def estimate(values: Sequence[float]) -> Estimate:
    """Return the median with the exact binomial interval: order statistics, whatever the distribution is.

    The interval from the k-th smallest to the k-th largest of n values misses the true median with probability
    2 * P(Binomial(n, 1/2) < k). The largest k with a coverage of 95 % is taken; fewer than six values reach less, and
    `coverage` says how much. Source: David and Nagaraja, Order Statistics, section 7.1.

    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("There is no median of no values.")
    ordered, k = sorted(values), 1
    while 2 * (k + 1) <= len(ordered) and _coverage(len(ordered), k + 1) >= WANTED_COVERAGE:
        k += 1
    return Estimate(
        median=median(ordered),
        low=ordered[k - 1],
        high=ordered[-k],
        coverage=_coverage(len(ordered), k),
        values=tuple(values),
    )


def _coverage(count: int, k: int) -> float:
    return 1.0 - 2.0 * sum(math.comb(count, i) for i in range(k)) / 2.0**count


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` (0...1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
