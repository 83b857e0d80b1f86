"""Runs one check so that whatever happens in it becomes its report."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from stress.checks.jobs import Watch
from stress.checks.outcome import CheckReport, Fault, Finding, Verdict
from stress.checks.session import Session
from stress.errors import JobNotFoundError, KitError, ServiceError, ServiceUnreachableError

logger = logging.getLogger(__name__)


class CheckSkipped(Exception):
    """The check cannot be made here; the message says why, in a sentence."""


async def guarded(
    session: Session, name: str, title: str, jobs: int, body: Callable[[Watch], Awaitable[CheckReport]]
) -> CheckReport:
    """Run `body`, which will submit about so many jobs, and tell the progress of its start and end.

    `CheckSkipped` makes the check skipped, unless something was found until then; an error of the service is a
    finding that names it, any other exception a finding `KIT`. Only cancellation is passed on: what was found until
    then is added to `session.interrupted`.
    """
    session.progress.check_started(name, title, jobs)
    watch = Watch(session, name)
    try:
        report = await body(watch)
    except CheckSkipped as reason:
        report = _unless_found(watch.report(name, title, watch.runs, note=str(reason)))
    except asyncio.CancelledError:
        report = _interrupted(watch, name, title)
        session.interrupted.append(report)
        session.progress.check_ended(report)
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the report names it
        report = _with_finding(_so_far(watch, name, title), _finding(name, _first_cause(error)))
    session.progress.check_ended(report)
    return report


def _unless_found(report: CheckReport) -> CheckReport:
    return report if report.findings else report.model_copy(update={"verdict": Verdict.SKIPPED})


def _interrupted(watch: Watch, name: str, title: str) -> CheckReport:
    report = _so_far(watch, name, title)
    accepted = int(report.figures.get("jobs_accepted", 0))
    ended = sum(job.final_s is not None for job in report.jobs)
    note = f"Interrupted: {accepted} submitted, {report.figures.get('jobs_final', ended):.0f} finished."
    return _unless_found(report.model_copy(update={"note": note}))


def _so_far(watch: Watch, name: str, title: str) -> CheckReport:
    """Return what a check that did not come to its end has found: a soak has let go of most of its jobs by then."""
    if watch.partial is not None:
        try:
            return watch.partial()
        except Exception:
            logger.exception("what the check %s had found until then cannot be summed up", name)
    return watch.report(name, title, watch.runs)


def _with_finding(report: CheckReport, finding: Finding) -> CheckReport:
    return report.model_copy(update={"verdict": Verdict.FAILED, "findings": (finding, *report.findings)})


def _finding(name: str, error: Exception) -> Finding:
    if isinstance(error, ServiceError):
        return Finding(fault=_fault_of(error), sentence=str(error))
    if isinstance(error, KitError):
        return Finding(fault=Fault.KIT, sentence=str(error))
    logger.error("the check %s broke", name, exc_info=error)
    sentence = f"The check itself broke: {type(error).__name__}: {error}. Please report it with the log."
    return Finding(fault=Fault.KIT, sentence=sentence)


def _first_cause(error: Exception) -> Exception:
    """Return what broke the first of several tasks: a group of errors says nothing by itself."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _fault_of(error: ServiceError) -> Fault:
    if isinstance(error, JobNotFoundError):
        return Fault.LOST_JOB
    return Fault.NO_ANSWER if isinstance(error, ServiceUnreachableError) else Fault.WRONG_ANSWER
