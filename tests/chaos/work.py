"""What is asked for all the time: pictures that take a while, or pictures of milliseconds that travel together."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from deployments.models import ModelSettings, SimulatedOptions

SHAPES = ("circle", "square", "star", "heart", "triangle", "ring")
COLOURS = ("red", "blue", "green", "yellow")


@dataclass(frozen=True, slots=True)
class Work:
    """Square pictures of `side` pixels, `rate` a second, a share of `calling_back` of them with a callback.

    `models`: instead of the shipped ones. `together`: several jobs must have travelled in one call, or the run has
    shown nothing.
    """

    side: int
    rate: float
    calling_back: float = 1.0
    models: tuple[ModelSettings, ...] = ()
    together: bool = False

    def prompts(self) -> Iterator[str]:
        """Yield what is drawn."""
        return (f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES)

    def asked(self, prompt: str) -> dict[str, Any]:
        """Return the request for a picture: the same one has the same bits."""
        size = {"width": self.side, "height": self.side, "num_inference_steps": 4}
        return {"prompt": prompt, "seed": len(prompt), **size}


REAL = Work(side=256, rate=2.5)
"""The shipped service as it is."""

QUICK = Work(
    side=64,
    rate=15.0,
    calling_back=0.25,
    # The name of the shipped model, so that its place in the shipped configuration stays.
    models=(ModelSettings(name="embedded", engine="simulated", simulated=SimulatedOptions(step_seconds=0.0)),),
    together=True,
)
"""A simulated device that takes hardly any time: what a fault has held up is sent several jobs in a call."""
