"""The kit's own limit of open files."""

import resource
from collections.abc import Iterator

import pytest

from stress import open_files
from stress.open_files import allow_many_connections


@pytest.fixture
def low() -> Iterator[int]:
    """The process's soft limit, a low one for the test; it is as it was after it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = 512 if hard == resource.RLIM_INFINITY else min(512, hard // 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
    yield low
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_shells_low_limit_is_raised(low: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    monkeypatch.setattr(open_files, "WANTED", low + 100)
    allow_many_connections()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (low + 100, hard)


def test_no_further_than_the_hard_limit(low: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    allow_many_connections()
    wanted = open_files.WANTED if hard == resource.RLIM_INFINITY else min(open_files.WANTED, hard)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (wanted, hard)
    assert wanted > low


def test_a_higher_limit_stays(low: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "WANTED", low - 1)
    allow_many_connections()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == low


def test_where_the_system_refuses_it_is_raised_as_far_as_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int, limits: tuple[int, int]) -> None:
        if limits[0] > 10_240:
            raise ValueError("not allowed to raise maximum limit")
        granted.append(limits[0])

    granted: list[int] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    allow_many_connections()
    assert granted == [8192]
