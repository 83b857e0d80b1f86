"""Submits jobs to a tracker of its own until it is killed, and prints the id of each that was accepted."""

import asyncio
import sys
import tempfile
from pathlib import Path

from callback.config import TrackerConfig
from callback.records import PROTOCOL_VERSION, JobView, Submit
from callback.tracker import JobTracker
from tests.unit.callback.tracker_kit import FolderPictures, new_job

AT_ONCE = 20


async def submit_for_ever(store_url: str, folder: Path) -> None:
    tracker = JobTracker(TrackerConfig(store_url=store_url), FolderPictures(folder))
    await tracker.start()
    first = 0
    while True:
        batch = tuple(Submit(new_job(f"job-{n}")) for n in range(first, first + AT_ONCE))
        for answer in await tracker.execute(PROTOCOL_VERSION, batch):
            if isinstance(answer, JobView):
                sys.stdout.write(f"{answer.job_id}\n")
        sys.stdout.flush()
        first += AT_ONCE


with tempfile.TemporaryDirectory() as folder:
    asyncio.run(submit_for_ever(sys.argv[1], Path(folder)))
