"""The faulty service with what goes wrong only under load: leaks between jobs, late and foreign callbacks, growth."""

import asyncio
from dataclasses import replace
from enum import StrEnum
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
from fastapi import FastAPI
from faulty_service import FaultyService, Flaw
from faulty_work import Courier, Painter, draw, encode, pixels_of
from flaws import Job


class Leak(StrEnum):
    """What leaks; NONE is the correct service."""

    NONE = "none"
    ADAPTER_STAYS = "adapter_stays"
    OLD_FILE_OF_ID = "old_file_of_id"
    SEED_LOST_UNDER_LOAD = "seed_lost_under_load"
    ROWS_OF_ANOTHER = "rows_of_another"
    ADAPTER_IGNORED = "adapter_ignored"
    LATE_DUPLICATE = "late_duplicate"
    LATE_PICTURE = "late_picture"
    LATE_WITHOUT_SECRET = "late_without_secret"
    STRANGER = "stranger"
    ROUNDING = "rounding"
    SLOWER_AND_SLOWER = "slower_and_slower"
    MORE_AND_MORE_MEMORY = "more_and_more_memory"


class LeakyPainter(Painter):
    def __init__(self, leak: Leak) -> None:
        super().__init__(Flaw.NONE)
        self._leak = leak
        self._loaded: str | None = None
        self._by_id: dict[str, bytes] = {}
        self._drawn = 0

    def paint(self, job: Job, others: list[Job]) -> bytes:
        self._drawn += 1
        match self._leak:
            case Leak.OLD_FILE_OF_ID:
                return self._by_id.setdefault(job.id, draw(job.asked))
            case Leak.ROWS_OF_ANOTHER if others:
                pixels = pixels_of(draw(job.asked))
                pixels[40:60] = pixels_of(draw(others[0].asked))[40:60]
                return encode(pixels)
            case Leak.ROUNDING:
                pixels = pixels_of(draw(job.asked))
                pixels[::7] += np.uint8(self._drawn % 3)
                return encode(pixels)
        return draw(job.asked.model_copy(update=self._changes(job, others)))

    def _changes(self, job: Job, others: list[Job]) -> dict[str, object]:
        self._loaded = job.asked.lora_path or self._loaded
        if self._leak is Leak.ADAPTER_STAYS:
            return {"lora_path": self._loaded}
        if self._leak is Leak.ADAPTER_IGNORED:
            return {"lora_path": None}
        if self._leak is Leak.SEED_LOST_UNDER_LOAD and others:
            return {"seed": 1_000_000 + self._drawn}
        return {}


class LeakyCourier(Courier):
    def __init__(self, leak: Leak, strangers: str) -> None:
        super().__init__(Flaw.NONE, complete=True, retry_s=0.1)
        self._leak = leak
        self._strangers = strangers
        self._late: set[asyncio.Task[httpx.Response]] = set()
        self._again = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def send_again(self) -> None:
        """Send every callback once more; from any thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._again.set)

    async def _post(self, job: Job) -> httpx.Response:
        answer = await super()._post(job)
        if self._leak is Leak.STRANGER:
            await super()._post(Job(f"{self._strangers}{uuid4()}", job.asked, status="failed", error="Nobody knows."))
        if self._leak in {Leak.LATE_DUPLICATE, Leak.LATE_PICTURE, Leak.LATE_WITHOUT_SECRET}:
            self._loop = asyncio.get_running_loop()
            task = asyncio.create_task(self._post_late(job))
            self._late.add(task)
        return answer

    async def _post_late(self, job: Job) -> httpx.Response:
        await self._again.wait()
        match self._leak:
            case Leak.LATE_PICTURE:
                other = job.asked.model_copy(update={"seed": (job.asked.seed or 0) + 1})
                job = replace(job, picture=draw(other), attempts=job.attempts + 1)
            case Leak.LATE_WITHOUT_SECRET:
                job = replace(job, asked=job.asked.model_copy(update={"callback_secret": None}))
        return await super()._post(job)


class LeakyService(FaultyService):
    """As its base class; `determinism` is what it says of every picture, `strangers` begins the ids nobody knows."""

    def __init__(
        self, leak: Leak = Leak.NONE, *, determinism: str | None = "exact", strangers: str = "", **options: Any
    ) -> None:
        super().__init__(**options)
        self.leak = leak
        self.courier = LeakyCourier(leak, strangers)
        self._painter = LeakyPainter(leak)
        self._courier = self.courier
        self._determinism = determinism
        self._health_calls = 0
        self._rendered = 0

    def _app(self) -> FastAPI:
        app = super()._app()
        app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") != "/health"]
        app.get("/health")(self._health)
        return app

    async def _health(self) -> dict[str, Any]:
        self._health_calls += 1
        grown = 20 * self._health_calls if self.leak is Leak.MORE_AND_MORE_MEMORY else self._health_calls % 2
        return {"status": "healthy", "memory_bytes": (500 + grown) * 1024 * 1024}

    async def _render(self, job: Job) -> None:
        if self.leak is Leak.SLOWER_AND_SLOWER:
            self._rendered += 1
            await asyncio.sleep(0.15 * self._rendered)
        await super()._render(job)

    def _record(self, job: Job) -> dict[str, Any]:
        record = super()._record(job)
        if "determinism" in record:
            record["determinism"] = self._determinism
        return record
