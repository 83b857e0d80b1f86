"""A device that is late: does the engine wait for it, and would this check notice if it did not?

On CUDA a kernel that only spins keeps the stream busy for `DELAY_S` between the picture and its copy. A CPU has no
stream; there the copy itself is made late: the host memory that the engine is given fills only after `DELAY_S`, and its
`copied` event happens then. Both go through `Engine`'s tail and `DevicePicture.wait`.
"""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from bench.device.requests import again, plain_requests
from bench.device.results import Outcome, Results, Synchronisation
from bench.device.rig import MeteredRenderer, Rig, open_rig
from bench.device.subjects import Subject
from deployments.device_picture import DevicePicture
from deployments.job import RenderJob
from deployments.models import ModelSettings
from deployments.render import RenderFinished, RenderRequest

DELAY_S = 0.3
"""Far longer than the tail takes to read and encode a small picture."""

_REQUESTS = 4
_TRIAL_CYCLES = 100_000_000
_LATE_COPY_BOUND_S = 60.0


class LateRenderer(MeteredRenderer):
    """The real renderer on a device that is late. With `synchronised=False` nobody waits for it."""

    def __init__(self, settings: ModelSettings, device: str, *, synchronised: bool) -> None:
        super().__init__(settings, device)
        self._synchronised = synchronised
        self._cycles = 0

    def render(self, job: RenderJob) -> DevicePicture:
        """See `Renderer`."""
        picture = super().render(job)
        if picture.copied is None:
            picture = _copied_late(picture)
        return picture if self._synchronised else replace(picture, copied=None)

    def _denoise(self, job: RenderJob) -> torch.Tensor:
        image = super()._denoise(job)
        if self._stream is not None:
            self._cycles = self._cycles or _cycles_of(DELAY_S)
            torch.cuda._sleep(self._cycles)  # type: ignore[no-untyped-call]
        return image


class _LateCopy:
    """Stands where CUDA has the event of a copy: it happens when the pixels have arrived."""

    def __init__(self, source: torch.Tensor, target: torch.Tensor) -> None:
        self._done = threading.Event()
        timer = threading.Timer(DELAY_S, self._copy, (source, target))
        timer.daemon = True
        timer.start()

    def synchronize(self) -> None:
        """Wait for the pixels."""
        if not self._done.wait(_LATE_COPY_BOUND_S):
            raise TimeoutError("The late copy never came.")

    def _copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        target.copy_(source)
        self._done.set()


def check_synchronisation(
    results: Results, subject: Subject, settings: ModelSettings, device: torch.device, folder: Path, size: int
) -> None:
    """Render a few requests on a late device, with the real engine and with one that does not wait; add what was found.

    Raises JobLost if a job of the real engine gets no picture, and what loading raises.
    """
    requests = plain_requests(subject, size, _REQUESTS)
    with open_rig(settings, MeteredRenderer(settings, str(device)), folder) as rig:
        alone = [rig.render_alone(request).artifact.sha256 for request in requests]
    wrong = {
        synchronised: _count_wrong(settings, device, folder, requests, alone, synchronised=synchronised)
        for synchronised in (False, True)
    }
    found = Synchronisation(
        model=subject.label,
        means="delayed stream" if device.type == "cuda" else "late copy",
        delay_s=DELAY_S,
        requests=_REQUESTS,
        wrong_unsynchronised=wrong[False],
        wrong_real=wrong[True],
    )
    results.synchronisation.append(found)
    _judge(results, found)


def _count_wrong(
    settings: ModelSettings,
    device: torch.device,
    folder: Path,
    requests: list[RenderRequest],
    alone: list[str],
    *,
    synchronised: bool,
) -> int:
    with open_rig(settings, LateRenderer(settings, str(device), synchronised=synchronised), folder) as rig:
        # The first only warms up: pinning fresh host memory may itself wait for the device. The others come one after
        # the other, and find in recycled host memory, if anything, the picture before, which is another one.
        rig.finish_all([again(requests[-1])])
        return sum(not _is_right(rig, request, expected) for request, expected in zip(requests, alone, strict=True))


def _is_right(rig: Rig, request: RenderRequest, expected_sha256: str) -> bool:
    ending = rig.finish_all([again(request)])[0]
    # Unsynchronised, the flag that tells whether all numbers are finite is read too early as well: the job may fail.
    return isinstance(ending, RenderFinished) and ending.artifact.sha256 == expected_sha256


def _judge(results: Results, found: Synchronisation) -> None:
    outcome: Outcome = "passed" if found.wrong_unsynchronised and not found.wrong_real else "failed"
    results.judge(
        "synchronisation",
        found.model,
        outcome,
        f"{found.means} of {found.delay_s:g} s: read before the device was done, {found.wrong_unsynchronised} of "
        f"{found.requests} pictures were wrong; with the real engine {found.wrong_real}.",
    )


def _copied_late(picture: DevicePicture) -> DevicePicture:
    late = torch.zeros_like(picture.pixels)
    return replace(picture, pixels=late, copied=cast(Any, _LateCopy(picture.pixels, late)))


def _cycles_of(seconds: float) -> int:
    """Return how many cycles of the spinning kernel last `seconds` on the current stream's device."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    torch.cuda._sleep(_TRIAL_CYCLES)  # type: ignore[no-untyped-call]
    end.record()
    end.synchronize()
    return int(_TRIAL_CYCLES * seconds * 1000 / begin.elapsed_time(end))
