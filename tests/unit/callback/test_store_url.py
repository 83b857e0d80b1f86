import pytest

from callback.config import TrackerConfig
from callback.errors import StoreUnusable
from callback.store import Store
from callback.tracker import JobTracker


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file::memory:?uri=true", "sqlite:///x?mode=memory"],
)
def test_a_store_in_memory_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(StoreUnusable, match="would lose every accepted job"):
        Store(url)


@pytest.mark.parametrize("url", ["mysql://user:s3cret@db/darkroom", "s3cret", "postgresql://user:s3cret@db:port/x", ""])
def test_a_url_of_no_store_is_refused_without_repeating_its_password(url: str) -> None:
    with pytest.raises(StoreUnusable, match=r"Use sqlite:////path/to/jobs\.db or postgresql://") as refusal:
        Store(url)

    assert "s3cret" not in str(refusal.value)


def test_a_tracker_of_a_store_in_memory_is_refused_when_it_is_made() -> None:
    with pytest.raises(StoreUnusable):
        JobTracker(TrackerConfig("sqlite://"), None)  # type: ignore[arg-type]
