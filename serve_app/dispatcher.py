"""Dispatching: claim jobs, have them rendered, report the outcomes, keep their leases.

Ray Serve carries and scales, `deployments.routing` balances; this only decides how many jobs are handed over. Claims
stay a little above what is being rendered: enough that a freed device has its next job at hand (see `Pace`) and the
autoscaler sees the demand, few enough that queue positions stay true and a cancelled job has not been routed yet. Jobs
that take milliseconds travel several in a call of Serve's (see `shipments`), which the autoscaler counts as one.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Set
from typing import TypeVar
from uuid import uuid4

from ray.serve.handle import DeploymentHandle

from callback.client import TrackerClient
from callback.errors import TrackerError, Unavailable
from callback.records import Claim, ClaimJobs, Finish, JobView, Release, Renew
from callback.states import JobState
from deployments.models import REPLICA_PLACES
from observability.logs import get_logger, job_context
from serve_app.attempt import Attempt
from serve_app.metrics import RenderMetrics
from serve_app.pace import Pace
from serve_app.recent import RecentKeys
from serve_app.shipments import Shipments
from serve_app.supervision import keep_running, wait_for_event

RENEW_EVERY_S = 1.0
"""How often leases are renewed and progress is told; a start is told at once ..."""
TELL_EVERY_S = 0.1
"""... but not more often than this: what started meanwhile is told together."""
LOOK_EVERY_S = 1.0
"""How often queued jobs are looked for when nothing says that there are some."""
ENDED_FOR_S = 5.0
"""The change stream has told of an end by then."""
CLAIM_TIMEOUT_S = 10.0
REPORT_FOR_S = 600.0
"""How long an outcome is offered to a tracker or store that does not take it; then its lease runs out."""
REPORT_GRACE_S = 4.0
"""What a dispatcher that is stopped leaves its attempts for handing their jobs back."""
SHORTEST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 15.0
"""Claiming rests after trouble that is not a job's, so that the same job does not go round and round at speed."""

T = TypeVar("T")

_log = get_logger("dispatcher")


class Dispatcher:
    """Brings the jobs of one model to its replicas, for one ingress replica."""

    def __init__(
        self,
        *,
        model: str,
        handle: DeploymentHandle,
        client: TrackerClient,
        has_queued: Callable[[str], bool],
        is_cancelled: Callable[[str], bool],
        devices: Callable[[], int],
        processing: Callable[[], Set[str]],
        job_timeout_s: float,
        holder: str,
    ) -> None:
        self._model = model
        self._handle = handle.options(stream=True)
        self._client = client
        self._has_queued = has_queued
        self._is_cancelled = is_cancelled
        self._devices = devices
        self._processing = processing
        self._job_timeout_s = job_timeout_s
        self._holder = holder
        self._metrics = RenderMetrics(model)
        self._pace = Pace()
        self._shipments = Shipments(self._handle, devices=devices, together=self._pace.together)
        self._attempts: dict[str, Attempt] = {}
        self._tasks: dict[Attempt, asyncio.Task[None]] = {}
        self._reporting: set[Attempt] = set()
        self._ended = RecentKeys(ENDED_FOR_S)
        self._replicas = _Pause()
        self._storage = _Pause()
        self._look = asyncio.Event()
        self._tell = asyncio.Event()
        self._expected = False
        self._stopping = False
        self._claiming: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None

    @property
    def trouble(self) -> str | None:
        """Why jobs of the model are not being rendered, as a sentence; None if they are."""
        return self._storage.reason or self._replicas.reason

    def start(self) -> None:
        """Begin to claim."""
        self._claiming = keep_running(f"claim {self._model}", self._claim_round)
        self._renewing = keep_running(f"renew {self._model}", self._renew_round)

    async def stop(self, grace_s: float) -> None:
        """Claim no more, hand unstarted jobs back, let started ones finish for up to `grace_s`, hand the rest back."""
        self._stopping = True
        self._look.set()
        await _until_done([self._claiming], CLAIM_TIMEOUT_S)
        self._abandon(attempt for attempt in self._tasks if attempt.started_at is None)
        await _until_done(self._tasks.values(), grace_s)
        self._abandon(self._tasks)
        await _until_done(self._tasks.values(), REPORT_GRACE_S)
        # What could not even be reported goes to another replica when its lease runs out.
        await _cancelled([self._claiming, self._renewing, *self._tasks.values()])
        await self._shipments.close()

    def _abandon(self, attempts: Iterable[Attempt]) -> None:
        for attempt in tuple(attempts):
            if attempt not in self._reporting:
                attempt.abandon()

    def expect(self) -> None:
        """Look for a job that has just been accepted, before the tracker's change stream tells of it."""
        self._expected = True
        self._look.set()

    def notice(self, view: JobView) -> None:
        """React to a change of one of the model's jobs: look for new ones, stop cancelled ones."""
        if view.state is JobState.QUEUED:
            self._look.set()
        attempt = self._attempts.get(view.key)
        if attempt is not None and view.cancel_requested and not attempt.cancelled:
            attempt.cancel()

    # ---- what attempts tell (see `attempt.Listener`) ----------------------------------------------------------------

    def started(self) -> None:
        """Tell the tracker at once, and make room for the next job."""
        self._replicas.over()
        self._tell.set()
        self._look.set()

    def finished(self, seconds: dict[str, float]) -> None:
        """Note a picture; a quick one comes without a start."""
        self._replicas.over()
        self._storage.over()
        self._pace.ended(sum(seconds.values()))
        self._metrics.rendered(seconds)

    def no_replica(self, reason: str) -> None:
        """Rest before the next claim."""
        self._replicas.longer(reason)

    def no_storage(self, reason: str) -> None:
        """Rest before the next claim."""
        self._storage.longer(reason)

    # ---- claiming -------------------------------------------------------------------------------------------------

    @property
    def _room(self) -> int:
        """How many jobs more to claim.

        At least one waits at the replicas, and a quarter as many as are being rendered, or as the devices can end while
        others are fetched; and no device is without. But Serve gets no more than the replicas take, since it lets what
        they do not take wait for longer and longer. Of the other ingress replicas' jobs the change stream tells.
        """
        # What is being reported has left its device.
        under_way = [attempt for attempt in self._attempts.values() if attempt not in self._reporting]
        count, devices = len(under_way), self._devices()
        # Quick jobs do not tell that they have started: they count as waiting, which `ahead` allows for.
        started = sum(attempt.started_at is not None for attempt in under_way)
        waiting = count - started
        others = self._of_others()
        wanted = max(1 + started // 4 - waiting, devices - count - others)
        # What the devices can end meanwhile is for all to share; but if another ingress replica has just died with its
        # claims, this one must go on.
        ahead = 1 + self._pace.ahead(devices)
        share = max(ahead - others, ahead // 4)
        return max(wanted, min(share - waiting, REPLICA_PLACES * devices - count - others))

    def _of_others(self) -> int:
        """How many jobs the other ingress replicas have claimed, as far as the change stream has told."""
        return sum(key not in self._attempts and key not in self._ended for key in self._processing())

    async def _claim_round(self) -> bool:
        self._look.clear()
        try:
            while not self._stopping and await self._claim_some():
                pass
        except TrackerError as error:
            _log.warning("cannot claim", extra={"cause": str(error)})
            await asyncio.sleep(SHORTEST_PAUSE_S)
        if not self._stopping:
            await wait_for_event(self._look, LOOK_EVERY_S)
        return not self._stopping

    async def _claim_some(self) -> bool:
        resting = self._replicas.lasts or self._storage.lasts
        room = self._room
        if resting or room <= 0 or not (self._expected or self._has_queued(self._model)):
            return False
        self._expected = False
        command, asked_at = ClaimJobs(self._holder, uuid4().hex, self._model, room), time.monotonic()
        claims = await self._client.claim(command, timeout_s=CLAIM_TIMEOUT_S)
        self._pace.claimed(time.monotonic() - asked_at)
        for claim in claims:
            self._begin(claim)
        return bool(claims)

    def _begin(self, claim: Claim) -> None:
        predecessor = self._attempts.get(claim.key)
        if predecessor is not None:
            # Its lease ran out, and the job came back to us before we noticed.
            predecessor.lose()
        # A job that comes again is rendered alone, and tells its start: it may be what ended its replica.
        quick = claim.attempt == 1 and self._pace.ahead(self._devices()) > 0
        together = quick and self._pace.together() > 1
        send = self._shipments.send if together else self._handle.render.remote
        attempt = Attempt(claim, send, self._job_timeout_s, self, quick=quick)
        self._attempts[claim.key] = attempt
        self._ended.discard(claim.key)
        if self._is_cancelled(claim.key):
            # The wish came while the claim was on its way to us.
            attempt.cancel()
        self._tasks[attempt] = asyncio.create_task(self._carry_out(attempt))

    # ---- leases and progress --------------------------------------------------------------------------------------

    async def _renew_round(self) -> bool:
        self._tell.clear()
        told = {attempt.claim.key: attempt for attempt in self._attempts.values()}
        if told:
            command = Renew(self._holder, tuple(attempt.progress for attempt in told.values()))
            try:
                for key in await self._client.renew(command):
                    if told[key] not in self._reporting:
                        told[key].lose()
            except TrackerError as error:
                _log.warning("cannot renew leases", extra={"cause": str(error)})
        await asyncio.sleep(TELL_EVERY_S)
        await wait_for_event(self._tell, RENEW_EVERY_S)
        return True

    def tell_soon(self) -> None:
        """Renew at once: a tracker that has just started does not know yet what is being rendered."""
        self._tell.set()

    # ---- outcomes -------------------------------------------------------------------------------------------------

    async def _carry_out(self, attempt: Attempt) -> None:
        claim = attempt.claim
        with job_context(claim.job_id):
            try:
                report = await attempt.outcome()
                self._reporting.add(attempt)
                self._look.set()
                if not attempt.lost:  # Otherwise another attempt has the job, and the tracker would not listen.
                    await self._report(report)
            except Exception:  # noqa: BLE001 - the lease runs out, and another attempt follows
                _log.exception("attempt given up", extra={"attempt": claim.attempt})
            finally:
                self._reporting.discard(attempt)
                self._tasks.pop(attempt, None)
                if self._attempts.get(claim.key) is attempt:
                    del self._attempts[claim.key]
                    if not attempt.lost:
                        # Until the change stream tells that it has ended, it must not look like another's.
                        self._ended.add(claim.key)
                self._look.set()

    async def _report(self, report: Finish | Release) -> None:
        if isinstance(report, Finish):
            taken = await self._until_taken(lambda: self._client.finish(report))
        else:
            taken = await self._until_taken(lambda: self._client.release(report))
        if not taken:
            _log.warning("report came too late", extra={"attempt": report.attempt})

    async def _until_taken(self, send: Callable[[], Awaitable[T]]) -> T | None:
        deadline = time.monotonic() + REPORT_FOR_S
        while True:
            try:
                return await send()
            except Unavailable as error:
                if time.monotonic() > deadline:
                    _log.exception("outcome could not be reported; the lease will run out")
                    return None
                _log.warning("outcome not taken yet", extra={"cause": str(error)})
                await asyncio.sleep(SHORTEST_PAUSE_S)


class _Pause:
    """How long claiming rests after trouble that is not a job's: doubled each time, until something works again."""

    def __init__(self) -> None:
        self._length_s = 0.0
        self._until = 0.0
        self.reason: str | None = None

    @property
    def lasts(self) -> bool:
        """Whether to rest."""
        return time.monotonic() < self._until

    def longer(self, reason: str) -> None:
        """Rest for twice as long as the last time. What many jobs meet at once counts once."""
        self.reason = reason
        if self.lasts:
            return
        self._length_s = min(max(SHORTEST_PAUSE_S, 2 * self._length_s), LONGEST_PAUSE_S)
        self._until = time.monotonic() + self._length_s

    def over(self) -> None:
        """It works again."""
        self._length_s = self._until = 0.0
        self.reason = None


async def _until_done(tasks: Iterable[asyncio.Task[None] | None], timeout_s: float) -> None:
    running = [task for task in tasks if task is not None and not task.done()]
    if running:
        await asyncio.wait(running, timeout=timeout_s)


async def _cancelled(tasks: Iterable[asyncio.Task[None] | None]) -> None:
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
