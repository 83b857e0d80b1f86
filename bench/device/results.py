"""What the checks found, as records; `docs/gpu-check.md` explains every key."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.device.intervals import Interval

FORMAT = 2
"""Rises when a key changes its meaning."""

Outcome = Literal["passed", "failed", "unclear", "skipped"]
"""`unclear`: the noise of this run is larger than what was looked for."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one check says about one model, in a sentence."""

    check: str
    subject: str
    outcome: Outcome
    sentence: str


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured. `threads` are torch's on the CPU."""

    device: str
    device_memory_bytes: int | None
    driver: str | None
    cuda: str | None
    cudnn: int | None
    torch: str
    diffusers: str
    transformers: str
    python: str
    system: str
    cpu: str
    cpu_count: int
    threads: int
    load_before: float | None


@dataclass(frozen=True, slots=True)
class Distance:
    """How far two pictures are apart, in levels of 0...255: on average, and at the worst sub-pixel."""

    mean_levels: float
    max_levels: int


@dataclass(frozen=True, slots=True)
class Exactness:
    """`different` of `requests` pictures of class `exact` were not, byte for byte, the ones rendered alone."""

    model: str
    size: int
    steps: int
    requests: int
    different: int
    seeded_requests: int
    seeded_rendered_as: tuple[str, ...]
    seeded_distance: Distance


@dataclass(frozen=True, slots=True)
class Synchronisation:
    """Pictures that came out wrong, with reading before the device is done and with the real engine."""

    model: str
    means: Literal["delayed stream", "late copy"]
    delay_s: float
    requests: int
    wrong_unsynchronised: int
    wrong_real: int


@dataclass(frozen=True, slots=True)
class Throughput:
    """The engine beside the bare loop on the same pipeline. Rates are images/s, `gap_ms` the median gap."""

    model: str
    size: int
    steps: int
    dtype: str
    memory_format: str
    images: int
    engine: Interval
    bare_png: Interval
    bare_pixels: Interval
    engine_over_bare_png: Interval
    engine_over_bare_pixels: Interval
    engine_cpu_over_bare_png: Interval
    idle_share: Interval
    gap_ms: float
    png_bytes: int
    same_pictures: bool


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One batch size in the bare loop; `gain` is its images/s over those of a batch of one, in the same round."""

    batch: int
    images_per_s: Interval
    gain: Interval
    distance_to_alone: Distance
    peak_memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class Batching:
    """Batches of more than `pays_up_to` bring less than 5 % more images/s."""

    model: str
    size: int
    steps: int
    dtype: str
    memory_format: str
    rows: tuple[BatchRow, ...]
    pays_up_to: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The engine with each memory format of convolutions, images/s; `gain` is channels_last over contiguous.

    `distance` is the worst between their pictures; `repeatable`: each gave the same bytes twice.
    """

    model: str
    size: int
    steps: int
    dtype: str
    contiguous: Interval
    channels_last: Interval
    gain: Interval
    distance: Distance
    repeatable: bool


@dataclass
class Results:
    """All that one run found; `complete` once it has come to its end."""

    created: str
    options: dict[str, Any]
    machine: Machine
    verdicts: list[Verdict] = field(default_factory=list)
    exactness: list[Exactness] = field(default_factory=list)
    synchronisation: list[Synchronisation] = field(default_factory=list)
    throughput: list[Throughput] = field(default_factory=list)
    batching: list[Batching] = field(default_factory=list)
    layout: list[Layout] = field(default_factory=list)
    wall_s: float = 0.0
    complete: bool = False
    format: int = FORMAT

    def judge(self, check: str, subject: str, outcome: Outcome, sentence: str) -> None:
        """Add a verdict."""
        self.verdicts.append(Verdict(check, subject, outcome, sentence))

    @property
    def failed(self) -> bool:
        """Whether any check failed."""
        return any(verdict.outcome == "failed" for verdict in self.verdicts)


def name_of(kind: object) -> str:
    """Return the name of one of torch's dtypes or memory formats, without `torch.`."""
    return str(kind).removeprefix("torch.").removesuffix("_format")


def write_results(results: Results, path: Path) -> None:
    """Write the results as JSON, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(_rounded(asdict(results)), indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _rounded(value: Any) -> Any:
    """Return `value` with its floats cut to six significant digits: more are noise."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value
