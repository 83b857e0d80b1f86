"""What the tests of retention do and look at."""

import sqlalchemy as sa

from callback.records import JobView
from callback.schema import jobs
from tests.unit.callback.tracker_kit import Desk

DAY_S = 24 * 3600.0


async def rendered(desk: Desk, job_id: str, *, size_bytes: int = 100, **fields: object) -> JobView:
    await desk.submit(job_id, **fields)
    await desk.complete(await desk.claim_one(), bytes(size_bytes))
    return await desk.view(job_id)


async def sweep(desk: Desk) -> None:
    await desk.tracker._retention.sweep()


def job_ids(desk: Desk) -> list[str]:
    return [row["job_id"] for row in desk.rows(sa.select(jobs.c.job_id).order_by(jobs.c.seq))]
