"""`/misbehaviour`: tell a receiver in another process to misbehave.

`PUT` sets what it does from now on (one misbehaviour or a list of them, in place of what was set), `POST` adds one,
`GET` shows what is left, `DELETE` ends it all and the delays that are running. Callers on this machine may do so by its
loopback address; others, and those that came by another name, need `Authorization: Bearer <control token>`.
"""

import hmac
import ipaddress
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request, status
from pydantic import Field

from stress.receiver.desk import AtDesk
from stress.receiver.faults import MAX_QUEUED, Misbehaviour

MisbehaviourList = Annotated[tuple[Misbehaviour, ...], Field(max_length=MAX_QUEUED)]


async def _may_control(request: Request, desk: AtDesk) -> None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if desk.control_token is not None and scheme.lower() == "bearer":
        if hmac.compare_digest(desk.control_token.encode(), token.strip().encode()):
            return
    elif _is_local(request):
        return
    raise HTTPException(
        status.HTTP_403_FORBIDDEN,
        "Misbehaviour is set from this machine by its loopback address, or with the receiver's control token. "
        "Start the receiver with one and send it as `Authorization: Bearer <token>`.",
    )


router = APIRouter(prefix="/misbehaviour", dependencies=[Depends(_may_control)])


@router.get("")
async def show(desk: AtDesk) -> MisbehaviourList:
    """What callbacks will meet, in order, with the `times` that are left."""
    return desk.script.queue()


@router.put("")
async def put(asked: Misbehaviour | MisbehaviourList, desk: AtDesk) -> MisbehaviourList:
    """Misbehave so from now on; returns what is set."""
    desk.script.replace((asked,) if isinstance(asked, Misbehaviour) else asked)
    return desk.script.queue()


@router.post("")
async def add(asked: Misbehaviour, desk: AtDesk) -> MisbehaviourList:
    """Misbehave so too, after what is set already; returns all of it."""
    try:
        desk.script.add(asked)
    except ValueError as error:
        raise HTTPException(status.HTTP_409_CONFLICT, str(error)) from error
    return desk.script.queue()


@router.delete("")
async def delete(desk: AtDesk) -> MisbehaviourList:
    """Behave again; returns the empty list."""
    desk.script.clear()
    return ()


def _is_local(request: Request) -> bool:
    # A web page can make the operator's browser ask this machine, under a name of the page's own (DNS rebinding).
    name = request.url.hostname or ""
    peer = request.client.host if request.client is not None else ""
    return _is_loopback(peer) and (name == "localhost" or _is_loopback(name))


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback
