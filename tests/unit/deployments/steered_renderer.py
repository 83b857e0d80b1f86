"""A renderer that the test steers step by step."""

import threading
from dataclasses import dataclass, field

import numpy as np
from rendering_kit import WAIT_S

from deployments.job import RenderJob
from deployments.pictures import PixelPicture


@dataclass
class SteeredRenderer:
    """Each step waits for a permit; `fail` maps a prompt to what rendering it raises."""

    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    fail: dict[str, Exception] = field(default_factory=dict)
    load_error: Exception | None = None
    recovery_error: Exception | None = None
    recovered: list[Exception] = field(default_factory=list)
    rendered: list[str] = field(default_factory=list)
    device: str = "steered"

    def load(self) -> None:
        if self.load_error:
            raise self.load_error

    def render(self, job: RenderJob) -> PixelPicture:
        self.rendered.append(job.request.job_id)
        job.enter("denoising")
        for step in range(1, job.request.num_inference_steps + 1):
            assert self.permits.acquire(timeout=WAIT_S)
            if job.request.prompt in self.fail:
                raise self.fail[job.request.prompt]
            job.checkpoint()
            job.step_done(step)
        return PixelPicture(np.zeros((job.request.height, job.request.width, 3), np.uint8))

    def recover(self, error: Exception) -> None:
        self.recovered.append(error)
        if self.recovery_error:
            raise self.recovery_error

    def permit(self, steps: int = 1) -> None:
        self.permits.release(steps)
