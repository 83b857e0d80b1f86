"""Retention by a clock that may be wrong: what it makes old is kept for an hour."""

from callback.clock import BELIEVED_AFTER_S
from tests.unit.callback.retention_kit import DAY_S, job_ids, rendered, sweep
from tests.unit.callback.tracker_kit import Desk, StartDesk, crash


async def test_a_clock_that_is_set_ahead_for_less_than_an_hour_costs_nobody_a_picture(desk: Desk) -> None:
    await rendered(desk, "young")
    await sweep(desk)
    desk.clock.set_wall(desk.config.retention_s + DAY_S)
    await sweep(desk)
    assert job_ids(desk) == ["young"]
    assert "clock was set ahead" in str(desk.tracker._retention.trouble)

    desk.clock.set_wall(-desk.config.retention_s - DAY_S)
    desk.clock.advance(2 * BELIEVED_AFTER_S)
    await sweep(desk)
    assert job_ids(desk) == ["young"]
    assert desk.tracker._retention.trouble is None


async def test_a_tracker_that_starts_with_a_clock_that_is_ahead_forgets_nothing_for_an_hour(
    desk: Desk, start: StartDesk
) -> None:
    await rendered(desk, "young")
    await crash(desk.tracker)
    desk.clock.set_wall(desk.config.retention_s + DAY_S)
    successor = await start()
    await sweep(successor)
    assert job_ids(successor) == ["young"]
    # Nobody can tell it from a machine that was off for so long: that is no trouble.
    assert successor.tracker._retention.trouble is None

    desk.clock.set_wall(-desk.config.retention_s - DAY_S)
    desk.clock.advance(BELIEVED_AFTER_S + 1)
    await sweep(successor)
    assert job_ids(successor) == ["young"]


async def test_a_service_that_was_off_for_long_forgets_an_hour_later(desk: Desk, start: StartDesk) -> None:
    await rendered(desk, "old")
    await crash(desk.tracker)
    desk.clock.advance(desk.config.retention_s + 1)
    successor = await start()
    await sweep(successor)
    assert job_ids(successor) == ["old"]
    desk.clock.advance(BELIEVED_AFTER_S + 1)
    await sweep(successor)
    assert job_ids(successor) == []


async def test_a_clock_that_stays_ahead_is_believed_in_the_end(desk: Desk) -> None:
    await rendered(desk, "old")
    desk.clock.set_wall(desk.config.retention_s + DAY_S)
    await sweep(desk)
    desk.clock.advance(BELIEVED_AFTER_S - 60)
    await sweep(desk)
    assert job_ids(desk) == ["old"]
    desk.clock.advance(120)
    await sweep(desk)
    assert job_ids(desk) == []
    assert desk.tracker._retention.trouble is None
