"""What the tracker is told when it is created. Seconds and bytes throughout."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import sqlalchemy as sa

from callback.errors import StoreUnusable
from callback.records import across_releases

TRACKER_NAME = "darkroom-tracker"
TRACKER_NAMESPACE = "darkroom"


# Ray starts a tracker that died again with what it was given, whatever code there is by then.
@across_releases
@dataclass(frozen=True, slots=True)
class TrackerConfig:
    """Limits and policies of the job memory; the service's settings fill it in."""

    store_url: str = field(repr=False)
    lease_s: float = 15.0
    max_open_jobs: int = 10_000
    max_open_jobs_per_client: int | None = None
    max_attempts: int = 3
    queue_timeout_s: float = 3600.0
    shed_expired: bool = False
    callback_timeout_s: float = 30.0
    callback_horizon_s: float = 24 * 3600.0
    callback_slots: int = 256
    callback_slots_per_receiver: int = 32
    callback_bytes: int = 512 * 1000**2
    callback_allow_loopback: bool = False
    callback_allowed_networks: tuple[str, ...] = ()
    retention_s: float = 7 * 24 * 3600.0
    retention_bytes: int = 10 * 1000**3
    retention_interval_s: float = 60.0
    tick_s: float = 0.25
    log_level: str = "INFO"
    pixel_steps_per_minute_per_client: int | None = None

    @property
    def store_is_local(self) -> bool:
        """Whether the jobs lie on one machine's disk, so that the tracker must not move to another node."""
        return is_local(self.store_url)

    def fingerprint(self, pictures: str) -> str:
        """Return a digest that differs when any value does, or when `pictures`, the name of their store, does."""
        values = asdict(self) | {"pictures": pictures}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def is_local(store_url: str | sa.URL) -> bool:
    """Tell whether a job store's data lies on the disk of the machine that opens it."""
    return sa.make_url(store_url).get_backend_name() == "sqlite"


def check_store_url(store_url: str) -> None:
    """Raise `StoreUnusable` for a URL of another database than SQLite and PostgreSQL, or of one in memory."""
    # The sentences do not repeat the URL: it may hold a password.
    try:
        url = sa.make_url(store_url)
    except (sa.exc.ArgumentError, ValueError):
        raise StoreUnusable(
            "The store_url cannot be read. Use sqlite:////path/to/jobs.db or postgresql://..."
        ) from None
    backend = url.get_backend_name()
    if backend not in {"sqlite", "postgresql"}:
        raise StoreUnusable(f"Jobs cannot be kept in {backend}. Use sqlite:////path/to/jobs.db or postgresql://...")
    in_memory = not url.database or ":memory:" in url.database or url.query.get("mode") == "memory"
    if backend == "sqlite" and in_memory:
        raise StoreUnusable(
            "A store in memory would lose every accepted job at a restart. Name a file: sqlite:////path/to/jobs.db"
        )


@lru_cache
def code_version() -> tuple[str, float]:
    """Return the order of this code among others: package version, then the newest modification of its sources."""
    newest = max(file.stat().st_mtime for file in Path(__file__).parent.rglob("*.py"))
    return version("darkroom"), newest


@lru_cache
def code_fingerprint() -> str:
    """Return a digest of this room's sources: equal on every node that has the same code."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]
