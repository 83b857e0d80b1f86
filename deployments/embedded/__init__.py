"""The embedded model: a small text-to-image diffusion model of our own, and the scripts that make and measure it."""

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "model"
ADAPTER_FOLDER = Path(__file__).parent / "adapters"
