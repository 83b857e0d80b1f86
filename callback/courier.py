"""The courier delivers what the outbox holds: first attempts at once, repeats with back-off until the expiry.

First attempts and repeats have capacities of their own, and one receiver may use only a part of either, so that slow or
dead receivers delay nobody else's first attempt (design invariant I7).
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import sqlalchemy as sa

from callback import delivery_rows, job_rows
from callback.backoff import next_attempt_at
from callback.clock import Clock
from callback.config import TrackerConfig
from callback.delivery_rows import Outcome, Parcel
from callback.egress import EgressPolicy
from callback.errors import Deposed, EgressRefused, Unavailable
from callback.metrics import DeliveryMetrics
from callback.records import JobView, Picture, PictureStore
from callback.sender import NoReply, Sender
from callback.states import DeliveryState
from observability.logs import get_logger

Run = Callable[[Callable[[sa.Connection], Any]], Awaitable[Any]]

RETRY_SHARE = 4
"""Repeats get one slot for every so many first attempts."""
LOOK_EVERY_S = 1.0
"""How often the outbox is searched for due repeats."""
DRAIN_S = 5.0
"""How long a retiring tracker waits for attempts under way; what is cut off is repeated by its successor."""

_log = get_logger("courier")


class Courier:
    """Sends and records attempts. `run` commits a unit of work; `publish` shows a job's new view to readers."""

    def __init__(
        self,
        config: TrackerConfig,
        pictures: PictureStore,
        run: Run,
        publish: Callable[[JobView], None],
        clock: Clock,
        policy: EgressPolicy | None = None,
    ) -> None:
        self._config = config
        self._pictures = pictures
        self._run = run
        self._publish = publish
        self._clock = clock
        self._policy = policy or EgressPolicy(
            allow_loopback=config.callback_allow_loopback, allowed_networks=config.callback_allowed_networks
        )
        self._sender = Sender()
        self._metrics = DeliveryMetrics()
        self._first_slots = asyncio.Semaphore(config.callback_slots)
        self._retry_slots = asyncio.Semaphore(max(1, config.callback_slots // RETRY_SHARE))
        self._busy: Counter[str] = Counter()
        self._freed = asyncio.Condition()
        self._attempts: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self.trouble: str | None = None

    @property
    def under_way(self) -> int:
        """How many attempts are being made now."""
        return len(self._attempts)

    def begin(self, parcel: Parcel) -> None:
        """Make the reserved attempt now, beside whatever else is under way."""
        self._start(parcel, self._first_slots)

    def wake(self) -> None:
        """Look for due deliveries now."""
        self._wake.set()

    async def retry_for_ever(self) -> None:
        """Make every repeat when it is due."""
        while True:
            self._wake.clear()
            try:
                await self._start_due()
                self.trouble = None
            except Unavailable as error:
                self.trouble = str(error)
            except Deposed:
                return
            try:
                await asyncio.wait_for(self._wake.wait(), LOOK_EVERY_S)
            except TimeoutError:
                continue

    async def _start_due(self) -> None:
        now, room = self._clock.now(), self._config.callback_slots - len(self._attempts)
        if room <= 0:
            return

        def reserve(tx: sa.Connection) -> list[Parcel]:
            keys = delivery_rows.due(tx, now, room)
            return [parcel for key in keys if (parcel := delivery_rows.reserve(tx, key, now)) is not None]

        for parcel in await self._run(reserve):
            self._start(parcel, self._retry_slots)

    def _start(self, parcel: Parcel, slots: asyncio.Semaphore) -> None:
        task = asyncio.get_running_loop().create_task(self._attempt(parcel, slots))
        self._attempts[parcel.webhook_id] = task
        task.add_done_callback(lambda _: self._attempts.pop(parcel.webhook_id, None))

    async def _attempt(self, parcel: Parcel, slots: asyncio.Semaphore) -> None:
        began = self._clock.now()
        # The bound is for the attempt as a whole, waiting for a slot included: readers wait no longer for its outcome.
        deadline = asyncio.get_running_loop().time() + self._config.callback_timeout_s
        receiver = parcel.url.partition("//")[2].partition("/")[0]
        try:
            async with asyncio.timeout_at(deadline):
                await self._enter(receiver)
        except TimeoutError:
            outcome = self._failure(
                parcel, began, f"The receiver is busy with {self._busy[receiver]} earlier callbacks."
            )
        else:
            try:
                outcome = await self._in_slot(parcel, slots, began, deadline)
            finally:
                await self._leave(receiver)
        await self._settle(parcel, outcome)

    async def _enter(self, receiver: str) -> None:
        async with self._freed:
            await self._freed.wait_for(lambda: self._busy[receiver] < self._config.callback_slots_per_receiver)
            self._busy[receiver] += 1

    async def _leave(self, receiver: str) -> None:
        async with self._freed:
            self._busy[receiver] -= 1
            if not self._busy[receiver]:
                del self._busy[receiver]
            self._freed.notify_all()

    async def _in_slot(self, parcel: Parcel, slots: asyncio.Semaphore, began: float, deadline: float) -> Outcome:
        try:
            async with asyncio.timeout_at(deadline):
                await slots.acquire()
        except TimeoutError:
            return self._failure(parcel, began, "All delivery slots were busy.")
        try:
            return await self._send(parcel, deadline)
        finally:
            slots.release()

    async def _send(self, parcel: Parcel, deadline: float) -> Outcome:
        """Make one attempt; whatever happens becomes its outcome."""
        now = self._clock.now()
        if parcel.expiry is not None and now > parcel.expiry:
            return Outcome(DeliveryState.EXPIRED, now, now, retry_at=None)
        try:
            target = await self._policy.check(parcel.url)
            image = await self._image(parcel)
        except EgressRefused as error:
            return self._failure(parcel, now, str(error), DeliveryState.ERROR)
        except Exception as error:  # noqa: BLE001 - whatever keeps the picture from being read is an outcome
            return self._failure(parcel, now, f"The picture cannot be read: {error}", DeliveryState.ERROR)
        timeout_s = max(0.1, deadline - asyncio.get_running_loop().time())
        if parcel.expiry is not None:
            timeout_s = min(timeout_s, max(0.1, parcel.expiry - now))
        try:
            reply = await self._sender.post(parcel, image, target, sent_at=now, timeout_s=timeout_s)
        except NoReply as error:
            return self._failure(parcel, now, str(error))
        if reply.accepted or reply.gone:
            state = DeliveryState.DELIVERED if reply.accepted else DeliveryState.FAILED
            return Outcome(state, now, self._clock.now(), None, reply.status_code, reply.preview)
        retry_at = next_attempt_at(
            parcel.attempt, self._clock.now(), parcel.give_up_at, retry_after_s=reply.retry_after_s
        )
        return Outcome(DeliveryState.FAILED, now, self._clock.now(), retry_at, reply.status_code, reply.preview)

    async def _image(self, parcel: Parcel) -> bytes | None:
        """Return the verified picture of a completed job."""
        if parcel.payload_status != "completed":
            return None
        assert parcel.picture_key is not None  # noqa: S101 - a completed job has a picture (see Lifecycle.finish)
        picture = Picture(
            parcel.picture_key,
            str(parcel.picture_sha256),
            parcel.picture_size_bytes or 0,
            parcel.picture_width or 0,
            parcel.picture_height or 0,
        )
        return await asyncio.to_thread(self._pictures.read, picture)

    def _failure(
        self, parcel: Parcel, attempted_at: float, sentence: str, state: DeliveryState = DeliveryState.FAILED
    ) -> Outcome:
        now = self._clock.now()
        retry_at = next_attempt_at(parcel.attempt, now, parcel.give_up_at)
        return Outcome(state, attempted_at, now, retry_at, error=sentence)

    async def _settle(self, parcel: Parcel, outcome: Outcome) -> None:
        def record(tx: sa.Connection) -> JobView | None:
            delivery_rows.settle(tx, parcel.key, parcel.attempt, outcome)
            return job_rows.by_key(tx, parcel.key)

        try:
            view = await self._run(record)
        except (Unavailable, Deposed):
            # Recovery finds the attempt reserved and unsettled, and repeats it.
            _log.exception("callback outcome not recorded", extra={"job_id": parcel.job_id})
            return
        if view is not None:
            self._publish(view)
        self._metrics.settled(outcome)
        fields = {"attempt": parcel.attempt, "outcome": outcome.state, "status_code": outcome.status_code}
        _log.info("callback attempt settled", extra={"job_id": parcel.job_id, "error": outcome.error, **fields})

    async def drain(self) -> None:
        """Let attempts under way settle, for a few seconds at most."""
        if self._attempts:
            await asyncio.wait(tuple(self._attempts.values()), timeout=DRAIN_S)

    async def close(self) -> None:
        """Give up attempts under way and close connections."""
        tasks = tuple(self._attempts.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._sender.close()
