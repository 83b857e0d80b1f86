"""What the faulty service draws and sends."""

import asyncio
import hashlib
import io
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
from flaws import Flaw, Job, Submission
from PIL import Image


def draw(asked: Submission) -> bytes:
    """Draw what only this request gets: smooth colours with a grain, the same bytes every time."""
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(asked.drawn().encode()).digest()[:8]))
    coarse = Image.fromarray(random.integers(40, 216, (9, 9, 3), np.uint8))
    smooth = np.asarray(coarse.resize((asked.width, asked.height), Image.Resampling.BICUBIC), np.int16)
    grain = random.integers(-8, 9, (asked.height, asked.width, 1), np.int16)
    return encode(np.clip(smooth + grain, 12, 250).astype(np.uint8))


def encode(pixels: np.ndarray[Any, Any], compress_level: int = 1) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=compress_level)
    return file.getvalue()


def pixels_of(picture: bytes) -> np.ndarray[Any, Any]:
    return np.array(Image.open(io.BytesIO(picture)))


class Painter:
    """Draws for jobs, with the flaws of pictures."""

    def __init__(self, flaw: Flaw) -> None:
        self._flaw = flaw
        self._first: dict[str, bytes] = {}
        self._exchanged: dict[str, Submission] = {}

    def paint(self, job: Job, others: list[Job]) -> bytes:
        asked = job.asked
        if self._flaw is Flaw.SWAPPED_PICTURES:
            asked = self._exchange(job, others)
        picture = draw(asked)
        if self._flaw is Flaw.STALE_PICTURE:
            # The seed is forgotten, as where a file of that name is found and taken for the result.
            return self._first.setdefault(f"{asked.prompt} {asked.width}x{asked.height} {asked.lora_path}", picture)
        return self._spoilt(picture)

    def _exchange(self, job: Job, others: list[Job]) -> Submission:
        if job.id not in self._exchanged:
            partner = next((other for other in others if other.id not in self._exchanged), None)
            if partner is not None:
                self._exchanged |= {job.id: partner.asked, partner.id: job.asked}
        return self._exchanged.get(job.id, job.asked)

    def _spoilt(self, picture: bytes) -> bytes:
        pixels = pixels_of(picture)
        height = len(pixels)
        match self._flaw:
            case Flaw.PARTIAL_PICTURE:
                pixels[height * 6 // 10 :] = 0
            case Flaw.BLACK_TAIL:
                pixels[height * 9 // 10 :] = 0
            case Flaw.GREY_TAIL:
                pixels[height * 8 // 10 :] = 128
            case Flaw.WRONG_SIZE:
                pixels = pixels[:-8]
            case _:
                return picture
        return encode(pixels)


class Courier:
    """Sends callbacks and says what became of them, with the flaws of callbacks."""

    def __init__(self, flaw: Flaw, complete: bool, retry_s: float) -> None:
        self._flaw = flaw
        self._complete = complete
        self._retry_s = retry_s
        self._client: httpx.AsyncClient | None = None

    async def deliver(self, job: Job) -> None:
        """Make the first attempt and settle the job; go on in the background as long as it fails."""
        if self._flaw is Flaw.FINAL_WITHOUT_CALLBACK:
            job.settled.set()
        await self._attempt(job)
        job.settled.set()
        while job.callback is not None and job.callback.get("final") is False:
            await asyncio.sleep(self._retry_s)
            await self._attempt(job)

    async def redeliver(self, job: Job) -> None:
        if self._flaw is not Flaw.FORGETS_REDELIVERY:
            await self._attempt(job)

    async def _attempt(self, job: Job) -> None:
        attempted = {"attempted_at": datetime.now(UTC).isoformat(), "payload_status": job.payload_status}
        asked = job.asked
        if asked.callback_url is None:
            job.callback = {"status": "skipped", "reason": "missing_callback_url", **attempted}
            return
        if asked.expiry is not None and self._flaw is Flaw.CALLBACK_AFTER_EXPIRY:
            await asyncio.sleep(max((asked.expiry - datetime.now(UTC)).total_seconds() + 2.5, 0))
        elif asked.expiry is not None and asked.expiry < datetime.now(UTC):
            job.callback = {"status": "expired", "expiry": asked.expiry.isoformat(), **attempted}
            return
        job.attempts += 1
        if self._flaw is Flaw.NEW_ID_ON_RETRY:
            job.webhook_id = f"msg_{uuid4().hex}"
        outcome = await self._outcome(job)
        if self._complete:
            pending = outcome["status"] != "delivered" and job.attempts < 5
            outcome |= {"webhook_id": job.webhook_id, "attempts": job.attempts, "final": not pending}
        job.callback = {**outcome, **attempted}

    async def _outcome(self, job: Job) -> dict[str, Any]:
        if self._flaw is Flaw.MISSING_CALLBACK:
            return {"status": "delivered", "status_code": 200}
        try:
            answer = await self._post(job)
            if self._flaw is Flaw.DUPLICATE_CALLBACK:
                await self._post(job)
        except httpx.HTTPError as error:
            outcome: dict[str, Any] = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        else:
            failed = "failed" if self._complete else "error"
            outcome = {
                "status": "delivered" if answer.status_code < 300 else failed,
                "status_code": answer.status_code,
                "response_preview": answer.text[:500],
            }
        if self._flaw is Flaw.CLAIMS_DELIVERY:
            return {"status": "delivered", "status_code": 200}
        return outcome

    async def _post(self, job: Job) -> httpx.Response:
        if self._client is None:
            self._client = httpx.AsyncClient(trust_env=False, verify=False, timeout=30)  # noqa: S501 - loopback only
        headers = {"webhook-id": job.webhook_id, "webhook-attempt": str(job.attempts)} if self._complete else {}
        if job.asked.callback_secret is not None:
            wrong = self._flaw is Flaw.WRONG_SECRET
            headers["X-Callback-Secret"] = "guessed" if wrong else job.asked.callback_secret
        parts: dict[str, Any] = {
            "job_id": (None, f"not-{job.id}" if self._flaw is Flaw.WRONG_ID_IN_CALLBACK else job.id),
            "status": (None, job.payload_status),
            "completed_at": (None, datetime.now(UTC).isoformat()),
        }
        if job.error is not None or self._flaw is Flaw.CALLBACK_WITH_ERROR:
            parts["error"] = (None, job.error or "nothing is wrong")
        if job.picture is not None and job.status == "completed":
            picture = job.picture
            if self._flaw is Flaw.CHANGED_BYTES:
                picture = encode(pixels_of(picture), compress_level=2)
            parts["image"] = (f"{job.id}.png", picture, "image/png")
            parts["image_url"] = (None, f"http://service/images/{job.id}.png")
        follow = self._flaw is Flaw.FOLLOWS_REDIRECTS
        return await self._client.post(
            str(job.asked.callback_url), files=parts, headers=headers, follow_redirects=follow
        )
