"""Which jobs may call back: what became of every submission of a session, by the job's id."""

from stress.errors import AnswerError, ServiceError, ServiceFailedError, UnexpectedAnswerError


class SubmittedIds:
    """Ids that were accepted, those that were refused, and those of submissions whose outcome nobody knows."""

    def __init__(self) -> None:
        self._accepted: set[str] = set()
        self._refused: set[str] = set()
        self._unsure: set[str] = set()
        self._unsure_without_id = 0

    @property
    def unsure_without_id(self) -> int:
        """How many submissions that left the id to the service were lost: each may be a job under an unknown id."""
        return self._unsure_without_id

    def accept(self, asked: str | None, answered: str) -> None:
        """Note a submission that was accepted; an id that was asked for is the job's, whatever the answer says."""
        self._accepted |= {answered} if asked is None else {answered, asked}

    def fail(self, asked: str | None, error: ServiceError) -> None:
        """Note a submission that was refused, or that broke so that the service may have taken it."""
        refused = isinstance(error, AnswerError) and not isinstance(error, ServiceFailedError | UnexpectedAnswerError)
        if asked is not None:
            (self._refused if refused else self._unsure).add(asked)
        elif not refused:
            self._unsure_without_id += 1

    def may_call_back(self, job_id: str) -> bool:
        """Whether a job of this id was, or may have been, accepted."""
        return job_id in self._accepted or job_id in self._unsure

    def was_refused(self, job_id: str) -> bool:
        """Whether this id was asked for, and never accepted."""
        return job_id in self._refused and not self.may_call_back(job_id)
