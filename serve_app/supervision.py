"""Background loops that outlive their mistakes."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from observability.logs import get_logger

PAUSE_AFTER_FAILURE_S = 1.0

_log = get_logger("supervision")


def keep_running(name: str, round_of_work: Callable[[], Awaitable[bool]]) -> asyncio.Task[None]:
    """Start a task that does one round after the other until a round answers False or the task is cancelled.

    A round that raises is logged, and the next one follows: a job must never be accepted and then forgotten because a
    loop died.
    """

    async def run() -> None:
        while True:
            try:
                if not await round_of_work():
                    return
            except Exception:  # noqa: BLE001 - see above
                _log.exception("background work failed; it goes on", extra={"loop": name})
                await asyncio.sleep(PAUSE_AFTER_FAILURE_S)

    return asyncio.get_running_loop().create_task(run(), name=name)


async def wait_for_event(event: asyncio.Event, timeout_s: float) -> None:
    """Return when the event is set, or after `timeout_s` seconds."""
    # Not `wait_for`: on Python 3.11 it can swallow the cancellation of the task.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
