"""A small service for tests of the client: what it was asked, what it answers, and where it cuts the connection."""

import asyncio
import threading
from collections import Counter
from dataclasses import dataclass, field

from fastapi import FastAPI, Request, Response

from stress.background_server import BackgroundServer


@dataclass
class ScriptedService:
    """A small service: what it was asked, what it answers, and where it cuts the connection."""

    app: FastAPI = field(default_factory=FastAPI)
    server: BackgroundServer = field(init=False)
    bodies: list[dict[str, object]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    jobs: dict[str, str] = field(default_factory=dict)
    paths: Counter[str] = field(default_factory=Counter)
    cuts: int = 0
    knows_wait: bool = True
    waits: list[str | None] = field(default_factory=list)
    states: dict[str, list[str]] = field(default_factory=dict)
    answers: dict[str, list[Response]] = field(default_factory=dict)
    asked: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.server = BackgroundServer(self.app, probe_path="/health")
        self.app.middleware("http")(self._cut_or_answer)
        self.app.post("/inference")(self._submit)
        self.app.get("/inference/status/{job_id}")(self._status)
        self.app.get("/health")(lambda: {"status": "healthy", "services": {"inference": "loaded"}})

    async def _cut_or_answer(self, request: Request, call_next) -> Response:  # type: ignore[no-untyped-def]
        path = request.scope["raw_path"].decode()
        self.paths[f"{request.method} {path}"] += 1
        if self.answers.get(path):
            return self.answers[path].pop(0)
        response: Response = await call_next(request)
        if self.cuts:
            self.cuts -= 1
            assert request.client is not None
            self.server.hang_up((request.client.host, request.client.port))
        return response

    async def _submit(self, request: Request) -> dict[str, object]:
        self.bodies.append(await request.json())
        self.keys.append(request.headers["idempotency-key"])
        job_id = self.jobs.setdefault(self.keys[-1], f"job-{len(self.jobs)}")
        return {
            "accepted": True,
            "job_id": job_id,
            "status": "queued",
            "message": "queued",
            "status_url": f"/inference/status/{job_id}",
            "result_url": f"/inference/result/{job_id}",
        }

    async def _status(self, job_id: str, request: Request) -> dict[str, object]:
        self.waits.append(request.query_params.get("wait"))
        self.asked.set()
        states = self.states[job_id]
        state = states.pop(0) if len(states) > 1 else states[0]
        if state == "held":
            await asyncio.sleep(0.3)
            state = "processing"
        return {"id": job_id, "status": state, "callback": {"status": "delivered", "status_code": 200}}
