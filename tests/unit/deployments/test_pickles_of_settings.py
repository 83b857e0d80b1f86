"""Settings that an earlier release pickled start a replica of this one."""

import pickle
from typing import Any

import pytest

from deployments.models import AdapterSettings, ModelSettings
from serve_app.settings import Settings


@pytest.mark.parametrize(
    ("whole", "added"),
    [
        (ModelSettings(engine="noop", threads=5), "memory_format"),
        (AdapterSettings(folder="/adapters"), "max_resident"),
        (Settings(models=(ModelSettings(engine="noop"),)), "shed_expired"),
    ],
    ids=["model", "group", "service"],
)
def test_a_field_that_the_earlier_release_did_not_know_has_its_default(whole: Any, added: str) -> None:
    earlier = pickle.loads(pickle.dumps(whole))  # noqa: S301 - our own
    assert earlier == whole
    del earlier.__dict__[added]
    assert pickle.loads(pickle.dumps(earlier)) == whole  # noqa: S301 - our own
