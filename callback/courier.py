"""The courier delivers what the outbox holds: first attempts at once, repeats with back-off until the expiry.

First attempts and repeats have capacities of their own (`callback.capacity`), and one receiver may use only a part of
either, so that a few slow receivers, or many with a few pictures each, delay nobody else's first attempt (design
invariant I7). Beyond that an attempt whose turn does not come is settled in time all the same, and repeated.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import sqlalchemy as sa

from callback import delivery_rows, job_rows
from callback.backoff import next_attempt_at
from callback.capacity import Capacity, NoTurn
from callback.clock import Clock
from callback.committer import Run
from callback.config import TrackerConfig
from callback.delivery_rows import Outcome, Parcel
from callback.egress import EgressPolicy
from callback.errors import Deposed, EgressRefused, Unavailable
from callback.metrics import DeliveryMetrics
from callback.records import JobView, Picture, PictureStore
from callback.sender import Message, NoReply, Reply, Sender, compose
from callback.signing import Signer
from callback.states import DeliveryState
from observability.logs import get_logger

RETRY_SHARE = 4
"""Repeats get one slot for every so many first attempts, in all and of one receiver, and bytes in this proportion."""
LOOK_EVERY_S = 1.0
"""How often the outbox is searched for due repeats."""
RECORD_AGAIN_AFTER_S = 1.0
"""Pause before an outcome is offered again to a store that did not take it."""
LOST_AFTER_S = 10.0
"""An attempt that is not under way so long after its bound is lost: its reservation was committed, its sending was not
begun because the commit's answer did not come."""
DRAIN_S = 5.0
"""How long a retiring tracker waits for attempts under way; what is cut off is repeated by its successor."""
PICTURES_READ_AT_ONCE = 16

_log = get_logger("courier")


@dataclass(slots=True)
class _Attempts:
    """The attempts under way, by the key of their job."""

    first: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    repeats: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    repeats_at: Counter[str] = field(default_factory=Counter)

    def __contains__(self, key: str) -> bool:
        return key in self.first or key in self.repeats

    def tasks(self) -> tuple[asyncio.Task[None], ...]:
        return (*self.first.values(), *self.repeats.values())


class Courier:
    """Sends and records attempts. `run` commits a unit of work; `publish` shows a job's new view to readers."""

    def __init__(
        self,
        config: TrackerConfig,
        pictures: PictureStore,
        run: Run,
        publish: Callable[[JobView], None],
        clock: Clock,
        *,
        signer: Signer,
    ) -> None:
        self._config = config
        self._pictures = pictures
        self._run = run
        self._publish = publish
        self._clock = clock
        self._policy = EgressPolicy(
            allow_loopback=config.callback_allow_loopback, allowed_networks=config.callback_allowed_networks
        )
        self._signer = signer
        self._sender = Sender()
        self._metrics = DeliveryMetrics()
        # A picture store that hangs must not take the threads that others need.
        self._readers = ThreadPoolExecutor(PICTURES_READ_AT_ONCE, thread_name_prefix="courier-pictures")
        self._most_repeats = max(1, config.callback_slots // RETRY_SHARE)
        self._most_repeats_of_one = max(1, config.callback_slots_per_receiver // RETRY_SHARE)
        repeat_bytes = config.callback_bytes // (RETRY_SHARE + 1)
        self._first = Capacity(
            config.callback_slots, config.callback_slots_per_receiver, config.callback_bytes - repeat_bytes
        )
        self._repeats = Capacity(self._most_repeats, self._most_repeats_of_one, max(1, repeat_bytes))
        self._under_way = _Attempts()
        self._wake = asyncio.Event()
        self._ending = False
        self.trouble: str | None = None

    @property
    def under_way(self) -> int:
        """How many attempts are being made now."""
        return len(self._under_way.tasks())

    # ---- what is begun, and when ----------------------------------------------------------------------------------

    def begin(self, parcel: Parcel, view: JobView) -> None:
        """Make the reserved first attempt of the job now, beside whatever else is under way.

        Once the courier ends it stays reserved: the successor repeats it.
        """
        if self._ending:
            return
        task = asyncio.get_running_loop().create_task(self._attempt(parcel, self._first, view))
        self._under_way.first[parcel.key] = task
        task.add_done_callback(lambda _: self._under_way.first.pop(parcel.key, None))

    def _begin_repeat(self, parcel: Parcel) -> None:
        task = asyncio.get_running_loop().create_task(self._attempt(parcel, self._repeats))
        self._under_way.repeats[parcel.key] = task
        self._under_way.repeats_at[parcel.receiver] += 1
        task.add_done_callback(lambda _: self._end_repeat(parcel))

    def _end_repeat(self, parcel: Parcel) -> None:
        self._under_way.repeats.pop(parcel.key, None)
        self._under_way.repeats_at[parcel.receiver] -= 1
        self._under_way.repeats_at += Counter()  # drops the zeros
        self.wake()

    def wake(self) -> None:
        """Look for due deliveries now."""
        self._wake.set()

    async def take_over(self) -> None:
        """Make due what an earlier tracker had begun to send: it is gone, and its attempts may have arrived or not."""
        await self._run(lambda tx: self._retry_lost(tx, float("inf")))

    async def retry_for_ever(self) -> None:
        """Make every repeat when it is due."""
        while True:
            self._wake.clear()
            try:
                await self._begin_due()
                self.trouble = None
            except Unavailable as error:
                self.trouble = _no_repeats(error)
            except Deposed:
                return
            except Exception as error:  # noqa: BLE001 - a bug in one look must not end all repeats for ever
                self.trouble = _no_repeats(error)
                _log.exception("search for due callbacks failed")
                await asyncio.sleep(LOOK_EVERY_S)
            # Not `wait_for`: in Python 3.11 it swallows a cancellation that comes together with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._wake.wait()

    async def _begin_due(self) -> None:
        await self._run(lambda tx: self._retry_lost(tx, self._clock.now() - self._longest_attempt_s()))
        while (room := self._most_repeats - len(self._under_way.repeats)) > 0:
            reserve = partial(self._reserve, room=room, under_way=Counter(self._under_way.repeats_at))
            found, begun = await self._run(reserve, self._begin_reserved)
            # Some may have been left out because their receiver has as many as it may: then others follow them.
            if found < room or not begun:
                return

    def _longest_attempt_s(self) -> float:
        return self._config.callback_timeout_s + LOST_AFTER_S

    def _retry_lost(self, tx: sa.Connection, reserved_before: float) -> None:
        stuck = delivery_rows.unsettled(tx, reserved_before)
        lost = [key for key in stuck if key not in self._under_way]
        if lost:
            count = delivery_rows.retry_unsettled(tx, lost, self._clock.now())
            _log.warning("attempts without an outcome are repeated", extra={"count": count})

    def _reserve(self, tx: sa.Connection, *, room: int, under_way: Counter[str]) -> tuple[int, list[Parcel]]:
        now, counts = self._clock.now(), Counter(under_way)
        if self._ending:
            return 0, []
        busy = [receiver for receiver, count in counts.items() if count >= self._most_repeats_of_one]
        found, parcels = delivery_rows.due(tx, now, room, busy=busy), []
        for key, receiver in found:
            if counts[receiver] < self._most_repeats_of_one and key not in self._under_way:
                counts[receiver] += 1
                parcel = delivery_rows.reserve(tx, key, now)
                parcels += [parcel] if parcel is not None else []
        return len(found), parcels

    def _begin_reserved(self, reserved: tuple[int, list[Parcel]]) -> tuple[int, int]:
        found, parcels = reserved
        if self._ending:
            return found, 0
        for parcel in parcels:
            self._begin_repeat(parcel)
        return found, len(parcels)

    # ---- one attempt ----------------------------------------------------------------------------------------------

    async def _attempt(self, parcel: Parcel, capacity: Capacity, view: JobView | None = None) -> None:
        # The bound is for the attempt as a whole, its waiting included: readers wait no longer for its outcome. Half of
        # it is kept for the sending. An attempt whose turn does not come has failed, and is repeated like any other.
        began, deadline = self._clock.now(), self._deadline()
        turn_by = deadline - self._config.callback_timeout_s / 2
        picture = _picture(parcel)
        try:
            async with capacity.turn(parcel.receiver, picture.size_bytes if picture else 0, turn_by):
                outcome = await self._send(parcel, picture, deadline)
        except NoTurn as error:
            outcome = self._without_turn(parcel, began, error)
        await self._record(parcel, outcome, view)

    def _without_turn(self, parcel: Parcel, began: float, error: NoTurn) -> Outcome:
        now = self._clock.now()
        if parcel.expiry is not None and parcel.expiry <= now:
            return Outcome(DeliveryState.EXPIRED, began, now, retry_at=None)
        return self._failure(parcel, began, str(error), DeliveryState.ERROR)

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._config.callback_timeout_s

    async def _send(self, parcel: Parcel, picture: Picture | None, deadline: float) -> Outcome:
        """Make one attempt; whatever happens becomes its outcome."""
        now = self._clock.now()
        try:
            reply = await self._post(parcel, picture, deadline)
        except _ExpiredError:
            return Outcome(DeliveryState.EXPIRED, now, self._clock.now(), retry_at=None)
        except EgressRefused as error:
            return self._failure(parcel, now, str(error), DeliveryState.ERROR)
        except _PictureUnreadableError as error:
            return self._failure(parcel, now, f"The picture cannot be read: {error}", DeliveryState.ERROR)
        except NoReply as error:
            return self._failure(parcel, now, str(error))
        except Exception as error:  # noqa: BLE001 - an attempt without an outcome would never be repeated
            _log.exception("callback attempt failed unexpectedly", extra={"job_id": parcel.job_id})
            sentence = f"The callback could not be sent ({type(error).__name__})."
            return self._failure(parcel, now, sentence, DeliveryState.ERROR)
        settled_at, retry_at = self._clock.now(), None
        if not reply.accepted and not reply.gone:
            retry_at = _retry_at(parcel, settled_at, reply.retry_after_s)
        state = DeliveryState.DELIVERED if reply.accepted else DeliveryState.FAILED
        return Outcome(state, now, settled_at, retry_at, reply.status_code, reply.preview)

    async def _post(self, parcel: Parcel, picture: Picture | None, deadline: float) -> Reply:
        self._time_left_s(parcel, deadline)
        target = await self._policy.check(parcel.url)
        message = await self._compose(parcel, picture, deadline)
        # Names and pictures may have taken long: the expiry counts at the moment of sending.
        return await self._sender.post(message, target, timeout_s=self._time_left_s(parcel, deadline))

    async def _compose(self, parcel: Parcel, picture: Picture | None, deadline: float) -> Message:
        """Return what is to be sent, in time. Raises `_PictureUnreadableError`."""
        if picture is None:
            return compose(parcel, None, self._signer, self._clock.now())
        # Reading, hashing and signing in one trip to a thread: a trip costs as much as they do.
        composing = asyncio.get_running_loop().run_in_executor(self._readers, self._with_picture, parcel, picture)
        try:
            async with asyncio.timeout_at(deadline):
                return await composing
        except TimeoutError:
            raise _PictureUnreadableError("its store did not answer in time") from None

    def _with_picture(self, parcel: Parcel, picture: Picture) -> Message:
        try:
            image, link = self._pictures.read(picture), self._pictures.link(picture)
        except OSError as error:
            # The system's own text names paths.
            raise _PictureUnreadableError(f"its store fails ({type(error).__name__})") from error
        except Exception as error:
            raise _PictureUnreadableError(str(error)) from error
        linked = replace(parcel, image_url=link) if link is not None else parcel
        return compose(linked, image, self._signer, self._clock.now())

    def _time_left_s(self, parcel: Parcel, deadline: float) -> float:
        """Return how long the attempt may still take. Raises `_ExpiredError` once the expiry has come."""
        left_s = deadline - asyncio.get_running_loop().time()
        if parcel.expiry is None:
            return left_s
        until_expiry_s = parcel.expiry - self._clock.now()
        if until_expiry_s <= 0:
            raise _ExpiredError
        return min(left_s, until_expiry_s)

    def _failure(
        self, parcel: Parcel, attempted_at: float, sentence: str, state: DeliveryState = DeliveryState.FAILED
    ) -> Outcome:
        now = self._clock.now()
        return Outcome(state, attempted_at, now, _retry_at(parcel, now), error=sentence)

    # ---- its outcome ----------------------------------------------------------------------------------------------

    async def _record(self, parcel: Parcel, outcome: Outcome, ended: JobView | None) -> None:
        """Commit the outcome, however long the store takes to come back, unless another tracker owns it by then.

        `ended` is the job as it ended; nothing but its delivery changes until that is final.
        """

        def record(tx: sa.Connection) -> JobView | None:
            delivery = delivery_rows.settle(tx, parcel.key, parcel.attempt, outcome)
            if ended is not None and delivery is not None:
                return replace(ended, delivery=delivery)
            return job_rows.by_key(tx, parcel.key)

        def show(view: JobView | None) -> None:
            if view is not None:
                self._publish(view)

        while True:
            try:
                await self._run(record, show)
                break
            except Unavailable as error:
                _log.warning("callback outcome not recorded yet", extra={"job_id": parcel.job_id, "cause": str(error)})
                await asyncio.sleep(RECORD_AGAIN_AFTER_S)
            except Deposed:
                return  # The successor repeats what it finds reserved.
        self._metrics.settled(outcome)
        fields = {"attempt": parcel.attempt, "outcome": outcome.state, "status_code": outcome.status_code}
        _log.info("callback attempt settled", extra={"job_id": parcel.job_id, "error": outcome.error, **fields})

    # ---- the end --------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Let attempts under way settle, for a few seconds at most. No others are begun any more."""
        self._ending = True
        if self.under_way:
            await asyncio.wait(self._under_way.tasks(), timeout=DRAIN_S)

    async def close(self) -> None:
        """Give up attempts under way and close connections."""
        self._ending = True
        tasks = self._under_way.tasks()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._readers.shutdown(wait=False, cancel_futures=True)
        await self._sender.close()


def _picture(parcel: Parcel) -> Picture | None:
    """Return the picture that the callback carries: that of a completed job."""
    if parcel.payload_status != "completed":
        return None
    return Picture(
        str(parcel.picture_key),
        str(parcel.picture_sha256),
        parcel.picture_size_bytes or 0,
        parcel.picture_width or 0,
        parcel.picture_height or 0,
    )


def _retry_at(parcel: Parcel, now: float, retry_after_s: float | None = None) -> float | None:
    number = parcel.attempt - parcel.attempts_before
    return next_attempt_at(number, now, parcel.give_up_at, retry_after_s=retry_after_s)


def _no_repeats(error: Exception) -> str:
    # Health is public: what the error says may name hosts and paths. The log has it.
    return f"Callbacks cannot be repeated ({type(error).__name__})."


class _ExpiredError(Exception):
    """The expiry has come: nothing may be sent any more."""


class _PictureUnreadableError(Exception):
    """The picture is missing, altered, or its store does not answer. The message says which."""
