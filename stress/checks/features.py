"""What a service can beyond the protocol's first form, by its own word at the root path."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from stress.checks.session import Session
from stress.errors import AnswerError, ServiceBusyError, ServiceFailedError


@dataclass(frozen=True, slots=True)
class Features:
    """Whether a service offers these routes. Where it offers one, it must work; where not, its check is skipped."""

    cancel: bool
    redeliver: bool

    @property
    def complete(self) -> bool:
        """Whether this is the complete protocol: what has no route of its own must be there as well.

        That is: idempotency keys, repeated submissions of a live id, redirects that are not followed, and every
        field checked.
        """
        return self.cancel and self.redeliver


async def features_of(session: Session) -> Features:
    """Ask the service what it offers; nothing more than the first form if it does not say.

    Raises:
        ServiceUnreachableError, ServiceBusyError, ServiceFailedError: what it offers is not known; a check that is
            skipped for that would make it look like a service that offers less.
    """
    try:
        info = await session.ask(session.client.root)
    except AnswerError as error:
        if isinstance(error, ServiceBusyError | ServiceFailedError) and error.status_code != HTTPStatus.NOT_IMPLEMENTED:
            raise
        return Features(cancel=False, redeliver=False)
    routes = (info.model_extra or {}).get("endpoints")
    stated = routes.values() if isinstance(routes, Mapping) else routes if isinstance(routes, list) else ()
    offered = [str(route) for route in stated]
    return Features(
        cancel=any(route.startswith("DELETE /inference/") for route in offered),
        redeliver=any(route.startswith("POST /inference/") and route.endswith("/redeliver") for route in offered),
    )
