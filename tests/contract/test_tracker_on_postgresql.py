"""What the tracker does on SQLite (tests/unit/callback) it does on PostgreSQL."""

# ruff: noqa: F403
import pytest

from tests.unit.callback.test_tracker_attempts import *
from tests.unit.callback.test_tracker_cancellation import *
from tests.unit.callback.test_tracker_recovery import *
from tests.unit.callback.test_tracker_submit import *
from tests.unit.callback.test_tracker_succession import *
from tests.unit.callback.test_tracker_time_limits import *

pytestmark = pytest.mark.postgres


@pytest.fixture
def backend() -> str:
    return "postgresql"
