"""Runs one check so that whatever happens in it becomes its report."""

import logging
from collections.abc import Awaitable, Callable

from stress.checks.jobs import Watch
from stress.checks.outcome import CheckReport, Fault, Finding, Verdict
from stress.checks.session import Session
from stress.errors import JobNotFoundError, ServiceError, ServiceUnreachableError

logger = logging.getLogger(__name__)


class CheckSkipped(Exception):
    """The check cannot be made here; the message says why, in a sentence."""


async def guarded(
    session: Session, name: str, title: str, jobs: int, body: Callable[[Watch], Awaitable[CheckReport]]
) -> CheckReport:
    """Run `body`, which will submit about so many jobs, and tell the progress of its start and end.

    `CheckSkipped` makes the check skipped, an error of the service a finding that names it, any other exception a
    finding `KIT`; only cancellation is passed on.
    """
    session.progress.check_started(name, title, jobs)
    watch = Watch(session, name)
    try:
        report = await body(watch)
    except CheckSkipped as reason:
        report = watch.report(name, title, [], note=str(reason)).model_copy(update={"verdict": Verdict.SKIPPED})
    except ServiceError as error:
        report = watch.report(name, title, [], findings=[Finding(fault=_fault_of(error), sentence=str(error))])
    except Exception as error:
        logger.exception("the check %s broke", name)
        sentence = f"The check itself broke: {type(error).__name__}: {error}. Please report it with the log."
        report = watch.report(name, title, [], findings=[Finding(fault=Fault.KIT, sentence=sentence)])
    session.progress.check_ended(report)
    return report


def _fault_of(error: ServiceError) -> Fault:
    if isinstance(error, JobNotFoundError):
        return Fault.LOST_JOB
    return Fault.NO_ANSWER if isinstance(error, ServiceUnreachableError) else Fault.WRONG_ANSWER
