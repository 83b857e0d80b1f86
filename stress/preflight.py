"""Whether there is a service to check, told apart in sentences: nobody there, nobody reachable, or somebody else."""

import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from stress.client import AsyncDarkroomClient
from stress.errors import AnswerError, KitError, ServiceBusyError, ServiceUnreachableError, UnauthorizedError
from stress.wire import ServiceInfo

_NAME_IT = "Name the service with --miner-url or ASYNC_MINER_URL."


class EnvironmentProblem(KitError):
    """Nothing could be checked, for a reason outside of the service's promises; the message says what to try."""


async def greet(client: AsyncDarkroomClient, url: str) -> ServiceInfo | None:
    """Ask the service at `url` who it is; None from one that answers only at /health.

    Raises:
        EnvironmentProblem: nothing answers, something else does, or the service takes no jobs.
    """
    try:
        info = await _root(client)
        await _demand_health(client, url, known=info is not None)
    except ServiceUnreachableError as error:
        raise EnvironmentProblem(_unreachable(url, error)) from error
    except UnauthorizedError as error:
        raise EnvironmentProblem(
            f"The service at {url} wants credentials: {error.detail}. "
            "Pass them with --header 'Authorization: ...', as the operator says."
        ) from error
    return info


async def _root(client: AsyncDarkroomClient) -> ServiceInfo | None:
    try:
        return await client.root()
    except UnauthorizedError:
        raise
    except AnswerError:
        return None


async def _demand_health(client: AsyncDarkroomClient, url: str, *, known: bool) -> None:
    try:
        await client.health()
    except UnauthorizedError:
        # A service that introduced itself may keep its health for its operator.
        if not known:
            raise
    except ServiceBusyError as error:
        raise EnvironmentProblem(
            f"The service at {url} is up but takes no jobs: {error.detail}. "
            "Wait until GET /health answers 200, or ask its operator."
        ) from error
    except AnswerError as error:
        if not known:
            raise EnvironmentProblem(
                f"{url} answers, but is no service of this protocol: neither GET / nor GET /health gave what they "
                f"should (HTTP {error.status_code}: {error.detail}). Another program may have this port. {_NAME_IT}"
            ) from error


def _unreachable(url: str, error: ServiceUnreachableError) -> str:
    causes = tuple(_causes(error))

    def came_of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    host, port = urlsplit(url).hostname, urlsplit(url).port
    if came_of(socket.gaierror):
        why = f"the host name {host!r} is not known here. Check its spelling, or give its address"
    elif came_of(ssl.SSLError):
        why = "no TLS connection came about. Check whether the service speaks http:// instead, and its certificate"
    elif came_of(ConnectionRefusedError):
        why = (
            f"nothing listens on port {port or 'of its scheme'} there (connection refused). Start the service, or "
            "correct the port; inside a container, 127.0.0.1 and localhost are the container itself"
        )
    elif came_of(TimeoutError):
        why = "no answer in time. Check the address, and whether a firewall drops the connection"
    else:
        why = f"{causes[-1]!r}. Check that a service of this protocol runs there, and the scheme (http, https)"
    return f"No service to check at {url}: {why}. {_NAME_IT}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Walk from an error down to what began it; the last one given is the deepest."""
    yield error
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _causes(one)
    below = error.__cause__ or error.__context__
    if below is not None:
        yield from _causes(below)
