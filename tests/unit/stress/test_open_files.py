"""The kit's own limit of open files."""

import resource
from collections.abc import Iterator

import pytest

from stress.open_files import WANTED, allow_many_connections


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    """The process's limits, the soft one low for the test; they are as they were after it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = 512
    if hard != resource.RLIM_INFINITY and hard <= low:
        pytest.skip("nothing to raise here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
    yield low, hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_shells_low_limit_is_raised_as_far_as_it_may_be(limits: tuple[int, int]) -> None:
    low, hard = limits
    allow_many_connections()
    soft, hard_now = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == (WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)) > low
    assert hard_now == hard


def test_a_higher_limit_stays(limits: tuple[int, int]) -> None:
    _, hard = limits
    if hard != resource.RLIM_INFINITY and hard <= WANTED:
        pytest.skip("the hard limit is no higher than what is wanted")
    higher = WANTED + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (higher, hard))
    allow_many_connections()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == higher
