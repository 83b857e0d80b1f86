"""How many jobs are claimed ahead."""

import pytest

from serve_app.pace import (
    AHEAD_AN_END,
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


def ends(pace: Pace, seconds: float, times: int) -> None:
    """Note so many ends of jobs that took so long."""
    for _ in range(times):
        pace.ended(seconds)


def test_nothing_is_claimed_ahead_before_a_job_has_ended(pace: Pace) -> None:
    assert (pace.ahead(8), pace.together()) == (0, 1)


def test_pictures_that_take_seconds_give_none(pace: Pace, clock: Clock) -> None:
    for _ in range(20):
        clock.now += 2.0
        pace.ended(2.0)
        assert (pace.ahead(8), pace.together()) == (0, 1)


def test_as_many_as_the_devices_end_while_one_passes(pace: Pace) -> None:
    ends(pace, 0.005, 100)
    assert pace.ahead(1) == int(0.03 * ROUND_TRIPS / 0.005)
    assert pace.ahead(2) == int(2 * 0.03 * ROUND_TRIPS / 0.005)


def test_a_burst_is_at_full_speed_after_a_few_times(pace: Pace) -> None:
    claimed, rounds = 1, 0
    while pace.ahead(1) < int(0.03 * ROUND_TRIPS / 0.005):
        ends(pace, 0.005, claimed)
        claimed, rounds = 1 + pace.ahead(1), rounds + 1
    assert rounds <= 5


def test_a_preview_among_slow_pictures_brings_none_of_them_early(pace: Pace, clock: Clock) -> None:
    for _ in range(5):
        clock.now += 12.0
        pace.ended(12.0)
    pace.ended(0.01)
    assert (pace.ahead(8), pace.together()) == (0, 1)


def test_a_preview_after_a_pause_brings_two(pace: Pace) -> None:
    pace.ended(0.01)
    assert (pace.ahead(8), pace.together()) == (AHEAD_AN_END, 1)


def test_no_device_is_taken_for_faster_than_whatever_else_a_job_waits_for(pace: Pace) -> None:
    ends(pace, 0.0, 1000)
    assert pace.ahead(1) == int(0.03 * ROUND_TRIPS / SHORTEST_JOB_S)


def test_a_slow_job_outweighs_all_before_it(pace: Pace) -> None:
    ends(pace, 0.005, 50)
    pace.ended(300.0)
    for _ in range(4):
        assert (pace.ahead(8), pace.together()) == (0, 1)
        pace.ended(0.005)
    assert pace.ahead(8) > 0, "but not for ever: it may have been a start, or an adapter"
    ends(pace, 0.005, 50)
    assert pace.ahead(1) == pytest.approx(0.03 * ROUND_TRIPS / 0.005, abs=1)


@pytest.mark.parametrize(("seconds", "quick"), [(QUICK_S, True), (QUICK_S + 0.01, False)])
def test_quick_is_what_takes_no_longer_than_half_a_second(pace: Pace, seconds: float, quick: bool) -> None:
    ends(pace, seconds, 50)
    assert (pace.ahead(16) > 0) is quick


def test_after_a_pause_quick_ends_are_counted_anew(pace: Pace, clock: Clock) -> None:
    ends(pace, 0.005, 50)
    clock.now += REMEMBERED_S
    assert pace.ahead(1) > AHEAD_AN_END
    clock.now += 0.1
    assert (pace.ahead(1), pace.together()) == (0, 1)
    pace.ended(0.005)
    assert (pace.ahead(1), pace.together()) == (AHEAD_AN_END, 1)


def test_one_claim_that_stood_still_does_not_fill_the_replicas(clock: Clock) -> None:
    pace = Pace(clock)
    ends(pace, 0.01, 1000)
    pace.claimed(8.0)
    assert pace.ahead(1) == int(100 * LONGEST_CLAIM_S * ROUND_TRIPS)
    for _ in range(50):
        pace.claimed(0.01)
    assert pace.ahead(1) == pytest.approx(100 * 0.01 * ROUND_TRIPS, abs=1)


def test_as_many_go_together_as_a_device_ends_while_one_may_wait(pace: Pace) -> None:
    ends(pace, TOGETHER_S / 10, 50)
    assert pace.together() == 10
    ends(pace, SHORTEST_JOB_S, 50)
    assert pace.together() == MOST_TOGETHER
    ends(pace, 0.1, 50)
    assert pace.together() == 1
