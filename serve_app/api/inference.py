"""The routes of the async inference protocol: submit, poll, fetch, cancel, redeliver."""

import re
import time
from collections.abc import Awaitable, Callable
from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from callback.errors import JobNotFound
from callback.records import JobView
from callback.states import FINAL, JobState
from serve_app.access.clients import Scope
from serve_app.api.caller import Caller, show
from serve_app.api.errors import Refused, documented
from serve_app.api.identification import calling, plain_calling
from serve_app.api.pictures import PICTURE_ANSWERS, picture
from serve_app.api.shortcut import Shortcut, with_shortcut
from serve_app.api.wire import JOB_ID_PATTERN, InferenceRequest, JobStatus, SubmitAnswer
from serve_app.job_request import JobRequest
from serve_app.service import Service
from serve_app.submission import new_job

MAX_WAIT_S = 60.0
"""Longest long poll: below what proxies on the way usually allow."""
JobId = Annotated[str, Path(pattern=JOB_ID_PATTERN, description="The job's id.")]
_JOB_ID = re.compile(JOB_ID_PATTERN)
_JOB_STATUS = TypeAdapter(JobStatus)
_SUBMIT_ANSWER = TypeAdapter(SubmitAnswer)
_Submitting = Callable[[Caller, InferenceRequest], Awaitable[SubmitAnswer]]


def router(service: Service) -> APIRouter:
    """Return the routes, working on `service`."""
    routes = APIRouter(tags=["inference"])
    may_submit = Depends(calling(service, Scope.SUBMIT))
    may_read = Depends(calling(service, Scope.READ))
    _add_submit(routes, service)

    async def status(
        caller: Annotated[Caller, may_read],
        job_id: JobId,
        wait: Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="Seconds to wait for the final state.")] = 0.0,
    ) -> JobStatus:
        """Show a job; with `wait`, answer when it has ended, or as it is after so many seconds."""
        view = await _find(service, caller, job_id)
        if wait > 0 and not view.settled(time.time()):
            view = await service.long_poll(view, wait)
        return show(service, caller, view)

    routes.add_api_route(
        "/inference/status/{job_id}",
        status,
        responses=documented(401, 403, 404, 422, 429, 503),
        route_class_override=with_shortcut(_plain_status(service)),
    )

    @routes.get("/inference/result/{job_id}", response_class=Response, responses=PICTURE_ANSWERS)
    async def result(caller: Annotated[Caller, may_read], job_id: JobId, request: Request) -> Response:
        """Download the picture."""
        view = await _find_ended(service, caller, job_id)
        return await picture(service, view, request, status=show(service, caller, view).status, attachment=True)

    @routes.get("/images/{job_id}.png", response_class=Response, responses=PICTURE_ANSWERS)
    async def image(caller: Annotated[Caller, may_read], job_id: JobId, request: Request) -> Response:
        """Show the picture."""
        view = await _find_ended(service, caller, job_id)
        return await picture(service, view, request, status=show(service, caller, view).status, attachment=False)

    @routes.delete("/inference/{job_id}", responses=documented(401, 403, 404, 409, 422, 429, 503))
    async def cancel(caller: Annotated[Caller, may_submit], job_id: JobId) -> JobStatus:
        """Cancel a job: a queued one ends at once, a running one at its next denoising step."""
        return show(service, caller, await service.cancel(caller.owner, job_id))

    @routes.post("/inference/{job_id}/redeliver", responses=documented(401, 403, 404, 409, 422, 429, 503))
    async def redeliver(caller: Annotated[Caller, may_submit], job_id: JobId) -> JobStatus:
        """Send the callback of a job that has ended again, under the same webhook id."""
        return show(service, caller, await service.client.redeliver(caller.owner, job_id, uuid4().hex))

    return routes


def _add_submit(routes: APIRouter, service: Service) -> None:
    may_submit = Depends(calling(service, Scope.SUBMIT))

    async def submit(
        caller: Annotated[Caller, may_submit],
        body: InferenceRequest,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    ) -> SubmitAnswer:
        """Accept a job. It is durable when this answers."""
        _refuse_if_closed(service)
        if caller.owner != caller.client.name:
            raise Refused(403, "forbidden", "A job belongs to the client that submits it: leave `owner` out.")
        job = await new_job(service, caller.client, body, idempotency_key)
        view = await service.submit(job)
        message = "The job is accepted." if view.key == job.key else "The job was accepted before."
        if view.state is JobState.QUEUED:
            return _queued(view, message, service.mirror.position(view))
        return _moved_on(show(service, caller, view), message)

    routes.add_api_route(
        "/inference",
        submit,
        methods=["POST"],
        responses=documented(400, 401, 403, 408, 409, 413, 422, 429, 503),
        route_class_override=with_shortcut(_plain_submit(service, submit)),
    )


def _queued(view: JobView, message: str, queue_position: int | None) -> SubmitAnswer:
    """Return the answer to nearly every submit."""
    request = JobRequest.model_validate_json(view.request_json)
    return SubmitAnswer(
        **_names(view.job_id),
        status="queued",
        message=message,
        seed=request.seed,
        queue_position=queue_position,
        warnings=request.warnings,
    )


def _moved_on(shown: JobStatus, message: str) -> SubmitAnswer:
    """Return the answer to a submit that came a second time, ours to the tracker or the client's to us."""
    return SubmitAnswer(
        **_names(shown.job_id),
        status=shown.status,
        message=message,
        seed=shown.seed,
        queue_position=shown.queue_position,
        warnings=shown.warnings,
    )


def _names(job_id: str) -> dict[str, str]:
    return {
        "id": job_id,
        "job_id": job_id,
        "status_url": f"/inference/status/{job_id}",
        "result_url": f"/inference/result/{job_id}",
    }


def _plain_submit(service: Service, submit: _Submitting) -> Shortcut:
    """Return what answers a valid submit that has nothing but its body; what is wrong with others FastAPI says."""
    calling_client = plain_calling(service, Scope.SUBMIT)

    async def plain_submit(request: Request) -> Response | None:
        headers = request.headers
        plain = headers.get("content-type") == "application/json" and headers.get("idempotency-key") is None
        if request.scope["query_string"] or not plain:
            return None
        try:
            body = InferenceRequest.model_validate_json(await _read_body(request))
        except ValidationError:
            return None
        answer = await submit(await calling_client(request), body)
        return Response(_SUBMIT_ANSWER.dump_json(answer), media_type="application/json")

    return plain_submit


async def _read_body(request: Request) -> bytes:
    """Return the body; what keeps it from coming is answered as FastAPI would answer it."""
    try:
        return await request.body()
    except HTTPException:
        raise
    except Exception as error:
        # Not left to FastAPI: what failed once might let a second reading wait for ever.
        raise HTTPException(400, "There was an error parsing the body") from error


def _plain_status(service: Service) -> Shortcut:
    """Return what answers a poll that has nothing but a job id."""
    calling_client = plain_calling(service, Scope.READ)

    async def plain_status(request: Request) -> Response | None:
        job_id = request.path_params["job_id"]
        if request.scope["query_string"] or not _JOB_ID.fullmatch(job_id):
            return None
        caller = await calling_client(request)
        shown = show(service, caller, await _find(service, caller, job_id))
        return Response(_JOB_STATUS.dump_json(shown), media_type="application/json")

    return plain_status


async def _find(service: Service, caller: Caller, job_id: str) -> JobView:
    return _there(await service.mirror.find(caller.owner, job_id), job_id)


async def _find_ended(service: Service, caller: Caller, job_id: str) -> JobView:
    """Find a job whose end the client may know of before we do: by its callback, or from another ingress replica."""
    view = await _find(service, caller, job_id)
    if view.state in FINAL:
        return view
    return _there(await service.client.get(caller.owner, job_id), job_id)


def _there(view: JobView | None, job_id: str) -> JobView:
    if view is None:
        raise JobNotFound(f"There is no job {job_id!r}. It may have been removed by retention.")
    return view


def _refuse_if_closed(service: Service) -> None:
    if not service.settings.enable_inference:
        raise Refused(503, "inference_disabled", "Inference is switched off on this server (enable_inference).")
    if service.stopping:
        raise Refused(503, "stopping", "This server is being stopped. Try again in a few seconds.")
