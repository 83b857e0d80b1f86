"""What a client may use per time, and that nobody uses more."""

from hypothesis import given
from hypothesis import strategies as st

from callback.allowance import Allowance
from callback.records import JobView, Rejected, Submit
from tests.unit.callback.tracker_kit import ManualClock, StartDesk, new_job, rejected

PER_S, BURST = 10.0, 50.0


def test_a_client_in_debt_waits_until_it_is_paid_and_others_do_not() -> None:
    clock = ManualClock()
    allowance = Allowance(PER_S, BURST, clock.steady)
    assert allowance.wait_s("a") == 0
    allowance.use("a", 170)
    assert allowance.wait_s("a") == (170 - BURST) / PER_S
    assert allowance.wait_s("b") == 0
    clock.advance(12)
    assert allowance.wait_s("a") == 0
    allowance.use("a", 10)
    assert allowance.wait_s("a") == 1


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 200)), max_size=50))
def test_over_time_nobody_uses_more_than_the_rate(asked: list[tuple[float, float]]) -> None:
    clock = ManualClock()
    allowance = Allowance(PER_S, BURST, clock.steady)
    began, used, largest = clock.steady(), 0.0, 0.0
    for pause_s, amount in asked:
        clock.advance(pause_s)
        if allowance.wait_s("a") > 0:
            continue
        allowance.use("a", amount)
        used, largest = used + amount, max(largest, amount)
        assert used <= BURST + PER_S * (clock.steady() - began) + largest + 1e-6


async def test_more_work_than_allowed_is_refused_until_the_debt_is_paid(start: StartDesk) -> None:
    desk = await start(pixel_steps_per_minute_per_client=600)
    large = new_job("large", pixel_steps=1500)
    assert isinstance(await desk.do(Submit(large)), JobView)

    refused = await desk.do(Submit(new_job("next", pixel_steps=1)))
    assert isinstance(refused, Rejected)
    assert (rejected(refused), refused.retry_after_s) == ("allowance_used", 90)
    assert "600 pixels x steps a minute" in refused.message
    assert isinstance(await desk.do(Submit(large)), JobView)
    assert isinstance(await desk.do(Submit(new_job("theirs", owner="another", pixel_steps=1))), JobView)
    desk.clock.advance(89)
    assert rejected(await desk.do(Submit(new_job("next", pixel_steps=1)))) == "allowance_used"
    desk.clock.advance(1)
    assert isinstance(await desk.do(Submit(new_job("next", pixel_steps=1))), JobView)


async def test_what_was_submitted_before_uses_nothing_up(start: StartDesk) -> None:
    desk = await start(pixel_steps_per_minute_per_client=600)
    job = new_job("job", pixel_steps=300)
    for _ in range(10):
        assert isinstance(await desk.do(Submit(job)), JobView)
    assert isinstance(await desk.do(Submit(new_job("next", pixel_steps=300))), JobView)
