"""The results as they are written to results.json. README.md documents the keys for those who read the file."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

ProxyModeName = Literal["default", "haproxy"]
Reach = Literal["every address", "node address", "loopback"]


class Record(BaseModel):
    """A part of the results."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(Record):
    """A median with an interval that holds the true one with probability `coverage`, and what it was taken from."""

    median: float
    low: float
    high: float
    coverage: float
    values: tuple[float, ...]


class Calls(Record):
    """HTTP calls made by a fixed number of callers: rate, and latency percentiles as a caller sees them."""

    count: int
    per_s: float
    p50_ms: float
    p99_ms: float


class ProcessMemory(Record):
    """Memory of the processes of one role. `pss_mb` shares what processes share; `rss_mb` counts it for each."""

    role: str
    processes: int
    rss_mb: float
    pss_mb: float


class Listener(Record):
    """Ports on which processes of a role accept connections, and from where they can be reached."""

    role: str
    reach: Reach
    ports: tuple[int, ...]


class Run(Record):
    """One system, once: its jobs (or, for the constant app, its requests)."""

    system: str
    jobs_per_s: float
    submits: Calls
    polls: Calls | None = None
    open_polls: Calls | None = None
    cpu_ms_per_job: dict[str, float]
    cpu_ms_per_poll: dict[str, float] = {}
    cpu_ms_per_open_poll: dict[str, float] = {}


class SystemFigures(Record):
    """All runs of one system: medians over the rounds."""

    system: str
    jobs_per_s: Estimate
    submits_per_s: Estimate
    submit_p50_ms: Estimate
    submit_p99_ms: Estimate
    polls_per_s: Estimate | None = None
    poll_p50_ms: Estimate | None = None
    poll_p99_ms: Estimate | None = None
    open_polls_per_s: Estimate | None = None
    cpu_ms_per_job: dict[str, float]
    cpu_ms_per_poll: dict[str, float]
    cpu_ms_per_open_poll: dict[str, float]


class Ratio(Record):
    """How one system compares with another, round by round."""

    name: str
    estimate: Estimate


class ModeFigures(Record):
    """Everything measured behind one kind of proxy."""

    mode: ProxyModeName
    systems: tuple[SystemFigures, ...]
    ratios: tuple[Ratio, ...]
    memory: tuple[ProcessMemory, ...]
    listeners: tuple[Listener, ...]
    haproxy_files: tuple[str, ...]
    left_running: tuple[str, ...]
    runs: tuple[Run, ...]


class JobPath(Record):
    """The way of a job, beside a constant and a naive app. `headroom`: bare server's rate / fastest rate measured."""

    jobs: int
    submitters: int
    pairs: int
    bare_server: Calls
    headroom: float
    modes: tuple[ModeFigures, ...]


class Protection(Record):
    """What keys, limits and signatures cost. `callback_signature_ms`: a signature that every callback has anyway."""

    jobs: int
    submitters: int
    pairs: int
    systems: tuple[SystemFigures, ...]
    ratios: tuple[Ratio, ...]
    callback_signature_ms: Estimate
    runs: tuple[Run, ...]


class HistoryFigures(Record):
    """A service with so many finished jobs in its store. Ratios compare with the service that has none."""

    finished_jobs: int
    store_mb: float
    submit_p50_ms: float
    submit_p99_ms: float
    submit_ratio: Estimate
    tracker_rss_mb: float
    tracker_pss_mb: float
    restart_s: Estimate


class History(Record):
    """What finished jobs cost those that come after them."""

    submits: int
    sizes: tuple[HistoryFigures, ...]


class ScaleFigures(Record):
    """Simulated devices, all there from the beginning or added by the autoscaler.

    `share_of_ideal`: jobs rendered / jobs that the devices could have rendered from the first submit to the last end.
    `idle_share`: of the devices' time under backlog, in which they rendered nothing.
    """

    devices: int
    autoscaled: bool
    devices_at_the_end: int
    jobs: int
    render_s: float
    jobs_per_s: float
    share_of_ideal: float
    idle_share: float
    tracker_cpu_ms_per_job: float
    tracker_cores: float
    cpu_ms_per_job: dict[str, float]


class Scale(Record):
    """Throughput with more devices."""

    runs: tuple[ScaleFigures, ...]


class StartFigures(Record):
    """Seconds from starting the first process to each event, in the order in which they come."""

    engine: str
    mode: ProxyModeName
    http_answers_s: Estimate
    jobs_accepted_s: Estimate
    model_loaded_s: Estimate
    rendering_began_s: Estimate
    first_picture_s: Estimate


class Start(Record):
    """From nothing to the first picture."""

    pictures: tuple[StartFigures, ...]


class Conditions(Record):
    """Where and when a section was measured."""

    plan: str
    measured_at: str
    commit: str
    cores: int
    memory_gb: float
    load_before: float
    python_ms: float | None = None
    filesystem: str
    python: str
    ray: str


class Results(Record):
    """The file: each section with the conditions it was measured under."""

    conditions: dict[str, Conditions] = {}
    job_path: JobPath | None = None
    protection: Protection | None = None
    history: History | None = None
    scale: Scale | None = None
    start: Start | None = None
