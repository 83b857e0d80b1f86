"""The bare diffusers loop: what somebody writes who wants pictures from a pipeline and nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.device.pixels import Pixels
from bench.device.rig import Rig
from deployments.device_picture import start_copy
from deployments.render import RenderRequest
from deployments.torch_device import pin_threads


class BareLoop:
    """Drives the pipeline of a rig directly, on this thread and on the default stream, while the engine is idle.

    The pipeline, its dtype and memory format, the number of CPU threads and deterministic kernels are the engine's.
    """

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._pipeline = rig.renderer.pipeline

    def save_pngs(self, requests: Sequence[RenderRequest], folder: Path) -> None:
        """Render one after the other and save each picture as PNG, compressed as the engine does; no fsync, no hash."""
        folder.mkdir(parents=True, exist_ok=True)
        level = self._rig.settings.png_compress_level
        for number, request in enumerate(requests):
            image = self._call([request], "pil")[0]
            image.save(folder / f"{number}.png", compress_level=level)

    def make_pixels(self, requests: Sequence[RenderRequest]) -> None:
        """Render one after the other and keep nothing; return when the device is done with the last one."""
        for request in requests:
            images = self._call([request], "pt")
        self._settle(images)

    def make_batches(self, requests: Sequence[RenderRequest], batch: int) -> None:
        """Render requests of one size in batches and keep nothing; return when the device is done with the last."""
        for first in range(0, len(requests), batch):
            images = self._call(requests[first : first + batch], "pt")
        self._settle(images)

    def pixels(self, requests: Sequence[RenderRequest]) -> list[Pixels]:
        """Render requests of one size as one batch; return their pixels."""
        images = self._call(requests, "pt")
        pictures = [start_copy(images[n], one.width, one.height, 0) for n, one in enumerate(requests)]
        self._settle(images)
        return [picture.pixels.numpy() for picture in pictures]

    def _call(self, requests: Sequence[RenderRequest], output_type: str) -> Any:
        pin_threads(self._rig.settings.threads)
        first, factor = requests[0], self._rig.renderer.size_factor
        arguments = dict(self._rig.renderer.family.call(self._pipeline, first).arguments)
        if len(requests) > 1:
            arguments["prompt"] = [request.prompt for request in requests]
        generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        try:
            return self._pipeline(
                **arguments,
                width=-(-first.width // factor) * factor,
                height=-(-first.height // factor) * factor,
                num_inference_steps=first.num_inference_steps,
                generator=generators if len(generators) > 1 else generators[0],
                output_type=output_type,
            ).images
        except BaseException:
            # A picture that exceeds the memory must not spoil the ones that are tried after it.
            self._rig.renderer.restore_dtypes()
            raise

    def _settle(self, images: torch.Tensor) -> None:
        """Wait for the device. Nobody waits earlier: Python may queue the next picture while this one is computed."""
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
