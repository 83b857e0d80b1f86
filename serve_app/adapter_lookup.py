"""Looking adapters up for submissions: in bounded time, whatever the file system does."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from deployments.adapters import AdapterCatalogue, AdapterFile

AT_ONCE = 2
TIMEOUT_S = 5.0


class AdapterLookup:
    """Looks up adapters of one model, on threads of its own: a folder that hangs keeps no other model waiting, and
    nobody who looks for the tracker.
    """

    def __init__(self, catalogue: AdapterCatalogue) -> None:
        self._catalogue = catalogue
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="adapters")
        self._room = asyncio.Semaphore(AT_ONCE)

    async def resolve(self, name: str) -> AdapterFile:
        """Return the adapter called `name`. Raises what `AdapterCatalogue.resolve` raises, and TimeoutError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(TIMEOUT_S):
            await self._room.acquire()
            looking = self._threads.submit(self._catalogue.resolve, name)
            # When the thread is free again, not when we give up: what waits for one must not pile up.
            looking.add_done_callback(lambda _: loop.call_soon_threadsafe(self._room.release))
            return await asyncio.wrap_future(looking)

    def close(self) -> None:
        """Wait for nothing: what hangs may hang on."""
        self._threads.shutdown(wait=False, cancel_futures=True)
