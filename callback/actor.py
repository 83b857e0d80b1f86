"""The tracker as a Ray actor."""

import asyncio
import os
import socket
from dataclasses import replace
from pathlib import Path

import ray

from callback.config import TrackerConfig
from callback.errors import TrackerError
from callback.records import PictureStore, TrackerIdentity
from callback.tracker import JobTracker
from observability.logs import configure, get_logger

STORE_RETRY_S = 1.0
EXIT_AFTER_RETIREMENT_S = 15.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_log = get_logger("tracker")


class TrackerActor(JobTracker):
    """The tracker as a Ray actor: it starts by itself after every restart, and ends its process when deposed."""

    def __init__(self, config: TrackerConfig, pictures: PictureStore, configured_at: float = 0.0) -> None:
        configure(config.log_level)
        # A deposed tracker must not run on, whatever its process is in the middle of.
        super().__init__(config, pictures, holder=_darkroom(), on_deposed=lambda: os._exit(0))
        self._configured_at = configured_at
        self._starting = asyncio.get_running_loop().create_task(self._start_until_it_works())

    async def _start_until_it_works(self) -> None:
        while True:
            try:
                await self.start()
            except TrackerError as error:
                self._trouble = str(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the tracker must try again
                _log.exception("the tracker cannot start")
                self._trouble = f"The tracker failed at its start ({type(error).__name__}); see its log."
            else:
                return
            await asyncio.sleep(STORE_RETRY_S)

    async def identity(self) -> TrackerIdentity:
        """Return which code and configuration this tracker runs; answers without the store."""
        return replace(await super().identity(), configured_at=self._configured_at)

    async def retire(self) -> None:
        """Let attempts under way settle and stop, so that a successor takes over cleanly."""
        self._starting.cancel()
        await self.close()
        # Whoever asked for this may die before it has ended us: then Ray shall start us afresh, not leave us useless.
        asyncio.get_running_loop().call_later(EXIT_AFTER_RETIREMENT_S, os._exit, 0)


def _darkroom() -> str:
    """Name this Darkroom (`callback.ownership.Ownership`): its Ray cluster, and the tracker's name there."""
    if not ray.is_initialized():
        return f"{_clock_name()}/process {os.getpid()} of {_clock_name()}"
    context = ray.get_runtime_context()
    return f"{_clock_name()}/{context.get_session_name()} {context.get_actor_name() or ''}"


def _clock_name() -> str:
    """Name the clock that this process reads: that of the machine, as it was booted. Containers share it."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return socket.gethostname()
