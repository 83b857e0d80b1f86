"""The list of jobs."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from callback.states import JobState
from serve_app.access.clients import Scope
from serve_app.api.caller import Caller, show
from serve_app.api.errors import documented
from serve_app.api.identification import calling
from serve_app.api.wire import JobList, JobStatus, Status
from serve_app.service import Service

MAX_PAGE = 500


def router(service: Service) -> APIRouter:
    """Return the routes, working on `service`."""
    routes = APIRouter(tags=["jobs"])
    may_read = Depends(calling(service, Scope.READ))

    @routes.get("/jobs", responses=documented(401, 403, 422, 429, 503))
    async def jobs(
        caller: Annotated[Caller, may_read],
        status: Annotated[list[Status] | None, Query(description="Only jobs in these states.")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
        cursor: Annotated[int | None, Query(ge=1, le=2**62, description="`next_cursor` of the page before.")] = None,
        job_type: Annotated[
            str | None, Query(max_length=64, description="inference or edit; anything else: both.")
        ] = None,
    ) -> JobList:
        """List the caller's jobs, an admin's list those of all clients, newest first.

        With `status`, a page may hold fewer than `limit` jobs and yet not be the last.
        """
        if job_type == "edit":
            return JobList(edit_jobs=[])
        page = await service.client.jobs(caller.listed, _recorded(status), cursor, limit)
        shown = [show(service, caller, view) for view in page.views]
        if status:
            shown = [job for job in shown if job.status in status]
        edit_jobs: list[JobStatus] | None = None if job_type == "inference" else []
        return JobList(inference_jobs=shown, edit_jobs=edit_jobs, next_cursor=page.next_cursor)

    return routes


def _recorded(shown: list[Status] | None) -> tuple[JobState, ...]:
    """Return the recorded states among which jobs of the shown ones are.

    A claimed job that has not begun is shown as queued, an ended one whose first callback attempt is under way as
    processing.
    """
    wanted = {JobState(one) for one in shown or ()}
    if JobState.QUEUED in wanted:
        wanted.add(JobState.PROCESSING)
    if shown and "processing" in shown:
        wanted |= set(JobState)
    return tuple(wanted)
