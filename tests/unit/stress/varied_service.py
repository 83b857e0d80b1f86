"""The faulty service with variations of its flaws, each of which a kit that looks less closely would miss."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from enum import StrEnum
from typing import Any
from uuid import uuid4

import httpx
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from faulty_service import FaultyService
from faulty_work import Courier, Painter, draw, encode, pixels_of
from flaws import Flaw, Job, Submission


class Variation(StrEnum):
    """What the service does; those from `SHOWS_REQUEST` on are right."""

    FLAPS_BACK = "flaps_back"
    FORGETS_FINAL_JOBS = "forgets_final_jobs"
    SHOWS_ANOTHER_REQUEST = "shows_another_request"
    WRONG_DOWNLOAD = "wrong_download"
    DELIVERED_TWICE = "delivered_twice"
    OTHER_PICTURE_IN_REPEAT = "other_picture_in_repeat"
    REPEATS_AFTER_DELIVERED = "repeats_after_delivered"
    NO_CALLBACK_OF_FAILED_JOBS = "no_callback_of_failed_jobs"
    NO_CALLBACK_OF_EVERY_SECOND_JOB = "no_callback_of_every_second_job"
    REPEAT_SENT_TWICE = "repeat_sent_twice"
    REFUSES_AND_CALLS_BACK = "refuses_and_calls_back"
    CLAIMS_EARLY = "claims_early"
    NO_SECRET = "no_secret"
    ANOTHER_SECRET = "another_secret"
    ID_UNDER_ONE_NAME = "id_under_one_name"
    SHOWS_REQUEST = "shows_request"
    BOUNDED_QUEUE = "bounded_queue"
    OBEDIENT = "obedient"
    REPEATS_THOUGH_TAKEN = "repeats_though_taken"
    OFTEN_BUSY = "often_busy"
    UNDER_A_PREFIX = "under_a_prefix"


class ObedientPainter(Painter):
    """Draws a ground that is black or white where the prompt says so."""

    def paint(self, job: Job, others: list[Job]) -> bytes:
        ground = next((value for name, value in (("black", 2), ("white", 253)) if name in job.asked.prompt), None)
        picture = super().paint(job, others)
        if ground is None:
            return picture
        pixels = pixels_of(picture)
        thing = pixels[: len(pixels) // 3].copy()
        pixels[:] = ground
        pixels[: len(thing)] = thing
        return encode(pixels)


class VariedCourier(Courier):
    def __init__(self, variation: Variation, complete: bool) -> None:
        super().__init__(Flaw.NONE, complete, retry_s=0.1)
        self._variation = variation
        self._jobs = 0
        self._late: set[asyncio.Task[Any]] = set()

    async def deliver(self, job: Job) -> None:
        if self._variation is Variation.NO_CALLBACK_OF_FAILED_JOBS and job.status != "completed":
            job.callback = {"status": "skipped", "reason": "no_picture", "payload_status": "failed"}
            job.settled.set()
            return
        if self._variation is Variation.CLAIMS_EARLY:
            job.callback = {"status": "delivered", "status_code": 200, "payload_status": job.payload_status}
            job.settled.set()
            await job.seen.wait()
            await super()._attempt(job)
            return
        await super().deliver(job)

    async def _post(self, job: Job) -> httpx.Response:
        self._jobs += 1
        if self._variation is Variation.NO_CALLBACK_OF_EVERY_SECOND_JOB and self._jobs % 2 == 0:
            return httpx.Response(200)
        if self._variation in {Variation.NO_SECRET, Variation.ANOTHER_SECRET}:
            secret = None if self._variation is Variation.NO_SECRET else "guessed"
            job = replace(job, asked=job.asked.model_copy(update={"callback_secret": secret}))
        if self._variation is Variation.OTHER_PICTURE_IN_REPEAT and job.attempts > 1:
            job = replace(job, picture=draw(job.asked.model_copy(update={"seed": job.asked.seed + 1})))
        answer = await super()._post(job)
        match self._variation:
            case Variation.DELIVERED_TWICE:
                self._send_late(replace(job, webhook_id=f"msg_{uuid4().hex}"))
            case Variation.REPEATS_AFTER_DELIVERED:
                self._send_late(replace(job, attempts=job.attempts + 1))
            case Variation.REPEAT_SENT_TWICE if job.attempts > 1:
                self._send_late(job)
            case Variation.REPEATS_THOUGH_TAKEN | Variation.OTHER_PICTURE_IN_REPEAT if job.attempts == 1:
                return httpx.Response(504)  # The answer was missed.
        return answer

    async def send(self, job: Job) -> None:
        await super()._post(job)

    def _send_late(self, job: Job) -> None:
        async def send() -> None:
            # The job counts as delivered by then, and the kit has seen its first callback.
            await asyncio.sleep(0.1)
            await super(VariedCourier, self)._post(job)

        self._late.add(asyncio.create_task(send()))


class VariedService(FaultyService):
    """As its base class, with at most `queue` open jobs where its queue is bounded."""

    def __init__(self, variation: Variation, *, complete: bool = True, queue: int = 2, **options: Any) -> None:
        super().__init__(complete=complete, **options)
        self.variation = variation
        self._courier: VariedCourier = VariedCourier(variation, complete)
        if variation is Variation.OBEDIENT:
            self._painter = ObedientPainter(Flaw.NONE)
        self._queue = queue
        self._seen_final: set[str] = set()

    def _app(self) -> FastAPI:
        app = super()._app()
        calls: Counter[tuple[str, str]] = Counter()

        @app.middleware("http")
        async def answer(request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
            call = request.method, request.url.path
            calls[call] += 1
            if self.variation is Variation.OFTEN_BUSY and calls[call] % 2 and request.url.path != "/health":
                return Response("Busy.", 503 if calls[call] % 4 == 1 else 429, headers={"Retry-After": "0"})
            return await handle(request)

        return app

    async def _submit(self, request: Request, idempotency_key: str | None = None) -> dict[str, Any]:
        waiting = sum(not job.settled.is_set() for job in self._registry.jobs.values())
        if self.variation is Variation.BOUNDED_QUEUE and waiting >= self._queue:
            raise HTTPException(429, "The queue is full.")
        try:
            answer = await super()._submit(request, request.headers.get("idempotency-key"))
        except RequestValidationError:
            if self.variation is Variation.REFUSES_AND_CALLS_BACK:
                await self._call_back(await request.json())
            raise
        if self.variation is Variation.UNDER_A_PREFIX:
            answer |= {name: f"/pictures{answer[name]}" for name in ("status_url", "result_url")}
        return answer

    async def _call_back(self, body: dict[str, Any]) -> None:
        kept = {name: body[name] for name in ("callback_url", "callback_secret")}
        if str(kept["callback_url"]).startswith("http"):
            asked = Submission.model_validate({"prompt": "refused", **kept})
            await self._courier.send(Job(body["job_id"], asked, status="failed", error="It was refused."))

    async def _status(self, job_id: str, wait: float = 0.0) -> dict[str, Any]:
        record = await super()._status(job_id, wait)
        if job_id in self._seen_final and self.variation is Variation.FLAPS_BACK:
            return record | {"status": "processing"}
        if job_id in self._seen_final and self.variation is Variation.FORGETS_FINAL_JOBS:
            raise HTTPException(404, "There is no such job.")
        if record["status"] in {"completed", "failed", "timeout"}:
            self._seen_final.add(job_id)
            # Sent off a moment after the answer that calls it delivered.
            asyncio.get_running_loop().call_later(0.2, self._registry.find(job_id).seen.set)
        return record

    def _record(self, job: Job) -> dict[str, Any]:
        record = super()._record(job)
        match self.variation:
            case Variation.ID_UNDER_ONE_NAME:
                del record["job_id"]
            case Variation.SHOWS_REQUEST:
                record["request"] = job.asked.model_dump(mode="json")
            case Variation.SHOWS_ANOTHER_REQUEST:
                record["request"] = job.asked.model_dump(mode="json") | {"prompt": "of somebody else"}
        return record

    async def _picture(self, job_id: str) -> Response:
        answer = await super()._picture(job_id)
        if self.variation is Variation.FORGETS_FINAL_JOBS:
            raise HTTPException(404, "There is no such job.")
        if self.variation is Variation.WRONG_DOWNLOAD:
            asked = self._registry.find(job_id).asked
            return Response(draw(asked.model_copy(update={"seed": asked.seed + 1})), media_type="image/png")
        return answer
