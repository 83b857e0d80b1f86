"""How many jobs are claimed ahead."""

import pytest

from serve_app.pace import (
    LONGEST_CLAIM_S,
    MOST_TOGETHER,
    QUICK_S,
    REMEMBERED_S,
    ROUND_TRIPS,
    SHORTEST_JOB_S,
    TOGETHER_S,
    Pace,
)


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace:
    """One whose claims take 30 ms."""
    pace = Pace(clock)
    pace.claimed(0.03)
    return pace


def test_nothing_is_claimed_ahead_before_a_job_has_ended(pace: Pace) -> None:
    assert (pace.ahead(8), pace.together()) == (0, 1)


def test_pictures_that_take_seconds_give_none(pace: Pace, clock: Clock) -> None:
    for _ in range(20):
        clock.now += 2.0
        pace.ended(2.0)
        assert (pace.ahead(8), pace.together()) == (0, 1)


def test_from_the_first_end_on_as_many_as_the_devices_end_while_one_passes(pace: Pace) -> None:
    pace.ended(0.005)
    assert pace.ahead(1) == int(0.03 * ROUND_TRIPS / 0.005)
    assert pace.ahead(3) == int(3 * 0.03 * ROUND_TRIPS / 0.005)


def test_no_device_is_taken_for_faster_than_whatever_else_a_job_waits_for(pace: Pace) -> None:
    pace.ended(0.0)
    assert pace.ahead(1) == int(0.03 * ROUND_TRIPS / SHORTEST_JOB_S)


def test_later_ends_count_more(pace: Pace) -> None:
    for _ in range(50):
        pace.ended(0.005)
    pace.ended(2.0)
    assert 0 < pace.ahead(4) < 5
    pace.ended(2.0)
    assert pace.ahead(4) == 0, "its jobs are not quick any more"
    for _ in range(50):
        pace.ended(0.005)
    assert pace.ahead(1) == pytest.approx(0.03 * ROUND_TRIPS / 0.005, abs=1)


@pytest.mark.parametrize(("seconds", "quick"), [(QUICK_S, True), (QUICK_S + 0.01, False)])
def test_quick_is_what_takes_less_than_half_a_second(pace: Pace, seconds: float, quick: bool) -> None:
    pace.ended(seconds)
    assert (pace.ahead(16) > 0) is quick


def test_after_a_pause_the_next_end_tells_anew(pace: Pace, clock: Clock) -> None:
    for _ in range(50):
        pace.ended(0.005)
    clock.now += REMEMBERED_S
    assert pace.ahead(1) > 0
    clock.now += 0.1
    assert (pace.ahead(1), pace.together()) == (0, 1)
    pace.ended(0.4)
    assert pace.ahead(10) == int(10 * 0.03 * ROUND_TRIPS / 0.4), "of what it took before nothing is left"


def test_one_claim_that_stood_still_does_not_fill_the_replicas(clock: Clock) -> None:
    pace = Pace(clock)
    pace.ended(0.01)
    pace.claimed(8.0)
    assert pace.ahead(1) == int(100 * LONGEST_CLAIM_S * ROUND_TRIPS)
    for _ in range(50):
        pace.claimed(0.01)
    assert pace.ahead(1) == pytest.approx(100 * 0.01 * ROUND_TRIPS, abs=1)


def test_as_many_go_together_as_a_device_ends_while_one_may_wait(pace: Pace) -> None:
    pace.ended(TOGETHER_S / 10)
    assert pace.together() == 10
    for _ in range(50):
        pace.ended(SHORTEST_JOB_S)
    assert pace.together() == MOST_TOGETHER
    for _ in range(50):
        pace.ended(0.1)
    assert pace.together() == 1
