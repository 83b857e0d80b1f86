"""Who sends a request: a client by its API key or its signature, or anybody where clients are not told apart."""

import math
import time
from collections.abc import Awaitable, Callable
from typing import Annotated
from uuid import uuid4

from fastapi import Depends, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from callback.allowance import Allowance
from callback.records import Remember
from serve_app.access import epistula
from serve_app.access.clients import PUBLIC, Client, Scope
from serve_app.access.keys import KeyRing
from serve_app.api.caller import Caller
from serve_app.api.errors import Refused
from serve_app.service import Service

_BEARER = HTTPBearer(auto_error=False, description="An API key.")


def calling(service: Service, scope: Scope) -> Callable[..., Awaitable[Caller]]:
    """Return the dependency of a route that needs `scope`. Without keys everybody is the same client."""
    keys, hotkey = service.keys, service.settings.hotkey

    async def anybody() -> Caller:
        _count(service.requests, PUBLIC)
        return Caller(PUBLIC)

    async def known(
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
        owner: Annotated[str | None, Query(description="Another client, whose jobs are meant; for admins.")] = None,
    ) -> Caller:
        assert keys is not None  # noqa: S101 - see below
        client = keys.client_of(credentials.credentials) if credentials else None
        if client is None and hotkey is not None and epistula.is_signed(request.headers):
            client = await _signer(service, keys, hotkey, request)
        if client is None:
            sentence = "Send a valid API key of this server as `Authorization: Bearer <key>`."
            raise Refused(401, "unauthenticated", sentence)
        _count(service.requests, client)
        if not client.may(scope):
            raise Refused(403, "forbidden", f"You may not {scope}. Ask the operator for a key with that scope.")
        if owner not in {None, client.name} and not client.is_admin:
            raise Refused(403, "forbidden", "Only an admin may name another client as owner.")
        return Caller(client, owner)

    return anybody if keys is None else known


def plain_calling(service: Service, scope: Scope) -> Callable[[Request], Awaitable[Caller]]:
    """Return what `calling` returns as a function of the request, which must have no query."""
    caller = calling(service, scope)

    async def anybody(_: Request) -> Caller:
        return await caller()

    async def known(request: Request) -> Caller:
        return await caller(request, await _BEARER(request))

    return anybody if service.keys is None else known


async def _signer(service: Service, keys: KeyRing, hotkey: str, request: Request) -> Client:
    """Return the client whose signed request this is. Raises `Refused`, and what the tracker raises."""
    try:
        signed = epistula.read(request.headers, hotkey=hotkey, now=time.time())
        client = keys.client_of_hotkey(signed.sender)
        # A stranger's body is not worth reading, nor hashing.
        if client is None:
            raise Refused(403, "forbidden", "Sender not allowed. Ask the operator to enter your hotkey.")
        body = await request.body()
        # Again: a body may take long enough for the tracker to have forgotten that the request came before.
        epistula.check_fresh(signed, time.time())
        epistula.check(signed, request.method, body)
    except epistula.NotSigned as error:
        raise Refused(401, "unauthenticated", str(error)) from None
    await service.client.remember(
        Remember(f"{signed.sender} {signed.uuid}", uuid4().hex, signed.signed_at, epistula.FRESH_S)
    )
    return client


def _count(requests: Allowance | None, client: Client) -> None:
    """Take a request from what the client may send. Raises `Refused` if that is used up."""
    if requests is None:
        return
    if (wait_s := requests.wait_s(client.name)) > 0:
        sentence = f"You send more requests a second than this server takes of one client. Wait {math.ceil(wait_s)} s."
        raise Refused(429, "too_many_requests", f"{sentence} Long polls (`?wait=25`) need fewer.", wait_s)
    requests.use(client.name, 1)
