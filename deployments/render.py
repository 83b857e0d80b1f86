"""What a caller asks of a model replica, and what the replica streams back.

The records cross process borders (Ray pickles them), so they are plain frozen dataclasses without behaviour.
"""

from dataclasses import dataclass, field
from typing import Literal

Determinism = Literal["exact", "seeded"]
"""`exact`: batch of one, pinned threads, deterministic kernels: same request, same bytes. `seeded`: own generator,
may be batched, bytes may differ by rounding."""

Stage = Literal["loading", "encoding", "denoising", "decoding", "storing"]


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """One picture to render. `artifact_key` names where it is published and contains the attempt.

    `alone`: nothing else is on its way through the engine meanwhile, so that, should the process die, everybody knows
    with which job it did. It costs the overlap of device and store, and three quarters of a second.
    `start_may_be_left_out`: RenderStarted is held back for 50 ms, and not sent if the picture is there by then.
    """

    job_id: str
    artifact_key: str
    prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    timeout_s: float
    negative_prompt: str | None = None
    adapter: str | None = None
    determinism: Determinism = "exact"
    alone: bool = False
    start_may_be_left_out: bool = False


@dataclass(frozen=True, slots=True)
class ArtifactRef:
    """A published picture: its key in the artifact store, SHA-256 (hex) of the PNG bytes, size in bytes and pixels."""

    key: str
    sha256: str
    size_bytes: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class RenderStarted:
    """The device has begun with this job: the job timeout runs from here."""

    replica_id: str
    device: str


@dataclass(frozen=True, slots=True)
class RenderProgress:
    """`step` of `steps` denoising steps are done; `stage` is what happens now."""

    stage: Stage
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class RenderFinished:
    """The picture is published and verified. `seconds` holds the wall time of each stage.

    `since_start_s`: how long ago the device had begun, in seconds.
    """

    artifact: ArtifactRef
    seed: int
    determinism: Determinism
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    since_start_s: float | None = None


@dataclass(frozen=True, slots=True)
class RenderFailed:
    """The job cannot be rendered; `error` is a sentence for the client, `error_code` its stable name.

    Codes: `cancelled`, `timeout`, `out_of_memory`, `adapter_unusable`, `invalid_request`, `artifact_unwritable`,
    `render_error`. The replica is healthy after any of them; a replica that is not raises instead.
    """

    error_code: str
    error: str


RenderEvent = RenderStarted | RenderProgress | RenderFinished | RenderFailed
