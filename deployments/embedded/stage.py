"""Runs a training stage: step after step, with its state saved now and then so that a killed training goes on."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deployments.embedded.checkpoints import Checkpoint
from deployments.embedded.progress import Progress


def run_steps(
    take_step: Callable[[int], dict[str, float]],
    state: Callable[[], dict[str, Any]],
    *,
    begin: int,
    steps: int,
    until: int | None,
    checkpoint: Checkpoint,
    progress: Progress,
    save_every_s: float,
) -> None:
    """Takes the steps from `begin` to `until` (or to `steps`, the length of the plan) and reports their figures.

    `state` is saved with the number of steps taken every `save_every_s` seconds and after the last step.
    """
    last = steps if until is None else min(until, steps)
    saved_at = time.monotonic()
    for step in range(begin, last):
        progress.report(step + 1, steps, **take_step(step))
        if time.monotonic() - saved_at > save_every_s or step + 1 == last:
            checkpoint.save({**state(), "step": step + 1})
            saved_at = time.monotonic()


def device() -> torch.device:
    """Where to train: the first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(where: torch.device, *, bfloat16: bool) -> torch.autocast:
    """A context whose products are of bfloat16 if asked for; sums, weights and the loss stay float32."""
    return torch.autocast(where.type, dtype=torch.bfloat16, enabled=bfloat16)


def finite(loss: Tensor, step: int) -> float:
    """The loss as a number. Raises FloatingPointError, before anything is changed, if it is none."""
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss of step {step} is not finite; the last checkpoint is sound")
    return value
