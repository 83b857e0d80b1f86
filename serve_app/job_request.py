"""A text-to-image job as the service records it; the tracker keeps it as opaque JSON."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class JobRequest(BaseModel):
    """A validated request with every default filled in. `asked_seed` is what the client sent, `seed` what is used."""

    model_config = ConfigDict(frozen=True)

    prompt: str
    negative_prompt: str | None = None
    adapter: str | None = None
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    asked_seed: int | None = None
    warnings: list[str] = []


class JobResult(BaseModel):
    """What a replica tells of a finished picture. `seconds` holds the wall time of each stage."""

    model_config = ConfigDict(frozen=True)

    seed: int
    determinism: Literal["exact", "seeded"]
    seconds: dict[str, float]
    warnings: list[str]
