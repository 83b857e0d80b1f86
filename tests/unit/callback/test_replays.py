"""Signed requests count once, wherever they come in, and as long as they are fresh."""

import pytest

from callback import replays
from callback.records import Rejected, Remember
from tests.unit.callback.tracker_kit import Desk, ManualClock, StartDesk, rejected

FRESH_S = 8.0


def request(desk_clock: ManualClock, number: str = "1", *, asker: str = "a", age_s: float = 0.0) -> Remember:
    return Remember(f"alice {number}", asker, desk_clock.now() - age_s, FRESH_S)


@pytest.fixture
async def desk(start: StartDesk) -> Desk:
    """A tracker that started long ago."""
    desk = await start()
    desk.clock.advance(60)
    return desk


async def test_a_request_counts_once_and_for_its_asker_again(desk: Desk) -> None:
    first = request(desk.clock)
    # Whoever asks sends the question again when the answer is lost.
    assert [await desk.do(first) for _ in range(2)] == [True, True]
    assert rejected(await desk.do(request(desk.clock, asker="b"))) == "request_replayed"
    assert await desk.do(request(desk.clock, "2", asker="b")) is True


@pytest.mark.parametrize("ahead_s", [-FRESH_S, 0.0, FRESH_S])
async def test_a_request_is_remembered_for_longer_than_it_is_fresh(desk: Desk, ahead_s: float) -> None:
    assert await desk.do(request(desk.clock, age_s=-ahead_s)) is True
    desk.clock.advance(FRESH_S + ahead_s + 5)
    assert rejected(await desk.do(request(desk.clock, asker="b", age_s=FRESH_S + 5))) == "request_replayed"


async def test_of_what_may_have_come_before_its_start_the_tracker_cannot_tell(start: StartDesk) -> None:
    desk = await start()
    for age_s in (1.0, 0.0, -FRESH_S + 0.1):
        refused = await desk.do(request(desk.clock, age_s=age_s))
        assert isinstance(refused, Rejected)
        assert (refused.code, refused.retry_after_s) == ("replays_unknown", 2 * FRESH_S + replays.MARGIN_S)
    desk.clock.advance(2 * FRESH_S + replays.MARGIN_S)
    assert await desk.do(request(desk.clock)) is True


@pytest.mark.parametrize("set_s", [3600.0, -3600.0])
async def test_a_clock_that_is_set_neither_hides_a_replay_nor_refuses_for_longer(
    start: StartDesk, set_s: float
) -> None:
    desk = await start()
    desk.clock.set_wall(set_s)
    desk.clock.advance(2 * FRESH_S + replays.MARGIN_S - 0.1)
    assert rejected(await desk.do(request(desk.clock))) == "replays_unknown"
    desk.clock.advance(0.2)
    assert await desk.do(request(desk.clock)) is True


async def test_what_is_stale_is_forgotten_and_more_than_fits_has_to_wait(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays, "MAX_REMEMBERED", 3)
    for number in "123":
        assert await desk.do(request(desk.clock, number)) is True
    assert rejected(await desk.do(request(desk.clock, "4"))) == "tracker_unavailable"
    desk.clock.advance(2 * FRESH_S + replays.MARGIN_S + 0.1)
    assert await desk.do(request(desk.clock, "4")) is True
    assert len(desk.tracker._replays._asked_by) == 1
