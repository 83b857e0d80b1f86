"""Completed jobs with callbacks, for the tests of their deliveries."""

import asyncio
from typing import Any

import pytest

from callback.records import Claim, Picture
from stress.callback_server import CallbackServer
from tests.unit.callback.tracker_kit import BOUND_S, PNG, Desk

PICTURE = PNG + bytes(range(256)) * 8192
"""2 MB with every byte value, and what looks like the end of a part."""


async def completed(desk: Desk, url: str, *, job_id: str = "job-1", content: bytes = PICTURE, **fields: Any) -> Claim:
    """Submit a job with a callback, claim it and complete it; return the claim."""
    await desk.submit(job_id, callback_url=url, **fields)
    claim = await desk.claim_one()
    assert await desk.complete(claim, content) is True
    return claim


async def look_for_repeats(desk: Desk) -> None:
    """Let the courier search the outbox once more."""
    courier = desk.tracker._courier
    courier.wake()
    async with asyncio.timeout(BOUND_S):
        while courier._wake.is_set():  # noqa: ASYNC110 - the search tells nobody that it began
            await asyncio.sleep(0)
    await desk.tracker._run(lambda _: None)


def read_slowly(desk: Desk, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let every reading of a picture take so long."""
    read = desk.pictures.read

    def slow(picture: Picture) -> bytes:
        desk.clock.advance(seconds)
        return read(picture)

    monkeypatch.setattr(desk.pictures, "read", slow)


async def until_entries(receiver: CallbackServer, count: int) -> None:
    async with asyncio.timeout(BOUND_S):
        while len(receiver.entries()) < count:  # noqa: ASYNC110 - the receiver can only be asked for one job
            await asyncio.sleep(0.005)
