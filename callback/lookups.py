"""Questions for jobs by the client's id: what is asked at the same time travels together."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Iterable

from callback.errors import SILENCE, TrackerUnavailable
from callback.records import JobView

Identity = tuple[str, str]
"""Owner and the client's id."""

MAX_BATCH = 256
MAX_WAITING = 20_000
_CLOSED = "The connection to the job tracker is closed."


class Lookups:
    """Gathers questions while earlier ones are under way. `ask` puts many to the tracker and answers in their order.

    A question is answered by a call that began after it was put, so that nobody is told what was true before. One call
    is under way at a time: with two, each carries half as many questions, and costs as much.
    """

    def __init__(self, ask: Callable[[tuple[Identity, ...]], Awaitable[tuple[JobView | None, ...]]]) -> None:
        self._ask = ask
        self._waiting: dict[Identity, asyncio.Future[JobView | None]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def get(self, owner: str, job_id: str, *, timeout_s: float) -> JobView | None:
        """Return the current job with the client's id. Raises what `ask` raises, and `TrackerUnavailable`."""
        answer = self._waiting.get((owner, job_id))
        if answer is None:
            if len(self._waiting) >= MAX_WAITING:
                raise TrackerUnavailable(f"{MAX_WAITING} questions wait for the tracker. Try again later.")
            answer = self._waiting[owner, job_id] = asyncio.get_running_loop().create_future()
            # An error that nobody waits for any more is no news.
            answer.add_done_callback(lambda future: future.cancelled() or future.exception())
        if self._asking is None:
            # Not in the context of the request that happens to ask first: Ray takes calls that are made in it for the
            # request's own, and cancels them, with everybody's questions, when its client goes away.
            self._asking = asyncio.create_task(self._run(), context=contextvars.Context())
        try:
            async with asyncio.timeout(timeout_s):
                # Others may wait for the same answer.
                return await asyncio.shield(answer)
        except TimeoutError:
            raise TrackerUnavailable(SILENCE) from None

    async def _run(self) -> None:
        try:
            await self._ask_all()
        finally:
            # At once, not in a callback: a question that is put in between would wait for ever.
            self._asking = None

    async def _ask_all(self) -> None:
        while self._waiting:
            batch = dict(list(self._waiting.items())[:MAX_BATCH])
            for identity in batch:
                del self._waiting[identity]
            try:
                views = dict(zip(batch, await self._ask(tuple(batch)), strict=True))
            except asyncio.CancelledError:
                _fail(batch.values(), TrackerUnavailable(_CLOSED))
                raise
            except Exception as error:  # noqa: BLE001 - it is for those who have asked
                _fail(batch.values(), error)
            else:
                for identity, answer in batch.items():
                    answer.set_result(views[identity])

    async def close(self) -> None:
        """Ask no more; whoever waits is told so."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        _fail(self._waiting.values(), TrackerUnavailable(_CLOSED))
        self._waiting.clear()


def _fail(answers: Iterable[asyncio.Future[JobView | None]], error: Exception) -> None:
    for answer in answers:
        answer.set_exception(error)
