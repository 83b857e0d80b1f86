"""Polling: from an accepted job to its final status."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

from stress.checks.job_run import JobRun
from stress.checks.outcome import Fault
from stress.checks.session import Session
from stress.errors import (
    AnswerError,
    JobNotFoundError,
    ServiceBusyError,
    ServiceError,
    ServiceFailedError,
    ServiceUnreachableError,
)
from stress.wire import CallbackReport, JobStatus

LONG_POLL_S = 25
"""How long a service may hold a poll; one that does not know held polls is asked every `poll_interval_s`."""
GRACE_S = 10.0
"""For what should have been there already: how long to look whether it is late or never comes."""
_GRACE_INTERVAL_S = 0.2
LATE_ANSWER_S = 2.0
"""A poll is held until the job's time is over at the longest; its answer may be so long on its way."""
_ECHOED = ("prompt", "seed", "width", "height", "num_inference_steps")
_TROUBLE = (ServiceUnreachableError, ServiceBusyError, ServiceFailedError)


class Follower:
    """Reads the statuses of one check's jobs."""

    def __init__(self, session: Session, check: str) -> None:
        self._session = session
        self._check = check

    async def final_status(self, run: JobRun, budget_s: float) -> JobStatus | None:
        """Poll until the job is final; None, with a finding, when it is lost or not final within the budget.

        An outage or a crash on a poll is one finding of the job, and is then waited out.
        """
        deadline = time.monotonic() + budget_s
        while (left_s := deadline - time.monotonic()) > 0:
            asked_at, interval_s = time.monotonic(), self._session.budgets.poll_interval_s
            try:
                status = await self.read(run, int(min(left_s, LONG_POLL_S)) or None)
            except _TROUBLE as error:
                _note_trouble(run, error)
                if isinstance(error, ServiceBusyError):
                    interval_s = max(interval_s, error.retry_after_s or 0.0)
            except JobNotFoundError as error:
                run.found(Fault.LOST_JOB, f"The job was accepted and is unknown now. {error}")
                return None
            except AnswerError as error:
                run.found(Fault.WRONG_ANSWER, str(error))
                return None
            else:
                if status.is_final:
                    late_s = time.monotonic() - deadline
                    if late_s > LATE_ANSWER_S:
                        sentence = f"The poll that showed the final status was answered {late_s:.1f} s after the job's "
                        run.found(Fault.LATE_JOB, f"{sentence}{budget_s:.0f} s were over.")
                    return status
            # A held poll has used up its interval already.
            now = time.monotonic()
            pause_s = min(asked_at + interval_s, deadline) - now
            await asyncio.sleep(max(pause_s, 0.0))
        last = f"it was last {run.status.status}" if run.status else "no status could be read"
        run.found(Fault.LATE_JOB, f"The job was not final after {budget_s:.0f} s: {last}.")
        return None

    async def read(self, run: JobRun, wait_s: float | None = None) -> JobStatus:
        """Read the job's status once and keep it. Raises as `AsyncDarkroomClient.status`."""
        status = await self._session.client.status(run.job_id, wait_s)
        status = _without_secret(status)
        if run.delivered_seen_at is None and status.callback is not None and status.callback.status == "delivered":
            run.delivered_seen_at = datetime.now(UTC)
        known = run.status
        run.update(status=status)
        if known is None or _moves(known) != _moves(status):
            self._session.progress.job_moved(self._check, run.job_id, status)
        names = {repr(name) for name in (status.job_id, (status.model_extra or {}).get("id", status.job_id))}
        others = " and ".join(sorted(names - {repr(run.job_id)}))
        if others:
            run.found_once(Fault.WRONG_JOB_ID, f"The status of this job carries another id: {others}.")
        _check_echo(run, status)
        return status

    async def is_forgotten(self, run: JobRun) -> bool:
        """Whether the service says that it knows no such job."""
        try:
            await self._session.ask(lambda: self._session.client.status(run.job_id))
        except JobNotFoundError:
            return True
        except ServiceError:
            return False
        return False

    async def must_stay_final(self, run: JobRun, status: JobStatus) -> None:
        """Read the status of a final job again: it must be the same, if the record is still kept."""
        try:
            now = await self._session.ask(lambda: self._session.client.status(run.job_id))
        except ServiceError:
            # Services may drop the record of a final job at any time; what else fails here is not about this job.
            return
        if now.status is not status.status:
            run.found(Fault.WRONG_ANSWER, f"The job was {status.status}, which is final, and is {now.status} now.")

    async def section_when(
        self, run: JobRun, wanted: Callable[[CallbackReport], bool], *, timeout_s: float
    ) -> CallbackReport | None:
        """Read the status until its `callback` section is as `wanted`; return the latest section in any case."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                status: JobStatus | None = await self.read(run)
            except ServiceError:
                status = run.status
            report = status.callback if status else None
            if (report is not None and wanted(report)) or time.monotonic() >= deadline:
                return report
            await asyncio.sleep(_GRACE_INTERVAL_S)

    async def missed_section(self, run: JobRun) -> None:
        """Say that a final status came without its `callback` section, and whether that came later."""
        state = run.status.status if run.status else "a final status"
        first_seen = time.monotonic()
        grace_s = min(GRACE_S, self._session.budgets.callback_s)
        report = await self.section_when(run, lambda _: True, timeout_s=grace_s)
        came = f"came {time.monotonic() - first_seen:.1f} s later" if report else f"did not come within {grace_s:g} s"
        sentence = f"The first poll that showed {state} had no `callback` section, which {came}."
        run.found(Fault.FINAL_WITHOUT_CALLBACK, sentence)


def _without_secret(status: JobStatus) -> JobStatus:
    """Leave out the secret where a service repeats the request: the status goes into reports."""
    echo = (status.model_extra or {}).get("request")
    if not isinstance(echo, dict) or "callback_secret" not in echo:
        return status
    shown = {name: value for name, value in echo.items() if name != "callback_secret"}
    return status.model_copy(update={"request": shown})


def _check_echo(run: JobRun, status: JobStatus) -> None:
    """Demand that what the status repeats of the request is what was asked for."""
    echo = (status.model_extra or {}).get("request")
    stated = {**(echo if isinstance(echo, dict) else {}), **({} if status.seed is None else {"seed": status.seed})}
    for name in _ECHOED:
        asked, shown = getattr(run.request, name), stated.get(name)
        # Left out, redacted, or a default of the service's own (0 counts as none in the first form).
        if asked and shown and shown != asked:
            sentence = f"The status of this job shows another request: {name} is {shown!r}, asked was {asked!r}."
            run.found_once(Fault.WRONG_ANSWER, sentence)


def _moves(status: JobStatus) -> tuple[object, ...]:
    return status.status, status.stage, status.step


def _note_trouble(run: JobRun, error: ServiceError) -> None:
    # That it is busy is an answer that the protocol allows.
    if isinstance(error, ServiceBusyError):
        return
    fault = Fault.NO_ANSWER if isinstance(error, ServiceUnreachableError) else Fault.WRONG_ANSWER
    run.found_once(fault, f"A status poll failed. {error}")
