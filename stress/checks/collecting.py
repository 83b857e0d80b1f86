"""What came of a final job: its callbacks and its picture, compared with each other and with the record."""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

from stress.checks import callbacks
from stress.checks.following import GRACE_S, Follower
from stress.checks.inbox import LocalInbox
from stress.checks.job_run import JobRun
from stress.checks.outcome import Fault
from stress.checks.pictures import judge_picture, keep_picture
from stress.checks.session import Session
from stress.errors import JobNotFoundError, PictureNotFoundError, ServiceError, UnexpectedAnswerError
from stress.receiver.entries import CallbackEntry
from stress.wire import JobState, JobStatus

_COMPARED = ("callback", "result", "image")


class Collector:
    """Collects for the jobs of one check, which began at `started_at`."""

    def __init__(self, session: Session, check: str, started_at: datetime) -> None:
        self._session = session
        self._follower = Follower(session, check)
        self._folder = session.pictures / check
        self._started_at = started_at

    async def callbacks(self, run: JobRun, status: JobStatus) -> None:
        """Wait for the job's callback and check all that came for it."""
        report = status.callback
        coming = run.request.callback_url is not None and (
            report is None or report.status == "delivered" or callbacks.is_pending(report)
        )
        timeout_s = self._session.budgets.callback_s if coming else 0.0
        await self._session.inbox.wait_for(run.job_id, count=run.earlier_entries + 1, timeout_s=timeout_s)
        await self.read_entries(run)
        if coming and not run.entries:
            await self._missing(run, timeout_s)
        if isinstance(self._session.inbox, LocalInbox):
            # A receiver elsewhere has a clock of its own.
            run.findings += callbacks.early_claims(run.job_id, run.delivered_seen_at, run.entries)
        # A callback with a wrong secret or signature stays undelivered because this kit's receiver rejects it.
        rejected = any(finding.fault in {Fault.WRONG_SECRET, Fault.WRONG_SIGNATURE} for finding in run.findings)
        if report is None or run.request.callback_url is None or (callbacks.is_pending(report) and rejected):
            return
        if callbacks.is_pending(report):
            settled = await self._follower.section_when(
                run, lambda now: not callbacks.is_pending(now), timeout_s=min(GRACE_S, timeout_s)
            )
            report = settled or report
        run.findings += callbacks.section_faults(run.job_id, status, report)

    async def read_entries(self, run: JobRun) -> None:
        """Check those of the job's callbacks that were not checked before, and all of them for duplicates."""
        entries = (await self._session.inbox.entries_for(run.job_id))[run.earlier_entries :]
        if run.status is None or len(entries) == len(run.entries):
            return
        for entry in entries[len(run.entries) :]:
            for finding in callbacks.entry_faults(run.job_id, run.status, run.request, entry):
                run.found_once(finding.fault, finding.sentence)
        await self.duplicates(run)
        _compare_entries(run, entries)
        run.entries = entries
        first_s = (entries[0].received_at - self._started_at).total_seconds()
        run.update(callbacks=len(entries), callback_s=first_s)

    async def duplicates(self, run: JobRun) -> None:
        """Look for duplicates among all callbacks that the job has by now, whatever else they are."""
        entries = (await self._session.inbox.entries_for(run.job_id))[run.earlier_entries :]
        for finding in callbacks.duplicate_faults(run.job_id, entries, run.status.callback if run.status else None):
            run.found_once(finding.fault, finding.sentence)

    async def pictures(self, run: JobRun, status: JobStatus) -> None:
        """Fetch a completed job's picture on every way, demand that the bytes are the same, and check it."""
        pictures: dict[str, bytes] = {}
        sent = await self._sent_picture(run.entries)
        if sent is not None:
            pictures["callback"] = sent
        missing: list[str] = []
        for address in ("result", "image"):
            try:
                picture = await self._downloaded(run, address)
            except PictureNotFoundError as error:
                missing.append(f"The job is completed, but its {address} address has no picture. {error}")
            else:
                if picture is not None:
                    pictures[address] = picture
        if missing and await self._follower.is_forgotten(run):
            run.found(Fault.LOST_JOB, "The job was completed, and is unknown now, its record like its picture (404).")
        elif missing:
            run.found_once(Fault.MISSING_PICTURE, missing[0])
        _compare(run, status, pictures)
        run.received = next((pictures[way] for way in _COMPARED if way in pictures), None)
        if run.received is not None:
            await self._judge(run, run.received)

    async def _missing(self, run: JobRun, timeout_s: float) -> None:
        says = run.status.callback.status if run.status and run.status.callback else "nothing"
        stray = await self._stray(run)
        if stray is not None:
            sentence = f"The job's callback arrived under the id of another job: {stray.job_id!r}."
            run.found_once(Fault.WRONG_JOB_ID, sentence)
        else:
            sentence = f"No callback arrived within {timeout_s:g} s of the final status; the service says {says!r}."
            run.found(Fault.MISSING_CALLBACK, sentence)

    async def _stray(self, run: JobRun) -> CallbackEntry | None:
        """Find this job's callback under another id, by its `webhook-id`, or by its picture under nobody's id."""
        status = run.status
        report = status.callback if status else None
        webhook_id, sha256 = report.webhook_id if report else None, status.sha256 if status else None
        if sha256 is None and status is not None and status.status is JobState.COMPLETED:
            with suppress(PictureNotFoundError):
                picture = await self._downloaded(run, "result")
                sha256 = None if picture is None else hashlib.sha256(picture).hexdigest()
        for entry in await self._session.inbox.entries():
            if webhook_id is not None and entry.webhook_id is not None:
                if entry.webhook_id == webhook_id:
                    return entry
            elif sha256 is not None and entry.sha256 == sha256 and await self._is_nobodys(entry):
                return entry
        return None

    async def _is_nobodys(self, entry: CallbackEntry) -> bool:
        """Whether the service knows no job of this id: an equal job rightly gets an equal picture, under its id."""
        try:
            await self._session.ask(lambda: self._session.client.status(entry.job_id))
        except JobNotFoundError:
            return True
        except ServiceError:
            return False
        return False

    async def _sent_picture(self, entries: Sequence[CallbackEntry]) -> bytes | None:
        with_picture = [entry for entry in entries if entry.has_image]
        return await self._session.inbox.picture(with_picture[-1]) if with_picture else None

    async def _downloaded(self, run: JobRun, address: str) -> bytes | None:
        client = self._session.client
        try:
            return await self._session.ask(lambda: (client.result if address == "result" else client.image)(run.job_id))
        except PictureNotFoundError:
            raise
        except UnexpectedAnswerError as error:
            run.found(Fault.WRONG_ANSWER, str(error))
        except ServiceError as error:
            run.found(Fault.NO_ANSWER, f"The picture could not be fetched. {error}")
        return None

    async def _judge(self, run: JobRun, picture: bytes) -> None:
        judgement = await asyncio.to_thread(judge_picture, picture, run.request.width, run.request.height)
        path = await asyncio.to_thread(keep_picture, self._folder, run.job_id, picture)
        run.update(picture=judgement.facts.model_copy(update={"path": str(path)}))
        if judgement.fault is not None:
            run.found(judgement.fault, f"{judgement.reason}.")


def _compare_entries(run: JobRun, entries: Sequence[CallbackEntry]) -> None:
    """Demand that every callback of one job carries the same picture, repeats and duplicates included."""
    seen = {entry.sha256 for entry in entries if entry.sha256 is not None}
    if len(seen) > 1:
        shown = ", ".join(sorted(sha256[:12] for sha256 in seen))
        run.found_once(Fault.CHANGED_BYTES, f"The job's callbacks carried different pictures, by SHA-256: {shown}.")


def _compare(run: JobRun, status: JobStatus, pictures: dict[str, bytes]) -> None:
    hashes = {way: hashlib.sha256(picture).hexdigest() for way, picture in pictures.items()}
    for entry in run.entries[-1:]:
        if entry.sha256 is not None:
            hashes["callback"] = entry.sha256
    if status.sha256 is not None:
        hashes["record"] = status.sha256
    if len(set(hashes.values())) > 1:
        seen = ", ".join(f"{way} {sha256[:12]}" for way, sha256 in hashes.items())
        run.found_once(Fault.CHANGED_BYTES, f"The picture's SHA-256 differs between the ways to it: {seen}.")
    elif status.size_bytes is not None:
        wrong = {len(picture) for picture in pictures.values()} - {status.size_bytes}
        if wrong:
            run.found(Fault.CHANGED_BYTES, f"The record says {status.size_bytes} bytes, the picture has {wrong.pop()}.")
