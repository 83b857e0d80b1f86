"""The tracker as a Ray actor."""

import asyncio
import os

from callback.config import TrackerConfig
from callback.errors import TrackerError
from callback.records import PictureStore
from callback.tracker import JobTracker
from observability.logs import configure

STORE_RETRY_S = 1.0


class TrackerActor(JobTracker):
    """The tracker as a Ray actor: it starts by itself after every restart, and ends its process when deposed."""

    def __init__(self, config: TrackerConfig, pictures: PictureStore) -> None:
        configure(config.log_level)
        # A deposed tracker must not run on, whatever its process is in the middle of.
        super().__init__(config, pictures, on_deposed=lambda: os._exit(0))
        self._starting = asyncio.get_running_loop().create_task(self._start_until_it_works())

    async def _start_until_it_works(self) -> None:
        while True:
            try:
                await self.start()
            except TrackerError as error:
                self._trouble = str(error)
                await asyncio.sleep(STORE_RETRY_S)
            else:
                return

    async def retire(self) -> None:
        """Let attempts under way settle and stop, so that a successor takes over cleanly."""
        self._starting.cancel()
        await self.close()
