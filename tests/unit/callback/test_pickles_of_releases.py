"""What travels between replicas and trackers of two releases can be read by both."""

import pickle
from dataclasses import MISSING, fields, replace
from typing import Any

import pytest

from callback.config import TrackerConfig
from callback.records import Callback, NewJob, Rejected, TrackerHealth
from tests.unit.callback.tracker_kit import new_job

WHOLE: list[Any] = [
    Callback("http://a/", "secret", "http://b/", "whsec_"),
    replace(new_job(), pixel_steps=7),
    Rejected("code", "message", retryable=False, retry_after_s=3.0),
    TrackerHealth(1, accepting=True, degraded=(), open_jobs=0, public_key="whpk_"),
    TrackerConfig("sqlite:////x", pixel_steps_per_minute_per_client=5),
]


@pytest.mark.parametrize("one", WHOLE, ids=lambda one: type(one).__name__)
def test_a_release_that_knew_fewer_fields_is_understood(one: Any) -> None:
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301 - our own
    known = [field for field in fields(one) if field.default is MISSING and field.default_factory is MISSING]
    earlier = object.__new__(type(one))
    earlier.__setstate__([getattr(one, field.name) for field in known])
    assert earlier == type(one)(*(getattr(one, field.name) for field in known))
    assert fields(one)[: len(known)] == tuple(known)


def test_an_earlier_release_reads_the_fields_that_it_knows() -> None:
    state = new_job().__getstate__()  # type: ignore[attr-defined]
    names = [field.name for field in fields(NewJob)]
    assert len(state) == len(names)
    assert names[-1] == "pixel_steps"
