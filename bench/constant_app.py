"""The constant Serve app: reads the request and answers with the same JSON. It is what Ray Serve alone costs.

A yardstick: its code stays as it is, so that figures of different days compare.
"""

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

_ANSWER = b'{"accepted": true, "job_id": "3f0e2b7c-6f0a-4b9e-9d5e-5b1c7a3c2d10", "status": "queued"}'


class Constant:
    """Answers every request alike."""

    async def __call__(self, request: Request) -> Response:
        """Read the body and answer."""
        await request.body()
        return Response(_ANSWER, media_type="application/json")


app = serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=2000)(Constant).bind()
