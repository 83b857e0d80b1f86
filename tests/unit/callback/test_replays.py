"""Signed requests count once, wherever they come in, and as long as they are fresh."""

import pytest

from callback import replays
from callback.records import Remember
from tests.unit.callback.tracker_kit import ManualClock, StartDesk, rejected

FOR_S = 16.0


def request(desk_clock: ManualClock, number: str = "1", *, asker: str = "a", age_s: float = 0.0) -> Remember:
    return Remember(f"alice {number}", asker, desk_clock.now() - age_s, FOR_S)


async def test_a_request_counts_once_and_for_its_asker_again(start: StartDesk) -> None:
    desk = await start()
    first = request(desk.clock)
    # Whoever asks sends the question again when the answer is lost.
    assert [await desk.do(first) for _ in range(2)] == [True, True]
    assert rejected(await desk.do(request(desk.clock, asker="b"))) == "request_replayed"
    assert await desk.do(request(desk.clock, "2", asker="b")) is True
    desk.clock.advance(FOR_S - 1)
    assert rejected(await desk.do(request(desk.clock, asker="b", age_s=FOR_S - 1))) == "request_replayed"


async def test_of_what_was_signed_before_its_start_the_tracker_cannot_tell(start: StartDesk) -> None:
    desk = await start()
    assert rejected(await desk.do(request(desk.clock, age_s=0.1))) == "request_replayed"
    desk.clock.advance(1)
    assert await desk.do(request(desk.clock, age_s=0.1)) is True


async def test_what_is_stale_is_forgotten_and_more_than_fits_has_to_wait(
    start: StartDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays, "MAX_REMEMBERED", 3)
    desk = await start()
    for number in "123":
        assert await desk.do(request(desk.clock, number)) is True
    assert rejected(await desk.do(request(desk.clock, "4"))) == "tracker_unavailable"
    desk.clock.advance(FOR_S + 0.1)
    assert await desk.do(request(desk.clock, "4")) is True
    assert len(desk.tracker._replays._asked_by) == 1
