"""The engine kind `diffusers`: drives one pipeline on one device, on a stream of its own."""

import contextlib
import hashlib
import inspect
import time
from collections.abc import Iterator
from typing import Any

import torch

from deployments.adapters import AdapterCatalogue
from deployments.device_picture import DevicePicture, start_copy
from deployments.errors import (
    DeviceOutOfMemory,
    EngineUnhealthy,
    ModelUnusable,
    RenderBroken,
    RenderCancelled,
    RenderingError,
    RenderTimeout,
)
from deployments.job import RenderJob
from deployments.models import ModelSettings, component_configs, family_of, read_config
from deployments.pipelines.base import Pipeline
from deployments.pipelines.prompts import truncation_warning
from deployments.render import RenderRequest
from deployments.residency import AdapterResidency
from deployments.torch_device import (
    DtypeRecord,
    device_label,
    free_memory,
    is_device_lost,
    is_out_of_memory,
    lay_out,
    make_exact,
    pin_threads,
    select_device,
    select_dtype,
    select_memory_format,
)
from observability.logs import get_logger

_log = get_logger("engine")

_TENSOR_INPUTS = "callback_on_step_end_tensor_inputs"
_PROOF_PIXELS = 64
_PROOF_STEPS = 2


class DiffusersRenderer:
    """See `Renderer`. Every job gets the same treatment, whatever ran before it: a scheduler without history, its own
    generator on the CPU, a batch of one, and no adapter but its own."""

    def __init__(self, settings: ModelSettings, device: str = "auto") -> None:
        self._settings = settings
        self._wanted_device = device

    @property
    def device(self) -> str:
        """See `Renderer`."""
        return self._label

    def load(self) -> None:
        """See `Renderer`. Also renders a small picture: it warms the device up, and is what `recover` compares with."""
        began = time.monotonic()
        _silence_libraries()
        make_exact(self._settings.threads)
        self._device = select_device(self._wanted_device)
        self._label = device_label(self._device)
        self._stream = _new_stream(self._device)
        self._family = family_of(self._settings, read_config(self._settings, "model_index.json").get("_class_name"))
        self._pipeline = self._load_pipeline()
        self._family.check(self._pipeline)
        self._accepted = inspect.signature(self._pipeline.__call__).parameters.keys()
        self._factor = self._family.size_factor(self._pipeline)
        self._limit = self._family.token_limit(self._pipeline)
        self._dtypes = DtypeRecord(self._pipeline.components.values())
        # Asked again after loading: a hub id has its files here only now.
        self._adapters = AdapterResidency(self._pipeline, AdapterCatalogue.of(self._settings))
        self._watch: _StepWatch | None = None
        self._hook_denoiser()
        self._proof = self._prove()
        _log.info("loaded %s in %.1f s", type(self._pipeline).__name__, time.monotonic() - began)

    def render(self, job: RenderJob) -> DevicePicture:
        """See `Renderer`."""
        crowded = self._adapters.holds_more_than(job.request.adapter)
        try:
            try:
                return self._picture(job)
            except Exception as error:
                if not (crowded and is_out_of_memory(error)):
                    raise
                self._make_room(error)
            job.start_over()
            return self._picture(job)
        except Exception as error:
            if is_out_of_memory(error):
                request = job.request
                model = "this model" if request.adapter is None else "this model and this adapter"
                raise DeviceOutOfMemory(
                    f"The device has too little memory for {request.width}x{request.height} pixels with {model}; "
                    "ask for a smaller picture."
                ) from error
            raise

    def recover(self, error: Exception) -> None:
        """See `Renderer`: the small picture of `load` must come out again with the same bits."""
        if isinstance(error, RenderCancelled | RenderTimeout):
            return
        lost = is_device_lost(error)
        free_memory(error)
        if lost:
            raise EngineUnhealthy("The device was lost.")
        if isinstance(error, EngineUnhealthy):
            raise error
        if isinstance(error, RenderingError) and not isinstance(error, DeviceOutOfMemory):
            return
        try:
            self._restore(keep_adapters=not isinstance(error, DeviceOutOfMemory))
        except EngineUnhealthy:
            raise
        except Exception as failure:
            raise EngineUnhealthy("The device did not recover from an error.") from failure

    def _make_room(self, error: Exception) -> None:
        """Take the adapters from the device: whether a picture fits must not depend on what others asked for."""
        _log.warning("the device's memory ran out: rendering once more, without the adapters of other jobs")
        free_memory(error)
        self._restore(keep_adapters=False)

    def _restore(self, *, keep_adapters: bool) -> None:
        """Put the model back as it was loaded, and prove it. Raises EngineUnhealthy, or what rendering raises."""
        # On the stream that left it as it is, and that renders next.
        with self._on_stream():
            if not keep_adapters:
                self._adapters.clear()
            self._dtypes.restore()
        if self._prove() != self._proof:
            raise EngineUnhealthy("The device renders other pictures since an error.")

    def _load_pipeline(self) -> Pipeline:
        settings = self._settings
        dtype = select_dtype(settings.dtype, self._device, self._family.gpu_dtype)
        try:
            pipeline = self._family.load(settings.source, settings.revision, dtype)
        except (OSError, ValueError) as error:
            raise ModelUnusable(f"The model {settings.source!r} cannot be loaded: {error}") from error
        if self._device.type == "cpu":
            _unify_dtype(pipeline, dtype)
        pipeline.to(self._device)
        self._memory_format = select_memory_format(settings.memory_format, self._device)
        lay_out(pipeline.components.values(), self._memory_format)
        if self._device.type == "cuda":
            # The weights came on the default stream; ours does not wait for that one.
            torch.cuda.synchronize(self._device)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _picture(self, job: RenderJob) -> DevicePicture:
        request = job.request
        with self._on_stream():
            if request.adapter is not None:
                job.enter("loading")
            with self._adapters.active(request.adapter):
                image = self._denoise(job)
            return start_copy(image, request.width, request.height, self._settings.png_compress_level)

    def _denoise(self, job: RenderJob) -> torch.Tensor:
        """Return the picture as float in 0...1 on the device, shape (3, height, width) in multiples of the factor."""
        request = job.request
        pin_threads(self._settings.threads)
        job.enter("encoding")
        call = self._family.call(self._pipeline, request)
        job.warnings.extend(call.warnings)
        job.warnings.extend(self._truncations(request))
        with self._watched(_StepWatch(job, self._stream)) as watch:
            result = self._call(request, call.arguments, watch)
        if any(getattr(result, "nsfw_content_detected", None) or ()):
            job.warnings.append("The model's safety checker blackened the picture.")
        images = result.images
        if not isinstance(images, torch.Tensor):
            raise RenderBroken("The pipeline returned no pixels.")
        return images[0]

    def _call(self, request: RenderRequest, arguments: dict[str, Any], watch: "_StepWatch") -> Any:
        # Multi-step schedulers keep the last predictions, also those of a job that was stopped half way.
        if (scheduler := getattr(self._pipeline, "scheduler", None)) is not None:
            self._pipeline.scheduler = type(scheduler).from_config(scheduler.config)
        # For whatever draws numbers without being given the generator.
        torch.manual_seed(request.seed)
        return self._pipeline(
            **arguments,
            width=-(-request.width // self._factor) * self._factor,
            height=-(-request.height // self._factor) * self._factor,
            num_inference_steps=request.num_inference_steps,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type="pt",
            callback_on_step_end=watch.step_ended,
            **({"callback_on_step_end_tensor_inputs": []} if _TENSOR_INPUTS in self._accepted else {}),
        )

    def _truncations(self, request: RenderRequest) -> list[str]:
        texts = (("prompt", request.prompt), ("negative_prompt", request.negative_prompt or ""))
        warnings = (truncation_warning(field, text, self._limit) for field, text in texts)
        return [warning for warning in warnings if warning is not None]

    def _prove(self) -> str:
        """Render a small picture; return the SHA-256 of its pixels. Raises whatever rendering raises."""
        size = -(-_PROOF_PIXELS // self._factor) * self._factor
        _, guidance = self._family.defaults(component_configs(self._settings))
        request = RenderRequest("proof", "proof.png", "a proof", size, size, _PROOF_STEPS, guidance, 0, float("inf"))
        job = RenderJob(request, lambda _: None)
        with self._on_stream():
            picture = start_copy(self._denoise(job), size, size, 0)
        picture.wait()
        return hashlib.sha256(picture.png()).hexdigest()

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        with torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def _watched(self, watch: "_StepWatch") -> Iterator["_StepWatch"]:
        self._watch = watch
        try:
            yield watch
        finally:
            self._watch = None

    def _hook_denoiser(self) -> None:
        """Let the first call of the denoiser say that encoding is over: no callback of diffusers does."""
        denoiser = getattr(self._pipeline, "unet", None) or getattr(self._pipeline, "transformer", None)
        if denoiser is not None:
            denoiser.register_forward_pre_hook(lambda *_: self._watch.denoiser_called() if self._watch else None)


def _silence_libraries() -> None:
    """Keep standard error a stream of our log lines: without progress bars, and without the prompts that the libraries
    print when they cut them."""
    from diffusers.utils import logging as diffusers_logging  # noqa: PLC0415  (slow to import)
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()


def _unify_dtype(pipeline: Pipeline, dtype: torch.dtype) -> None:
    """Cast what the loader left in another dtype. On a GPU that is on purpose (parts that overflow in half precision);
    on the CPU all is float32, or kernels refuse the mixture."""
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module) and any(
            tensor.is_floating_point() and tensor.dtype != dtype for tensor in component.parameters()
        ):
            component.to(dtype)


def _new_stream(device: torch.device) -> "torch.cuda.Stream | None":
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


class _StepWatch:
    """Follows one job through its steps, and raises out of the pipeline where the job must stop."""

    def __init__(self, job: RenderJob, stream: "torch.cuda.Stream | None") -> None:
        self._job = job
        self._stream = stream
        self._last_step: torch.cuda.Event | None = None
        self._denoising = False

    def denoiser_called(self) -> None:
        """Stop the job if it must, also within the first step."""
        self._job.checkpoint()
        if not self._denoising:
            self._denoising = True
            self._job.enter("denoising")

    def step_ended(self, pipeline: Pipeline, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Count the step of diffusers' `index` and return the tensors unchanged."""
        self._keep_pace()
        self._job.checkpoint()
        # Schedulers of higher order call the denoiser more often than there are steps.
        calls = int(getattr(pipeline, "num_timesteps", 0)) or len(pipeline.scheduler.timesteps)
        self._job.step_done((index + 1) * self._job.request.num_inference_steps // calls)
        if index + 1 == calls:
            self._job.enter("decoding")
        return tensors

    def _keep_pace(self) -> None:
        """Wait until the device has done the step before this one.

        Python only queues work on a GPU. One step ahead keeps it busy; more would make progress and cancellation lie.
        """
        if self._stream is None:
            return
        if self._last_step is not None:
            self._last_step.synchronize()
        self._last_step = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._last_step.record(self._stream)
