import numpy as np
import pytest

from stress.checks.trends import Allowance, thinned, trend

LIMIT = Allowance(fraction=0.5, floor=1.0)


def curve(values: list[float]) -> list[tuple[float, float]]:
    return [(float(at_s), value) for at_s, value in enumerate(values)]


def test_the_line_has_the_slope_of_the_last_two_thirds() -> None:
    flat_then_rising = [5.0] * 30 + [5.0 + 0.5 * step for step in range(60)]
    found = trend(curve(flat_then_rising))
    assert found is not None
    assert found.rise == pytest.approx(0.5 * found.seconds)
    assert found.level == pytest.approx(5.0, abs=0.5)
    assert LIMIT.exceeded_by(found)


def test_a_warm_up_is_not_growth() -> None:
    found = trend(curve([float(step) for step in range(30)] + [30.0] * 60))
    assert found is not None
    assert found.rise == 0
    assert not LIMIT.exceeded_by(found)


@pytest.mark.parametrize("seed", range(20))
def test_noise_and_outliers_are_not_growth(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(2.0, 0.5, 120)
    values[random.choice(120, 20)] += 50
    found = trend(curve(values.tolist()))
    assert found is not None
    assert not LIMIT.exceeded_by(found)


@pytest.mark.parametrize("seed", range(20))
def test_growth_is_found_through_noise_and_outliers(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = 2.0 + 0.05 * np.arange(120) + random.normal(0.0, 0.5, 120)
    values[random.choice(120, 12)] += 50
    found = trend(curve(values.tolist()))
    assert found is not None
    assert LIMIT.exceeded_by(found)


def test_a_small_rise_on_a_high_level_is_allowed() -> None:
    found = trend(curve([100.0 + 0.1 * step for step in range(90)]))
    assert found is not None
    assert not LIMIT.exceeded_by(found)


@pytest.mark.parametrize("values", [[], [1.0], [float(step) for step in range(9)]])
def test_few_points_say_nothing(values: list[float]) -> None:
    assert trend(curve(values)) is None


def test_points_of_one_moment_say_nothing() -> None:
    assert trend([(1.0, float(value)) for value in range(50)]) is None


def test_a_thinned_curve_keeps_its_course() -> None:
    small = thinned([(at_s, 2.0 * at_s) for at_s in range(1000)], 100)
    assert len(small) == 100
    assert np.allclose(small[:, 1], 2 * small[:, 0])
    assert np.all(np.diff(small[:, 0]) > 0)


def test_a_short_curve_is_only_put_in_order() -> None:
    assert thinned([(2.0, 1.0), (1.0, 3.0)], 10).tolist() == [[1.0, 3.0], [2.0, 1.0]]
