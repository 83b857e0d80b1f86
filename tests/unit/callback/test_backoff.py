from hypothesis import given
from hypothesis import strategies as st

from callback.backoff import FIRST_DELAY_S, LAST_TRY_MARGIN_S, LONGEST_DELAY_S, SPREAD, next_attempt_at

NOW = 1_900_000_000.0

attempts = st.integers(1, 10_000)
remaining = st.floats(-1e9, 1e9)
retry_after = st.none() | st.floats(0, 1e9)


def plain(low: float, high: float) -> float:
    return (low + high) / 2


@given(attempts, remaining, retry_after)
def test_a_next_attempt_lies_ahead_and_leaves_time_for_its_answer(
    attempt: int, left_s: float, retry_after_s: float | None
) -> None:
    moment = next_attempt_at(attempt, NOW, NOW + left_s, retry_after_s=retry_after_s)

    if moment is not None:
        assert moment >= NOW + FIRST_DELAY_S * (1 - SPREAD)
        assert moment <= NOW + left_s - LAST_TRY_MARGIN_S


@given(attempts, remaining, retry_after)
def test_it_is_given_up_only_when_no_time_is_left(attempt: int, left_s: float, retry_after_s: float | None) -> None:
    if next_attempt_at(attempt, NOW, NOW + left_s, retry_after_s=retry_after_s) is None:
        assert left_s < FIRST_DELAY_S * (1 + SPREAD) + LAST_TRY_MARGIN_S


@given(attempts, st.floats(0, 1e9))
def test_no_wait_is_longer_than_an_hour_and_its_spread(attempt: int, retry_after_s: float) -> None:
    moment = next_attempt_at(attempt, NOW, NOW + 1e9, retry_after_s=retry_after_s)

    assert moment is not None
    assert moment - NOW <= LONGEST_DELAY_S * (1 + SPREAD)


@given(attempts)
def test_without_the_spread_no_wait_is_shorter_than_the_one_before(attempt: int) -> None:
    moments = [next_attempt_at(n, NOW, NOW + 1e9, vary=plain) for n in (attempt, attempt + 1)]

    assert moments[0] is not None
    assert moments[1] is not None
    assert moments[0] <= moments[1]


@given(st.integers(1, 10), st.floats(0, 3000))
def test_a_receiver_is_not_met_before_the_moment_that_it_named(attempt: int, retry_after_s: float) -> None:
    moment = next_attempt_at(attempt, NOW, NOW + 1e6, retry_after_s=retry_after_s)

    assert moment is not None
    assert moment >= NOW + retry_after_s


@given(st.floats(1, 1e7))
def test_a_delivery_that_always_fails_ends_after_few_attempts(left_s: float) -> None:
    now, give_up_at, attempt = NOW, NOW + left_s, 1
    while (moment := next_attempt_at(attempt, now, give_up_at)) is not None:
        assert moment > now
        now, attempt = moment, attempt + 1

    assert attempt <= 14 + left_s / (LONGEST_DELAY_S * (1 - SPREAD))


def test_waits_double_from_two_seconds() -> None:
    moments = [next_attempt_at(n, NOW, NOW + 1e6, vary=plain) for n in range(1, 6)]

    assert [moment and moment - NOW for moment in moments] == [2, 4, 8, 16, 32]


def test_a_short_expiry_still_gets_a_last_try_just_before_it() -> None:
    assert next_attempt_at(8, NOW, NOW + 60, vary=plain) == NOW + 60 - LAST_TRY_MARGIN_S
