"""A small service that speaks the protocol correctly, and with one flaw where it is told so."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import uuid4

from fastapi import FastAPI, Header, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from faulty_work import Courier, Painter, draw
from flaws import Flaw, Job, Submission
from pydantic import ValidationError

from stress.background_server import BackgroundServer

__all__ = ["FaultyService", "Flaw"]


@dataclass
class Registry:
    """Which job an id and an idempotency key stand for."""

    jobs: dict[str, Job] = field(default_factory=dict)
    by_key: dict[str, Job] = field(default_factory=dict)

    def find(self, job_id: str) -> Job:
        job = self.jobs.get(job_id)
        if job is None:
            raise HTTPException(404, f"There is no job {job_id!r}.")
        return job

    def known(self, asked: Submission, key: str | None, flaw: Flaw, complete: bool) -> Job | None:
        """Return the job that this submission repeats; raise 409 where its id or key is another's."""
        if complete and key in self.by_key and flaw is not Flaw.DOUBLE_JOB:
            return self.by_key[key]
        live = self.jobs.get(asked.job_id or "")
        if live is None or live.settled.is_set() or flaw is Flaw.STEALS_IDS:
            return None
        if complete and live.asked == asked:
            return live
        raise HTTPException(409, f"The id {asked.job_id!r} is in use.")


class FaultyService(BackgroundServer):
    """The service on a free port of loopback, to be started and stopped as its base class.

    A step takes `step_s`, of at most `workers` jobs at once. Without `complete` it is a service of the protocol's
    first form: no held polls, no hashes, no webhook ids, one attempt, no cancelling, no redelivery.
    """

    def __init__(
        self,
        flaw: Flaw = Flaw.NONE,
        *,
        workers: int = 2,
        step_s: float = 0.0,
        retry_s: float = 0.1,
        complete: bool = True,
        job_timeout_s: float = 300.0,
    ) -> None:
        self.flaw = flaw
        self.submissions = 0
        self.prompts: set[str] = set()
        self._complete = complete
        self._step_s = step_s
        self._job_timeout_s = job_timeout_s
        self._registry = Registry()
        self._painter = Painter(flaw)
        self._courier = Courier(flaw, complete, retry_s)
        self._workers = asyncio.Semaphore(workers)
        self._tasks: set[asyncio.Task[None]] = set()
        super().__init__(self._app(), probe_path="/health")

    def _app(self) -> FastAPI:
        app = FastAPI()
        app.post("/inference")(self._submit)
        app.get("/inference/status/{job_id}")(self._status)
        app.get("/inference/result/{job_id}")(self._picture)
        app.get("/images/{job_id}.png")(self._picture)
        app.get("/jobs")(lambda: {"inference_jobs": [self._record(job) for job in self._registry.jobs.values()]})
        app.get("/health")(lambda: {"status": "healthy"})
        app.get("/")(self._root)
        if self._complete:
            app.delete("/inference/{job_id}")(self._cancel)
            app.post("/inference/{job_id}/redeliver")(self._redeliver)
        return app

    async def _root(self) -> dict[str, Any]:
        endpoints = {"submit": "POST /inference"}
        if self._complete:
            endpoints |= {"cancel": "DELETE /inference/{id}", "redeliver": "POST /inference/{id}/redeliver"}
        return {"name": "Faulty", "version": "1.0.0", "endpoints": endpoints}

    async def _submit(
        self, request: Request, idempotency_key: Annotated[str | None, Header()] = None
    ) -> dict[str, Any]:
        if self.flaw is Flaw.ERROR_ON_SUBMIT:
            raise HTTPException(500, "This service is broken.")
        asked = self._read(await request.json())
        self.prompts.add(asked.prompt)
        job = self._registry.known(asked, idempotency_key, self.flaw, self._complete)
        if job is None:
            self.submissions += 1
            job = Job(asked.job_id or str(uuid4()), asked)
            self._registry.jobs[job.id] = job
            if idempotency_key is not None:
                self._registry.by_key[idempotency_key] = job
            if self.flaw is Flaw.LOST_JOB:
                del self._registry.jobs[job.id]
            self._begin(self._render, job)
        job_id = str(uuid4()) if self.flaw is Flaw.WRONG_ID_AT_SUBMIT else job.id
        return {
            "accepted": True,
            "id": job_id,
            "job_id": job_id,
            "status": "queued",
            "message": "Job queued",
            "status_url": f"/inference/status/{job_id}",
            "result_url": f"/inference/result/{job_id}",
        }

    def _read(self, body: dict[str, Any]) -> Submission:
        try:
            return Submission.model_validate(body)
        except ValidationError as error:
            if self.flaw is not Flaw.ACCEPTS_ANYTHING:
                raise RequestValidationError(json.loads(error.json())) from error
            wrong = {fault["loc"][0] for fault in error.errors()}
            return Submission.model_validate(
                {"prompt": "anything"} | {key: value for key, value in body.items() if key not in wrong}
            )

    def _begin(self, work: Callable[[Job], Any], job: Job) -> None:
        task = asyncio.ensure_future(work(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _render(self, job: Job) -> None:
        async with self._workers:
            if job.ended:
                return None
            job.status = "processing"
            needs_s = 3600.0 if self.flaw is Flaw.SLOW else self._step_s * job.asked.num_inference_steps
            try:
                async with asyncio.timeout(min(needs_s, self._job_timeout_s)):
                    await job.cancelled.wait()
            except TimeoutError:
                if needs_s > self._job_timeout_s:
                    status = "failed" if self.flaw is Flaw.TIMEOUT_AS_FAILURE else "timeout"
                    return self._end(job, status, "It took too long.")
            if job.cancelled.is_set():
                return self._end(job, "failed", "It was cancelled.")
            if self.flaw is Flaw.FAILS:
                return self._end(job, "failed", "The device is on fire.")
            others = [other for other in self._registry.jobs.values() if not other.ended and other is not job]
            job.picture = await asyncio.to_thread(self._painter.paint, job, others)
        return self._end(job, "completed")

    def _end(self, job: Job, status: str, error: str | None = None) -> None:
        job.status, job.error, job.ended_at = status, error, datetime.now(UTC)
        self._begin(self._courier.deliver, job)

    async def _status(self, job_id: str, wait: float = 0.0) -> dict[str, Any]:
        if self.flaw is Flaw.INVENTS_JOBS and job_id not in self._registry.jobs:
            return {"id": job_id, "job_id": job_id, "status": "queued"}
        job = self._registry.find(job_id)
        if wait and self._complete:
            try:
                async with asyncio.timeout(wait):
                    await job.settled.wait()
            except TimeoutError:
                pass
        return self._record(job)

    def _record(self, job: Job) -> dict[str, Any]:
        shown_id = f"not-{job.id}" if self.flaw is Flaw.WRONG_ID_IN_STATUS else job.id
        record: dict[str, Any] = {"id": shown_id, "job_id": shown_id, "queued_at": job.queued_at.isoformat()}
        record["status"] = job.status if job.settled.is_set() or not job.ended else "processing"
        if not job.settled.is_set() or job.ended_at is None:
            return record
        record |= {"completed_at": job.ended_at.isoformat(), "callback": job.callback}
        if job.picture is None or job.status != "completed":
            return record | {"failed_at": record["completed_at"], "error": job.error}
        record |= {"result_url": f"/inference/result/{job.id}", "image_url": f"{self.url}/images/{job.id}.png"}
        if self._complete:
            sha256 = hashlib.sha256(job.picture).hexdigest()
            size = {"width": job.asked.width, "height": job.asked.height}
            record |= {"sha256": sha256, "size_bytes": len(job.picture), "determinism": "exact", **size}
        return record

    async def _picture(self, job_id: str) -> Response:
        job = self._registry.find(job_id)
        if self.flaw is Flaw.SERVES_EARLY:
            return Response(job.picture or draw(job.asked), media_type="image/png")
        if job.picture is None or job.status != "completed" or not job.settled.is_set():
            raise HTTPException(404, "There is no picture (yet).")
        return Response(job.picture, media_type="image/png")

    async def _cancel(self, job_id: str) -> dict[str, Any]:
        job = self._registry.find(job_id)
        if job.ended:
            raise HTTPException(409, "The job has ended.")
        if self.flaw is not Flaw.IGNORES_CANCEL:
            job.cancelled.set()
            if job.status == "queued":
                self._end(job, "failed", "It was cancelled.")
        return self._record(job)

    async def _redeliver(self, job_id: str) -> dict[str, Any]:
        job = self._registry.find(job_id)
        if not job.settled.is_set() or job.asked.callback_url is None:
            raise HTTPException(409, "There is no callback to send again.")
        self._begin(self._courier.redeliver, job)
        return self._record(job)
