"""Every error of the kit, in one tree; each message ends with a sentence that says what to do."""

from typing import ClassVar


class KitError(Exception):
    """Base of every error that the kit raises on purpose."""


class ServiceError(KitError):
    """The service could not be used as asked."""


class ServiceUnreachableError(ServiceError):
    """No whole answer came: refused, cut off or too late, and the repeats did not help either."""

    def __init__(self, call: str, attempts: int, reason: str) -> None:
        super().__init__(
            f"{call} got no answer in {attempts} attempt(s): {reason}. "
            "Check that the service runs, that the base URL is right and that a firewall lets you through."
        )
        self.attempts = attempts


class AnswerError(ServiceError):
    """The service answered, but not with what was asked for.

    `detail` is the service's own sentence, `error_code` its word for programs where it has one.
    """

    advice: ClassVar[str] = "Check that the base URL is a Darkroom service and that its version speaks this protocol."

    def __init__(self, call: str, status_code: int, detail: str, *, error_code: str | None = None) -> None:
        super().__init__(f"{call} answered HTTP {status_code}: {detail}. {self.advice}")
        self.status_code = status_code
        self.detail = detail
        self.error_code = error_code


class UnexpectedAnswerError(AnswerError):
    """An answer outside the protocol: a redirect, an unknown code, or a body of another shape."""


class InvalidRequestError(AnswerError):
    """HTTP 400, 413 or 422: the service does not accept these values."""

    advice = "Correct the named fields and submit again; repeating the same request cannot help."


class UnauthorizedError(AnswerError):
    """HTTP 401 or 403: the service does not let this caller do that."""

    advice = "Pass valid credentials in the client's `headers`, or ask the operator for access."


class NotFoundError(AnswerError):
    """HTTP 404: the service has nothing under this address."""

    advice = "Check the base URL and the path."


class JobNotFoundError(NotFoundError):
    """HTTP 404 for a job: waiting would not help."""

    advice = (
        "Check the job id and the base URL: the id was never accepted here, belongs to another caller, "
        "or its record is past the service's retention. Older services lack some routes altogether."
    )


class PictureNotFoundError(NotFoundError):
    """HTTP 404 for a picture: the job has none, has none yet, or no longer has one."""

    advice = "Read the job's status first: only a completed job has a picture, and only within its retention."


class ConflictError(AnswerError):
    """HTTP 409: the job's present state does not allow this."""

    advice = "Read the job's status; wait until it is final, or choose another job id."


class ServiceBusyError(AnswerError):
    """HTTP 429 or 503: the service takes no more for now."""

    advice = "Send it again later with the same idempotency key, and with fewer requests at once."

    def __init__(
        self,
        call: str,
        status_code: int,
        detail: str,
        *,
        error_code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        hint = "" if retry_after_s is None else f" (the service asks to wait {retry_after_s:g} s)"
        super().__init__(call, status_code, f"{detail}{hint}", error_code=error_code)
        self.retry_after_s = retry_after_s


class ServiceFailedError(AnswerError):
    """HTTP 5xx: the service broke on this request."""

    advice = "Send it again with the same idempotency key; if it repeats, read the service's log."


class JobWaitTimeoutError(ServiceError, TimeoutError):
    """The job was not final in time; it may still become so."""

    def __init__(self, job_id: str, timeout_s: float, last_state: str | None) -> None:
        seen = "no status could be read" if last_state is None else f"it was last {last_state}"
        super().__init__(
            f"Job {job_id!r} was not final after {timeout_s:g} s: {seen}. "
            "Wait again with a longer timeout_s, or cancel the job."
        )
        self.job_id = job_id
        self.last_state = last_state


class BackgroundServerError(KitError, RuntimeError):
    """A server of the kit could not be started or stopped."""


class CallbackWaitTimeoutError(KitError, TimeoutError):
    """The expected callbacks did not arrive in time."""

    def __init__(self, job_id: str, wanted: int, received: int, timeout_s: float) -> None:
        super().__init__(
            f"{received} of {wanted} callback(s) for job {job_id!r} arrived within {timeout_s:g} s. "
            "Check the job's `callback` section, that it was submitted with this receiver's callback_url, "
            "and that the service can reach that address."
        )
        self.job_id = job_id
        self.received = received


class UnreadablePictureError(KitError, ValueError):
    """A picture could not be decoded, so it can be compared with nothing."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"Cannot decode {name}: {reason}. Validate it first; it may be truncated or no picture.")
