"""Serving pictures: verified bytes, or a sentence that says why there are none."""

import asyncio

from fastapi import Request, Response

from callback.records import JobView
from callback.states import JobState
from deployments.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing, ArtifactUnwritable
from serve_app.api.errors import Refused, documented
from serve_app.service import Service, artifact_ref

READ_TIMEOUT_S = 30.0

PICTURE_ANSWERS: dict[int | str, dict[str, object]] = {
    200: {"description": "The picture.", "content": {"image/png": {}}},
    304: {"description": "The client has the picture already (If-None-Match)."},
    **documented(401, 403, 404, 410, 422, 429, 500, 503),
}
"""The OpenAPI entries of a route that serves a picture."""


async def picture(service: Service, view: JobView, request: Request, *, status: str, attachment: bool) -> Response:
    """Return the job's picture after checking its size, SHA-256 and pixels. `status` is what a poller would see."""
    job_id = view.job_id
    if view.state is not JobState.COMPLETED or view.picture is None:
        advice = "It never will." if status in {"failed", "timeout"} else "Ask for its status until it is completed."
        raise Refused(404, "no_picture", f"The job {job_id!r} has no picture: it is {status}. {advice}")
    if view.picture_deleted:
        raise Refused(410, "picture_removed", f"The picture of job {job_id!r} was removed by retention.")
    etag = f'"{view.picture.sha256}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if etag in request.headers.get("If-None-Match", ""):
        return Response(status_code=304, headers=headers)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            reference = artifact_ref(view.picture)
            content = await loop.run_in_executor(service.picture_readers, service.artifacts.read, reference)
    except TimeoutError:
        sentence = f"The picture store did not answer within {READ_TIMEOUT_S:g} s. Try again later."
        raise Refused(503, ArtifactUnwritable.code, sentence) from None
    except ArtifactMissing:
        raise Refused(410, "picture_removed", f"The picture of job {job_id!r} is not there any more.") from None
    except ArtifactCorrupt as error:
        raise Refused(500, error.code, str(error)) from None
    except ArtifactError as error:
        raise Refused(503, error.code, str(error)) from None
    if attachment:
        headers["Content-Disposition"] = f'attachment; filename="{job_id}.png"'
    return Response(content, media_type="image/png", headers=headers)
