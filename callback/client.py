"""What other processes ask of the tracker, and commands that survive its death.

Commands of many callers travel together. Each is idempotent, so after a lost answer the same commands are sent again to
whoever is the tracker then.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from callback.config import TRACKER_NAME, TrackerConfig
from callback.connection import RETRY_PAUSE_S, TrackerConnection
from callback.errors import REFUSALS, SILENCE, JobNotFound, StoreUnavailable, TrackerError, TrackerUnavailable
from callback.lookups import Identity, Lookups
from callback.records import (
    PROTOCOL_VERSION,
    Answer,
    Cancel,
    Changes,
    Claim,
    ClaimJobs,
    Command,
    Cursor,
    Finish,
    JobPage,
    JobView,
    PictureStore,
    Redeliver,
    Rejected,
    Release,
    Remember,
    Renew,
    Submit,
    TrackerHealth,
)
from callback.states import JobState
from observability.logs import get_logger

LOOKUP_TIMEOUT_S = 10.0
"""How long the tracker is asked for jobs that somebody looks up."""
CHANGES_MARGIN_S = 3.0
MAX_BATCH = 256
BATCHES_UNDER_WAY = 2
"""Two, so that one is on its way while the other is being committed; more would only make batches smaller."""
GATHER_S = 0.02
"""Least time between two batches: a call through Ray costs as much processor time as ten commands. The first command
after a rest is sent at once."""
MAX_WAITING = 20_000

_log = get_logger("tracker-client")


@dataclass(slots=True)
class _Pending:
    command: Command
    future: asyncio.Future[Answer]
    deadline: float


class TrackerClient:
    """A connection to the tracker, for one event loop. `start` before use, `close` after."""

    def __init__(
        self, config: TrackerConfig, pictures: PictureStore, *, name: str = TRACKER_NAME, takeover_after_s: float = 10.0
    ) -> None:
        self._connection = TrackerConnection(config, pictures, name, takeover_after_s)
        self._waiting: asyncio.Queue[_Pending] = asyncio.Queue(MAX_WAITING)
        self._room = asyncio.Semaphore(BATCHES_UNDER_WAY)
        self._lookups = Lookups(self._find)
        self._tasks: set[asyncio.Task[None]] = set()
        self._pumping: asyncio.Task[None] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether commands are sent no more: after `close`, or because of a bug."""
        return self._pumping is not None and self._pumping.done()

    async def start(self) -> None:
        """Make sure that a tracker with this code and configuration runs: create it, or take over from an older one.

        Raises `TrackerUnavailable`.
        """
        await self._connection.take_over_if_older()
        self._pumping = self._spawn(self._pump())
        self._spawn(self._connection.watch_over_successors())

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Stop sending; commands that wait fail. The tracker itself lives on."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._lookups.close()
        while not self._waiting.empty():
            pending = self._waiting.get_nowait()
            if not pending.future.done():
                pending.future.set_result(Rejected(TrackerUnavailable.code, SILENCE, retryable=True))

    # ---- commands -----------------------------------------------------------------------------------------------

    async def submit(self, command: Submit, *, timeout_s: float = 10.0) -> JobView:
        """Have a job accepted. Raises what `callback.acceptance` raises, and `Unavailable`."""
        return cast(JobView, await self._execute(command, timeout_s))

    async def claim(self, command: ClaimJobs, *, timeout_s: float = 30.0) -> tuple[Claim, ...]:
        """Take queued jobs. Raises `Unavailable`."""
        return cast(tuple[Claim, ...], await self._execute(command, timeout_s))

    async def renew(self, command: Renew, *, timeout_s: float = 10.0) -> tuple[str, ...]:
        """Keep leases; returns the keys that are lost. Raises `Unavailable`."""
        return cast(tuple[str, ...], await self._execute(command, timeout_s))

    async def finish(self, command: Finish, *, timeout_s: float = 30.0) -> bool:
        """Report an outcome; False if it came too late. Raises `Unavailable`."""
        return bool(await self._execute(command, timeout_s))

    async def release(self, command: Release, *, timeout_s: float = 30.0) -> bool:
        """Give a job back; False if it was not ours any more. Raises `Unavailable`."""
        return bool(await self._execute(command, timeout_s))

    async def cancel(self, owner: str, job_id: str, *, timeout_s: float = 10.0) -> JobView:
        """Cancel the job that has the client's id now. Raises `JobNotFound`, `NotCancellable`, `Unavailable`."""
        return await self._execute_for(owner, job_id, lambda key: Cancel(owner, job_id, key), timeout_s)

    async def redeliver(self, owner: str, job_id: str, request_id: str, *, timeout_s: float = 10.0) -> JobView:
        """Send the callback of the job that has the client's id now again; `request_id` is new per request.

        Raises `JobNotFound`, `NotRedeliverable`, `Unavailable`.
        """
        return await self._execute_for(owner, job_id, lambda key: Redeliver(owner, job_id, request_id, key), timeout_s)

    async def remember(self, command: Remember, *, timeout_s: float = 5.0) -> None:
        """Notice a signed request. Raises `RequestReplayed` if it came before, `ReplaysUnknown`, `Unavailable`."""
        # By itself: a tracker of an earlier release, about to be replaced, fails on it and on what comes with it.
        deadline = time.monotonic() + timeout_s
        try:
            (answer,) = await self._connection.call(
                lambda it: it.execute.remote(PROTOCOL_VERSION, (command,)), deadline=deadline
            )
        except TrackerError:
            raise
        except Exception as error:
            raise TrackerUnavailable(SILENCE) from error
        _raise_if_rejected(answer)

    async def _execute_for(
        self, owner: str, job_id: str, command: Callable[[str], Command], timeout_s: float
    ) -> JobView:
        """Look the id up once: the command that is then sent, and sent again, is for that job and no later one."""
        deadline = time.monotonic() + timeout_s
        found = await self.get(owner, job_id, timeout_s=timeout_s)
        if found is None:
            raise JobNotFound(f"There is no job {job_id!r}.")
        left_s = max(RETRY_PAUSE_S, deadline - time.monotonic())
        return cast(JobView, await self._execute(command(found.key), left_s))

    async def _execute(self, command: Command, timeout_s: float) -> Answer:
        pending = _Pending(command, asyncio.get_running_loop().create_future(), time.monotonic() + timeout_s)
        try:
            self._waiting.put_nowait(pending)
        except asyncio.QueueFull:
            raise TrackerUnavailable(f"{MAX_WAITING} commands wait for the tracker. Try again later.") from None
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + timeout_s + RETRY_PAUSE_S):
                answer = await pending.future
        except TimeoutError:
            raise TrackerUnavailable(SILENCE) from None
        _raise_if_rejected(answer)
        return answer

    async def _pump(self) -> None:
        loop, next_at = asyncio.get_running_loop(), 0.0
        while True:
            batch = [await self._waiting.get()]
            try:
                await asyncio.sleep(max(0.0, next_at - loop.time()))
                await self._room.acquire()
            except asyncio.CancelledError:
                self._waiting.put_nowait(batch[0])  # `close` answers it
                raise
            next_at = loop.time() + GATHER_S
            while len(batch) < MAX_BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            # Whoever has given up waiting, or gone away, is not served any more.
            if wanted := [pending for pending in batch if not pending.future.done()]:
                self._spawn(self._send(wanted))
            else:
                self._room.release()

    async def _send(self, batch: list[_Pending]) -> None:
        try:
            while batch := await self._send_once(batch):  # noqa: ASYNC110 - the pause is before a retry
                await asyncio.sleep(RETRY_PAUSE_S)
        finally:
            self._room.release()

    async def _send_once(self, batch: list[_Pending]) -> list[_Pending]:
        """Send the batch, resolve what is answered, and return what has to be sent again."""
        commands = tuple(pending.command for pending in batch)
        try:
            answers: tuple[Answer, ...] = await self._connection.call(
                lambda tracker: tracker.execute.remote(PROTOCOL_VERSION, commands),
                deadline=min(pending.deadline for pending in batch),
            )
        except Exception as error:  # noqa: BLE001 - each command must get an answer, whatever Ray raises
            if not isinstance(error, TrackerError):
                _log.exception("call to the tracker failed")
            answers = tuple(Rejected(TrackerUnavailable.code, SILENCE, retryable=True) for _ in batch)
        again, now = [], time.monotonic()
        for pending, answer in zip(batch, answers, strict=True):
            lost = isinstance(answer, Rejected) and answer.retryable and answer.code != StoreUnavailable.code
            if lost and now < pending.deadline and not pending.future.done():
                again.append(pending)
            elif not pending.future.done():
                pending.future.set_result(answer)
        return again

    # ---- reading ------------------------------------------------------------------------------------------------

    async def get(self, owner: str, job_id: str, *, timeout_s: float = 10.0) -> JobView | None:
        """Return the current job with the client's id. Raises `Unavailable`."""
        return await self._lookups.get(owner, job_id, timeout_s=timeout_s)

    async def _find(self, identities: tuple[Identity, ...]) -> tuple[JobView | None, ...]:
        deadline = time.monotonic() + LOOKUP_TIMEOUT_S

        def ask(tracker: Any) -> Any:
            try:
                return tracker.find.remote(identities)
            except AttributeError:
                # A tracker of an older release, which is about to be replaced, knows no such question.
                return asyncio.gather(*(tracker.get.remote(*identity) for identity in identities))

        return cast(tuple[JobView | None, ...], await self._connection.call(ask, deadline=deadline))

    async def jobs(
        self,
        owner: str | None,
        states: tuple[JobState, ...],
        before: int | None,
        limit: int,
        *,
        timeout_s: float = 10.0,
    ) -> JobPage:
        """Return a page of jobs, newest first. Raises `Unavailable`."""
        deadline = time.monotonic() + timeout_s
        page = await self._connection.call(
            lambda tracker: tracker.jobs.remote(owner, states, before, limit), deadline=deadline
        )
        return cast(JobPage, page)

    async def changes(self, cursor: Cursor, wait_s: float) -> Changes:
        """Return what changed since `cursor`, waiting up to `wait_s`. Raises `TrackerUnavailable`."""
        timeout_s = wait_s + CHANGES_MARGIN_S
        deadline = time.monotonic() + timeout_s
        call = self._connection.call(
            lambda tracker: tracker.changes.remote(cursor, wait_s), deadline=deadline, answer_timeout_s=timeout_s
        )
        return cast(Changes, await call)

    async def health(self, *, timeout_s: float = 2.0) -> TrackerHealth:
        """Return the tracker's account of itself. Raises `TrackerUnavailable`."""
        deadline = time.monotonic() + timeout_s
        health = await self._connection.call(
            lambda tracker: tracker.health.remote(), deadline=deadline, answer_timeout_s=timeout_s
        )
        return cast(TrackerHealth, health)


def _raise_if_rejected(answer: Answer) -> None:
    if not isinstance(answer, Rejected):
        return
    if answer.code in REFUSALS:
        raise REFUSALS[answer.code](answer.message, answer.retry_after_s)
    raise (StoreUnavailable if answer.code == StoreUnavailable.code else TrackerUnavailable)(answer.message)
