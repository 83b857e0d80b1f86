"""One engine on one model, and the gaps that it leaves on the device between jobs."""

import contextlib
import queue
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deployments.artifacts import ArtifactStore
from deployments.device_picture import DevicePicture
from deployments.diffusers_renderer import DiffusersRenderer
from deployments.engine import Engine
from deployments.errors import EngineUnhealthy, RenderTimeout
from deployments.job import RenderJob
from deployments.models import ModelSettings
from deployments.pipelines.base import Family, Pipeline
from deployments.render import RenderEvent, RenderFailed, RenderFinished, RenderRequest
from deployments.torch_device import free_memory, lay_out

JOB_TIMEOUT_S = 900.0
"""Bound of one job, and of every wait for the next job to end; reached only if something is broken."""

Ending = RenderFinished | RenderFailed | EngineUnhealthy
Mark = float | torch.cuda.Event
"""A moment on the device: of its stream, or where it has none, of the clock (seconds)."""


class JobLost(Exception):
    """A job did not end with a picture. `code` is the job's own error code."""

    def __init__(self, sentence: str, code: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True, slots=True)
class Gaps:
    """Seconds between the end of a job's device work and the beginning of the next one's, and of the work itself."""

    gaps_s: tuple[float, ...]
    busy_s: tuple[float, ...]

    @property
    def idle_share(self) -> float:
        """The part of the time, from the first beginning to the last end, in which no job was on the device."""
        idle, busy = sum(self.gaps_s), sum(self.busy_s)
        return idle / (idle + busy) if busy else 0.0


class MeteredRenderer(DiffusersRenderer):
    """The real renderer, which also notes when the device begins and ends with each job.

    A job begins with the first forward pass of any of its models (a text encoder's), and ends when its pixels have been
    copied: what Python does before and between is the gap.
    """

    _open = False

    @property
    def pipeline(self) -> Pipeline:
        """The loaded pipeline, to be used only while no job runs."""
        return self._pipeline

    def restore_dtypes(self) -> None:
        """Put back what a call of the pipeline that raised has left in another dtype."""
        self._dtypes.restore()

    @property
    def family(self) -> Family:
        """How the pipeline is called."""
        return self._family

    @property
    def size_factor(self) -> int:
        """Pixels of which the pipeline's sizes are multiples."""
        return self._factor

    @property
    def memory_format(self) -> torch.memory_format:
        """How the pipeline's convolutions lie in memory."""
        return self._memory_format

    @property
    def torch_device(self) -> torch.device:
        """Where the pipeline lies."""
        return self._device

    def load(self) -> None:
        """See `Renderer`."""
        super().load()
        self._begins: list[Mark] = []
        self._ends: list[Mark] = []
        for component in self._pipeline.components.values():
            if isinstance(component, torch.nn.Module):
                component.register_forward_pre_hook(self._model_called)

    def render(self, job: RenderJob) -> DevicePicture:
        """See `Renderer`."""
        self._open, marks = True, len(self._begins)
        try:
            return super().render(job)
        finally:
            self._open = False
            if len(self._begins) > marks:
                self._ends.append(self._mark())

    @contextlib.contextmanager
    def laid_out(self, memory_format: torch.memory_format) -> Iterator[None]:
        """Let convolutions lie in another format, inside; only while no job runs.

        What `recover` compares with is of that format too: sums in another order round to other bits.
        """
        proof = self._proof
        self._lay_out(memory_format)
        try:
            self._proof = self._prove()
            yield
        finally:
            self._lay_out(self._memory_format)
            self._proof = proof

    def _lay_out(self, memory_format: torch.memory_format) -> None:
        lay_out(self._pipeline.components.values(), memory_format)
        if self._stream is not None:
            # The weights move on the default stream; the engine's does not wait for that one.
            torch.cuda.synchronize(self._device)

    def take_gaps(self) -> Gaps:
        """Return the gaps since the last call; only while no job runs."""
        begins, ends = self._begins, self._ends
        self._begins, self._ends = [], []
        gaps = tuple(_seconds(end, begin) for end, begin in zip(ends, begins[1:], strict=False))
        return Gaps(gaps, tuple(_seconds(begin, end) for begin, end in zip(begins, ends, strict=True)))

    def _model_called(self, *_: Any) -> None:
        if self._open:
            self._open = False
            self._begins.append(self._mark())

    def _mark(self) -> Mark:
        if self._stream is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event


@dataclass(frozen=True, slots=True)
class Rig:
    """A started engine, what it drives and where it publishes."""

    engine: Engine
    renderer: MeteredRenderer
    store: ArtifactStore
    settings: ModelSettings

    def finish_all(self, requests: Sequence[RenderRequest]) -> list[Ending]:
        """Submit all requests at once; return how each ended, in their order. Raises JobLost if one never ends."""
        ended: queue.Queue[tuple[int, Ending]] = queue.Queue()
        for number, request in enumerate(requests):
            self.engine.submit(request, _sink(ended, number))
        endings: dict[int, Ending] = {}
        while len(endings) < len(requests):
            try:
                number, ending = ended.get(timeout=JOB_TIMEOUT_S)
            except queue.Empty:
                raise JobLost(f"No job ended within {JOB_TIMEOUT_S:g} seconds.", RenderTimeout.code) from None
            endings[number] = ending
        return [endings[number] for number in range(len(requests))]

    def render_all(self, requests: Sequence[RenderRequest]) -> list[RenderFinished]:
        """Submit all requests at once; return their pictures. Raises JobLost if one gets none."""
        return [as_finished(ending) for ending in self.finish_all(requests)]

    def render_alone(self, request: RenderRequest) -> RenderFinished:
        """Render one request while nothing else runs. Raises JobLost if it gets no picture."""
        return self.render_all([request])[0]


def as_finished(ending: Ending) -> RenderFinished:
    """Return the picture. Raises JobLost with the job's own sentence if there is none."""
    if isinstance(ending, RenderFinished):
        return ending
    if isinstance(ending, RenderFailed):
        raise JobLost(ending.error, ending.error_code)
    raise JobLost(str(ending), ending.code)


@contextlib.contextmanager
def open_rig(settings: ModelSettings, renderer: MeteredRenderer, folder: Path) -> Iterator[Rig]:
    """Start an engine, and give back what it held on the device afterwards. Raises what loading raises."""
    store = ArtifactStore(str(folder / "artifacts"))
    engine = Engine(
        renderer, store, queue_size=settings.queue_size, step_timeout_s=settings.step_timeout_s, replica_id="bench"
    )
    try:
        engine.start()
        yield Rig(engine, renderer, store, settings)
    finally:
        if engine.close():
            # The caller still knows the renderer, and two large models do not fit side by side.
            vars(renderer).clear()
        free_memory(None)


def _sink(ended: "queue.Queue[tuple[int, Ending]]", number: int) -> Any:
    def receive(event: RenderEvent | EngineUnhealthy) -> None:
        if isinstance(event, Ending):
            ended.put((number, event))

    return receive


def _seconds(begin: Mark, end: Mark) -> float:
    """Return the seconds from one mark to a later one; waits until the device has passed both."""
    if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000
    if isinstance(begin, torch.cuda.Event) or isinstance(end, torch.cuda.Event):
        raise TypeError("Marks of a stream and of the clock cannot be compared.")
    return end - begin
