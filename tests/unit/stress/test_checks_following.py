import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from kit_sessions import BUDGETS, Recorder

from stress.checks import following
from stress.checks.following import Follower
from stress.checks.job_run import JobRun
from stress.checks.outcome import Fault, JobTrace
from stress.wire import InferenceRequest, JobStatus


class SlowService:
    """Answers each poll after `seconds`, with a final status."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def status(self, job_id: str, wait_s: float | None = None) -> JobStatus:
        del wait_s
        await asyncio.sleep(self._seconds)
        return JobStatus.model_validate({"job_id": job_id, "status": "completed"})


@pytest.mark.parametrize(("seconds", "faults"), [(0.0, []), (0.6, [Fault.LATE_JOB])])
async def test_a_final_status_long_after_the_jobs_time_is_late(
    seconds: float, faults: list[Fault], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LATE_ANSWER_S", 0.1)
    session: Any = SimpleNamespace(client=SlowService(seconds), budgets=BUDGETS, progress=Recorder())
    run = JobRun("", InferenceRequest(prompt="a cat"))
    run.trace = JobTrace(job_id="a", request={}, submitted_s=0.0, submit_took_s=0.0, accepted=True)
    status = await Follower(session, "check").final_status(run, 0.3)
    assert status is not None
    assert status.is_final
    assert [finding.fault for finding in run.findings] == faults
