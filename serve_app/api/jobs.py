"""The list of jobs."""

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Query

from callback.states import JobState
from serve_app.api.errors import documented
from serve_app.api.inference import PUBLIC_OWNER
from serve_app.api.wire import JobList, Status, status_of
from serve_app.service import Service

MAX_PAGE = 500


def router(service: Service) -> APIRouter:
    """Return the routes, working on `service`."""
    routes = APIRouter(tags=["jobs"])

    @routes.get("/jobs", responses=documented(422, 503))
    async def jobs(
        status: Annotated[list[Status] | None, Query(description="Only jobs in these states.")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
        cursor: Annotated[int | None, Query(ge=1, le=2**62, description="`next_cursor` of the page before.")] = None,
        job_type: Annotated[
            Literal["inference", "edit"] | None, Query(description="Ignored: there is one type.")
        ] = None,
    ) -> JobList:
        """List jobs, newest first."""
        del job_type
        states = tuple(JobState(one) for one in status or ())
        page = await service.client.jobs(PUBLIC_OWNER, states, cursor, limit)
        now = time.time()
        shown = [
            status_of(view, now=now, position=service.mirror.position(view), service_url=service.settings.service_url)
            for view in page.views
        ]
        return JobList(inference_jobs=shown, next_cursor=page.next_cursor)

    return routes
