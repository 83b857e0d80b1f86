"""The engine kind `simulated`: takes a device's time without its work, and fails on demand.

The picture is a valid PNG and a pure function of what decides a real one: prompt, negative prompt, seed, size, steps,
guidance and adapter. With 1024x1024 pixels it has more than 100,000 bytes.
"""

import hashlib
import os
import signal
import threading
import time

import numpy as np
from numpy.typing import NDArray

from deployments.adapters import AdapterCatalogue
from deployments.errors import DeviceOutOfMemory, RenderBroken
from deployments.job import RenderJob
from deployments.models import ModelSettings
from deployments.pictures import PixelPicture
from deployments.render import RenderRequest

_TILE = 256  # pixels; the noise repeats, because drawing it for each pixel would cost the time that is simulated


class SimulatedRenderer:
    """Sleeps instead of denoising; prompts that contain one of the configured texts fail, hang or kill the process."""

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._options = settings.simulated
        self._adapters = AdapterCatalogue.of(settings)

    @property
    def device(self) -> str:
        """See `Renderer`."""
        return "simulated"

    def load(self) -> None:
        """See `Renderer`."""
        time.sleep(self._options.load_seconds)

    def render(self, job: RenderJob) -> PixelPicture:
        """See `Renderer`."""
        if job.request.adapter is not None:
            job.enter("loading")
            self._adapters.resolve(job.request.adapter)
        job.enter("encoding")
        job.enter("denoising")
        self._misbehave(job.request.prompt)
        for step in range(1, job.request.num_inference_steps + 1):
            job.cancelled.wait(self._options.step_seconds)
            job.checkpoint()
            job.step_done(step)
        job.enter("decoding")
        job.cancelled.wait(self._options.decode_seconds)
        return PixelPicture(simulated_pixels(job.request), self._settings.png_compress_level)

    def recover(self, error: Exception) -> None:
        """See `Renderer`; a simulated device is always well."""

    def _misbehave(self, prompt: str) -> None:
        options = self._options
        if options.crash_on and options.crash_on in prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        if options.hang_on and options.hang_on in prompt:
            threading.Event().wait()
        if options.out_of_memory_on and options.out_of_memory_on in prompt:
            raise DeviceOutOfMemory("The device has too little memory for this request (simulated).")
        if options.fail_on and options.fail_on in prompt:
            raise RenderBroken("The model failed on this request (simulated).")


def simulated_pixels(request: RenderRequest) -> NDArray[np.uint8]:
    """Return the picture of `request`, uint8 of shape (height, width, 3): two gradients of its own under fine noise."""
    random = np.random.default_rng(int.from_bytes(_identity(request)))
    across = _ramps(random, request.width)[None, :, :]
    down = _ramps(random, request.height)[:, None, :]
    tile = random.integers(0, 8, (_TILE, _TILE, 1), np.uint8)
    repeats = (-(-request.height // _TILE), -(-request.width // _TILE), 1)
    # Sums stay below 256: two ramps of at most 120, and noise of at most 7.
    pixels: NDArray[np.uint8] = across + down + np.tile(tile, repeats)[: request.height, : request.width]
    return pixels


def _identity(request: RenderRequest) -> bytes:
    """Return a hash of all that decides a picture; not of the job's id, its key and its limits."""
    parts = (
        request.prompt,
        request.negative_prompt,
        request.seed,
        request.width,
        request.height,
        request.num_inference_steps,
        request.guidance_scale,
        request.adapter,
    )
    return hashlib.sha256(repr(parts).encode()).digest()


def _ramps(random: np.random.Generator, length: int) -> NDArray[np.uint8]:
    """Return one ramp per channel between random brightnesses of 0...120, uint8 of shape (length, 3)."""
    first, last = random.integers(0, 121, (2, 3)).astype(np.float64)
    ramps: NDArray[np.uint8] = np.linspace(first, last, length).astype(np.uint8)
    return ramps
