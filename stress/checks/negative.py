"""The negative cases: what a service must refuse, survive or say when things go wrong. Each is a check of its own."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from stress.checks import negative_answers, negative_callbacks, negative_jobs
from stress.checks.outcome import CheckReport
from stress.checks.session import Session

Check: TypeAlias = Callable[[Session], Awaitable[CheckReport]]

NEGATIVE_CHECKS: tuple[Check, ...] = (
    negative_answers.check_invalid_requests,
    negative_answers.check_unknown_id,
    negative_callbacks.check_expired,
    negative_callbacks.check_unreachable_target,
    negative_callbacks.check_failing_target,
    negative_callbacks.check_redirecting_target,
    negative_callbacks.check_wrong_secret,
    negative_jobs.check_duplicate_submission,
    negative_jobs.check_id_in_use,
    negative_jobs.check_same_submission,
    negative_jobs.check_id_reuse,
    negative_jobs.check_early_result,
    negative_jobs.check_cancel_running,
    negative_jobs.check_cancel_queued,
    negative_jobs.check_redeliver,
    negative_jobs.check_job_timeout,
)
"""In the order in which they are made."""
