"""Medians, their exact interval, percentiles."""

import random
from statistics import median

import pytest

from bench.statistics import estimate, percentile


def test_the_interval_of_six_values_is_their_range_and_covers_more_than_95_percent() -> None:
    found = estimate([6, 1, 5, 2, 4, 3])

    assert (found.median, found.low, found.high) == (3.5, 1, 6)
    assert found.coverage == pytest.approx(1 - 2 / 2**6)


def test_more_values_leave_the_outermost_out() -> None:
    found = estimate(range(1, 12))

    # Published tables of the sign test: n = 11 gives the second smallest and second largest, 98.8 %.
    assert (found.low, found.high) == (2, 10)
    assert found.coverage == pytest.approx(0.9883, abs=1e-4)


def test_few_values_say_that_they_cover_less() -> None:
    assert estimate([1, 2, 3, 4, 5]).coverage == pytest.approx(0.9375)
    assert estimate([1]).coverage == 0


def test_no_values_have_no_median() -> None:
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    draw = random.Random(1)  # noqa: S311 - numbers, not secrets
    samples = [estimate([draw.expovariate(1) for _ in range(9)]) for _ in range(4000)]
    truth = median(draw.expovariate(1) for _ in range(200_001))

    held = sum(sample.low <= truth <= sample.high for sample in samples) / len(samples)
    assert held == pytest.approx(samples[0].coverage, abs=0.015)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([5, 1, 4, 2, 3], 0.5) == 3
    assert percentile(list(range(1, 101)), 0.99) == 99
    assert percentile([7], 0.99) == 7
