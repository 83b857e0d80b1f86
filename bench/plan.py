"""How much is measured: three sizes of the same benchmarks."""

from dataclasses import dataclass

from bench.records import ProxyModeName


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of all benchmarks. `name` is noted with the results.

    `pairs`: rounds in which every system is measured once (six are the fewest whose extremes bound the median with
    95 %). `protection_jobs`, `protection_pairs`: the same for a guarded service beside an open one. `history`: numbers
    of finished jobs. `devices`: numbers of simulated devices; `scaled_devices`: how many the autoscaler may add.
    `starts`: how often a start is timed, with the noop engine behind each of the proxies in `starts_behind`.
    """

    name: str
    jobs: int = 1000
    submitters: int = 32
    pairs: int = 6
    bare_requests: int = 3000
    protection_jobs: int = 500
    protection_pairs: int = 12
    history: tuple[int, ...] = (0, 100_000, 1_000_000)
    history_submits: int = 200
    tracker_restarts: int = 5
    devices: tuple[int, ...] = (1, 4, 16, 64)
    scaled_devices: int = 16
    jobs_per_device: int = 20
    render_s: float = 2.0
    starts: int = 3
    starts_behind: tuple[ProxyModeName, ...] = ("default", "haproxy")


FULL = Plan("full")
QUICK = Plan(
    "quick",
    jobs=100,
    pairs=3,
    bare_requests=500,
    protection_jobs=50,
    protection_pairs=2,
    history=(0, 20_000),
    history_submits=30,
    tracker_restarts=1,
    devices=(4,),
    scaled_devices=4,
    jobs_per_device=5,
    render_s=1.0,
    starts=1,
    starts_behind=("default",),
)
TINY = Plan(
    "tiny",
    jobs=10,
    submitters=4,
    pairs=1,
    bare_requests=50,
    protection_jobs=10,
    protection_pairs=1,
    history=(0, 500),
    history_submits=5,
    tracker_restarts=1,
    devices=(2,),
    scaled_devices=2,
    jobs_per_device=3,
    render_s=0.2,
    starts=1,
)
"""For the tests of the benchmarks: every path is taken, no figure means anything."""
