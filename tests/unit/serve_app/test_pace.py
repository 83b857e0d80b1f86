"""How many jobs are claimed ahead."""

import pytest

from serve_app.pace import ROUND_TRIPS, Pace


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_pictures_that_take_seconds_give_none() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.claimed(0.03)
    for _ in range(20):
        clock.now += 2.0
        pace.ended()
        assert pace.ahead == 0


def test_as_many_as_end_while_one_passes() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.claimed(0.03)
    for _ in range(300):
        clock.now += 0.005
        pace.ended()
    assert pace.ahead == pytest.approx(200 * 0.03 * ROUND_TRIPS, abs=1)
    clock.now += 5.0
    assert pace.ahead == 0


def test_a_claim_that_took_long_once_counts_for_a_while() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.claimed(0.01)
    for _ in range(100):
        pace.ended()
    pace.claimed(1.0)
    after = pace.ahead
    assert after > 100
    for _ in range(50):
        pace.claimed(0.01)
    assert pace.ahead == pytest.approx(100 * 0.01 * ROUND_TRIPS, abs=1)
