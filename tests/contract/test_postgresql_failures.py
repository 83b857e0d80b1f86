"""What only a server does: connections that break, locks of a tracker that was stopped."""

import asyncio
from dataclasses import replace

import pytest

from callback.errors import Deposed, StoreUnavailable
from callback.records import PROTOCOL_VERSION, JobView, Rejected, Submit
from callback.states import JobState
from callback.store import Store
from callback.tracker import JobTracker
from tests.postgres_server import PostgresServer
from tests.unit.callback.tracker_kit import BOUND_S, Desk, StartDesk, new_job

pytestmark = pytest.mark.postgres


@pytest.fixture
def backend() -> str:
    return "postgresql"


def cut_connections(postgres: PostgresServer) -> None:
    """Break every connection of the trackers, as a server that restarts does."""
    postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")


async def test_a_tracker_recovers_from_broken_connections_by_itself(desk: Desk, postgres: PostgresServer) -> None:
    await desk.submit("before")
    cut_connections(postgres)

    async with asyncio.timeout(BOUND_S):
        while isinstance(answer := await desk.do(Submit(new_job())), Rejected):
            assert (answer.code, answer.retryable) == ("store_unavailable", True)

    assert isinstance(answer, JobView)
    assert [claim.job_id for claim in await desk.claim(5)] == ["before", "job-1"]
    assert desk.memory_equals_store()


async def test_a_successor_is_not_kept_out_by_a_transaction_of_a_stopped_tracker(
    desk: Desk, start: StartDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = {"options": "-c lock_timeout=5000 -c idle_in_transaction_session_timeout=300"}
    monkeypatch.setattr("callback.store._POSTGRESQL_BOUNDS", bounds)
    stopped = Store(desk.config.store_url)
    epoch = stopped.acquire("one process", 0.0)  # of the same Darkroom
    transaction = stopped.transaction(epoch)
    transaction.__enter__()  # and nothing more is ever heard of it

    successor = await start()

    assert (await successor.submit()).state is JobState.QUEUED
    with pytest.raises(StoreUnavailable):
        transaction.__exit__(None, None, None)
    with pytest.raises(Deposed), stopped.transaction(epoch):
        pass
    stopped.close()


async def test_a_server_that_is_away_is_told_within_bounds(desk: Desk) -> None:
    away = replace(desk.config, store_url="postgresql://darkroom@127.0.0.1:1/none")
    tracker = JobTracker(away, desk.pictures, clock=desk.clock)
    async with asyncio.timeout(BOUND_S):
        (answer,) = await tracker.execute(PROTOCOL_VERSION, (Submit(new_job()),))

    assert isinstance(answer, Rejected)
    assert (answer.code, answer.retryable) == ("store_unavailable", True)
    await tracker.close()
