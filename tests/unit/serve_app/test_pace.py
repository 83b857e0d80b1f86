"""How many jobs are claimed ahead."""

import pytest

from serve_app.pace import LONGEST_CLAIM_S, MOST_TOGETHER, ROUND_TRIPS, TOGETHER_S, Pace


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
        assert pace.ahead(8) == 0


def test_as_many_as_end_while_one_passes() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.claimed(0.03)
    for _ in range(300):
        clock.now += 0.005
        pace.ended()
    assert pace.ahead(1) == pytest.approx(200 * 0.03 * ROUND_TRIPS, abs=1)
    clock.now += 5.0
    assert pace.ahead(1) == 0


def test_quick_is_what_ends_several_times_a_second_on_each_device() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.claimed(0.2)
    for _ in range(30):
        pace.ended()
    assert pace.ahead(10) == 30 * 0.2 * ROUND_TRIPS
    assert pace.ahead(16) == 0


def test_one_claim_that_stood_still_does_not_fill_the_replicas() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(100):
        pace.ended()
    pace.claimed(8.0)
    assert pace.ahead(1) <= 100 * LONGEST_CLAIM_S * ROUND_TRIPS
    for _ in range(50):
        pace.claimed(0.01)
    assert pace.ahead(1) == pytest.approx(100 * 0.01 * ROUND_TRIPS, abs=1)


def test_as_many_go_together_as_a_device_ends_while_one_may_wait() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.together(1) == 1
    for _ in range(200):
        pace.ended()
    assert pace.together(1) == 200 * TOGETHER_S
    assert pace.together(4) == 200 * TOGETHER_S // 4
    assert pace.together(100) == 1
    for _ in range(1000):
        pace.ended()
    assert pace.together(1) == MOST_TOGETHER
    clock.now += 5.0
    assert pace.together(1) == 1
