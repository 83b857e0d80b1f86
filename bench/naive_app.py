"""The naive Serve app: a tracker actor that keeps jobs in a dict, and one actor call for every step of a job.

It is what one writes in an afternoon, and promises nothing: jobs are lost with the tracker, pictures are written
without a sync, nobody is called back. A yardstick: its code stays as it is, so that figures of different days compare.
"""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.noop import constant_png

api = FastAPI()


class NaiveRequest(BaseModel):
    """What to draw."""

    prompt: str
    width: int = 1024
    height: int = 1024
    num_inference_steps: int = 20
    seed: int = 0


class NaiveTracker:
    """Keeps jobs in memory."""

    def __init__(self) -> None:
        self._jobs: dict[str, dict[str, Any]] = {}

    async def create(self, job_id: str, request: dict[str, Any]) -> None:
        """Note a new job."""
        self._jobs[job_id] = {"job_id": job_id, "status": "queued", "request": request, "queued_at": _now()}

    async def start(self, job_id: str) -> None:
        """Note that a job is being rendered."""
        self._jobs[job_id] |= {"status": "processing", "started_at": _now()}

    async def finish(self, job_id: str, path: str) -> None:
        """Note where the picture is."""
        self._jobs[job_id] |= {"status": "completed", "completed_at": _now(), "output_path": path}

    async def get(self, job_id: str) -> dict[str, Any] | None:
        """Return a job."""
        return self._jobs.get(job_id)


class NaiveModel:
    """Writes the constant picture to a file."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)

    def render(self, job_id: str, width: int, height: int) -> str:
        """Return the path of the picture."""
        path = self._folder / f"{job_id}.png"
        path.write_bytes(constant_png(width, height))
        return str(path)


@serve.ingress(api)
class NaiveIngress:
    """Accepts jobs and sees each through in a background task."""

    def __init__(self, model: DeploymentHandle) -> None:
        self._model = model
        self._tracker = ray.remote(NaiveTracker).options(num_cpus=0).remote()
        self._running: set[asyncio.Task[None]] = set()

    @api.post("/inference")
    async def submit(self, request: NaiveRequest) -> dict[str, str]:
        """Accept a job."""
        job_id = str(uuid4())
        await self._tracker.create.remote(job_id, request.model_dump())
        task = asyncio.create_task(self._run(job_id, request))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return {"job_id": job_id, "status": "queued"}

    async def _run(self, job_id: str, request: NaiveRequest) -> None:
        await self._tracker.start.remote(job_id)
        path = await self._model.render.remote(job_id, request.width, request.height)
        await self._tracker.finish.remote(job_id, path)

    @api.get("/inference/status/{job_id}")
    async def status(self, job_id: str) -> dict[str, Any]:
        """Show a job."""
        job: dict[str, Any] | None = await self._tracker.get.remote(job_id)
        if job is None:
            raise HTTPException(404)
        return job


def build(args: dict[str, str]) -> serve.Application:
    """Return the application; `args["folder"]` is where the pictures go."""
    model = serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=3)(NaiveModel)
    ingress = serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=2000)(NaiveIngress)
    return ingress.bind(model.bind(args["folder"]))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
