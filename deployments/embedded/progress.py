"""Shows how a training stage is getting on: one line now and then, with smoothed figures and the time left."""

import sys
import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """Prints to standard error; `every_s` seconds between lines."""

    stage: str
    every_s: float = 15.0
    _smooth: dict[str, float] = field(default_factory=dict)
    _began: tuple[float, int] | None = None
    _printed_at: float = 0.0

    def report(self, step: int, steps: int, **figures: float) -> None:
        """Takes the figures of a step; prints if the last line is old enough or the stage is done."""
        now = time.monotonic()
        for name, value in figures.items():
            self._smooth[name] = 0.98 * self._smooth.get(name, value) + 0.02 * value
        if self._began is None:
            self._began = (now, step)
        if now - self._printed_at < self.every_s and step < steps:
            return
        self._printed_at = now
        per_step = (now - self._began[0]) / max(1, step - self._began[1])
        shown = " ".join(f"{name} {value:.4g}" for name, value in self._smooth.items())
        left = (steps - step) * per_step / 60.0
        clock = time.strftime("%H:%M:%S", time.gmtime())
        line = f"{clock} {self.stage} {step}/{steps} {shown}, {per_step:.2f} s a step, {left:.0f} min left"
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - the script's output
