"""Who calls: the client behind a request, and whose jobs the request is about."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Query
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from callback.records import JobView
from serve_app.access.clients import PUBLIC, Client, Scope
from serve_app.access.keys import KeyRing
from serve_app.api.errors import Refused
from serve_app.api.wire import JobStatus, status_of
from serve_app.service import Service

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


def show(service: Service, caller: Caller, view: JobView) -> JobStatus:
    """Show a job as it is now; to an admin with its owner, and with addresses that lead to it."""
    shown = status_of(
        view, now=time.time(), position=service.mirror.position(view), service_url=service.settings.service_url
    )
    if caller.client.is_admin:
        shown.owner = view.owner
        if view.owner != caller.client.name:
            of = f"?owner={quote(view.owner)}"
            shown.result_url = shown.result_url and shown.result_url + of
            shown.image_url = shown.image_url and shown.image_url + of
    return shown


def calling(keys: KeyRing | None, scope: Scope) -> Callable[..., Awaitable[Caller]]:
    """Return the dependency of a route that needs `scope`. Without keys everybody is the same client."""

    async def anybody() -> Caller:
        return Caller(PUBLIC)

    async def known(
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
        owner: Annotated[str | None, Query(description="Another client, whose jobs are meant; for admins.")] = None,
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
