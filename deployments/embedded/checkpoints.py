"""State of a training stage on disk: written whole or not at all, and the randomness of a step."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where one stage keeps its state."""

    path: Path

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the file in one step, so that a killed training leaves the old state or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".writing")
        torch.save(state, temporary)
        temporary.replace(self.path)

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None if the stage has not begun."""
        if not self.path.exists():
            return None
        state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        return state


def randomness(seed: int) -> tuple[Random, torch.Generator]:
    """Two sources that the seed fixes: for choices of words, and for tensors."""
    return Random(seed), torch.Generator().manual_seed(seed)  # noqa: S311 - pictures, not secrets


def step_seed(seed: int, stage: str, step: int) -> int:
    """Seed of one step. A step's randomness depends on nothing before it, so a resumed training repeats exactly."""
    digest = hashlib.sha256(f"{seed}/{stage}/{step}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
