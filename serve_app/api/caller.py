"""Who calls: the client behind a request, and whose jobs the request is about."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from serve_app.access.clients import PUBLIC, Client, Scope
from serve_app.access.keys import NAME_PATTERN, KeyRing
from serve_app.api.errors import Refused

_BEARER = HTTPBearer(auto_error=False, description="An API key.")


@dataclass(frozen=True, slots=True)
class Caller:
    """A client, and whose jobs it asked for; None if it did not say."""

    client: Client
    asked_owner: str | None = None

    @property
    def owner(self) -> str:
        """Whose job a job id means."""
        return self.asked_owner or self.client.name

    @property
    def listed(self) -> str | None:
        """Whose jobs a list shows; None for those of all."""
        return self.asked_owner if self.client.is_admin else self.owner


def calling(keys: KeyRing | None, scope: Scope) -> Callable[..., Awaitable[Caller]]:
    """Return the dependency of a route that needs `scope`. Without keys everybody is the same client."""

    async def anybody() -> Caller:
        return Caller(PUBLIC)

    async def known(
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
        owner: Annotated[
            str | None, Query(pattern=NAME_PATTERN, description="Another client, whose jobs are meant; for admins.")
        ] = None,
    ) -> Caller:
        client = keys.client_of(credentials.credentials) if keys and credentials else None
        if client is None:
            sentence = "Send a valid API key of this server as `Authorization: Bearer <key>`."
            raise Refused(401, "unauthenticated", sentence)
        if not client.may(scope):
            raise Refused(403, "forbidden", f"This API key may not {scope}. Ask the operator for one with that scope.")
        if owner not in {None, client.name} and not client.is_admin:
            raise Refused(403, "forbidden", "Only an admin may name another client as owner.")
        return Caller(client, owner)

    return anybody if keys is None else known
