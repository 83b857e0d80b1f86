import pytest

from bench.device.intervals import median_interval


def test_six_values_cover_with_their_whole_range() -> None:
    interval = median_interval([3, 1, 2, 6, 5, 4])
    assert (interval.median, interval.low, interval.high, interval.coverage) == (3.5, 1, 6, 0.9688)


def test_more_values_give_a_narrower_interval_of_at_least_95_percent() -> None:
    interval = median_interval(list(range(20)))
    assert (interval.low, interval.high, interval.coverage) == (5, 14, 0.9586)


def test_few_values_say_how_little_they_cover() -> None:
    assert median_interval([1.0, 2.0]).coverage == 0.5
    assert median_interval([1.0]).coverage == 0.0


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        median_interval([])
