"""Keys of a moment ago."""

import pytest

from serve_app import recent
from serve_app.recent import RecentKeys


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(recent, "time", clock)
    return clock


def test_a_key_is_held_for_so_long_and_no_longer(clock: Clock) -> None:
    keys = RecentKeys(5.0)
    keys.add("a")
    clock.now += 5.0
    assert "a" in keys
    assert "b" not in keys
    clock.now += 0.1
    assert "a" not in keys


def test_a_key_that_is_added_again_is_held_for_longer(clock: Clock) -> None:
    keys = RecentKeys(5.0)
    keys.add("a")
    clock.now += 4.0
    keys.add("b")
    keys.add("a")
    clock.now += 4.0
    keys.add("c")
    assert "a" in keys
    assert len(keys._added) == 3
    clock.now += 1.1
    keys.add("c")
    assert "a" not in keys
    assert len(keys._added) == 1


def test_a_key_that_is_discarded_is_held_no_longer(clock: Clock) -> None:
    keys = RecentKeys(5.0)
    keys.add("a")
    keys.discard("a")
    keys.discard("b")
    assert "a" not in keys
    assert len(keys._added) == 0


def test_no_more_are_held_than_were_added_in_that_time(clock: Clock) -> None:
    keys = RecentKeys(5.0)
    for n in range(100):
        keys.add(str(n))
        clock.now += 1.0
    assert len(keys._added) == 6
