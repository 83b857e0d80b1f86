"""How much memory a service takes, from wherever that can be read."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from stress.bounded import ACCEPT_ENCODING, AnswerTooLong, read_bounded
from stress.client import AsyncDarkroomClient
from stress.errors import ServiceError

METRICS_TIMEOUT_S = 5.0
"""For the whole page."""
MAX_METRICS_BYTES = 16 * 1024 * 1024
HEALTH_FIELDS = ("memory_bytes", "rss_bytes")
"""Names under which services state their memory in `GET /health`."""
METRICS = ("ray_component_uss_bytes", "ray_component_rss_bytes", "process_resident_memory_bytes")
"""Gauges of Prometheus, the best first: Ray's own per component, then the usual one of a single process.

Ray's `uss` leaves out what processes share, which a sum over components would count many times.
"""


class MemorySource(Protocol):
    """Something that knows how much memory the service takes."""

    async def read_bytes(self) -> float | None:
        """Return the memory in bytes; None if it cannot be read now."""


class HealthMemory:
    """Reads the memory that the service states in its health, where it does."""

    def __init__(self, client: AsyncDarkroomClient) -> None:
        self._client = client

    async def read_bytes(self) -> float | None:
        """Return the stated memory in bytes; None if the service states none or is not healthy."""
        try:
            stated = (await self._client.health()).model_extra or {}
        except ServiceError:
            return None
        values = [stated[name] for name in HEALTH_FIELDS if isinstance(stated.get(name), (int, float))]
        try:
            return float(values[0]) if values else None
        except OverflowError:
            return None  # An integer of hundreds of digits.


class ProcessMemory:
    """Adds up processes on this machine and everything that they started, without what they share."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = tuple(pids)

    async def read_bytes(self) -> float | None:
        """Return the sum in bytes; None if none of the processes lives."""
        family: set[psutil.Process] = set()
        for pid in self._pids:
            try:
                parent = psutil.Process(pid)
                family |= {parent, *parent.children(recursive=True)}
            except psutil.Error:
                continue
        sizes = [size for size in map(_own_bytes, family) if size is not None]
        return float(sum(sizes)) if sizes else None


class MetricsMemory:
    """Adds up the memory gauges on a page of Prometheus metrics, such as that of Ray's agent on each node."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def read_bytes(self) -> float | None:
        """Return the sum in bytes; None if the page cannot be read or has none of the known gauges."""
        try:
            async with (
                asyncio.timeout(METRICS_TIMEOUT_S),
                httpx.AsyncClient(timeout=METRICS_TIMEOUT_S, headers=ACCEPT_ENCODING) as client,
                client.stream("GET", self._url) as response,
            ):
                page = await read_bounded(response.raise_for_status(), MAX_METRICS_BYTES)
            families = list(text_string_to_metric_families(page.decode(errors="replace")))
        except (httpx.HTTPError, TimeoutError, AnswerTooLong, ValueError):
            return None
        for name in METRICS:
            values = [sample.value for family in families for sample in family.samples if sample.name == name]
            if values:
                return float(sum(values))
        return None


def _own_bytes(process: psutil.Process) -> int | None:
    try:
        taken = process.memory_info()
    except psutil.Error:
        return None
    return int(taken.rss - getattr(taken, "shared", 0))
