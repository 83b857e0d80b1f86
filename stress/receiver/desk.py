"""What the receiver's routes share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeAlias, cast

from fastapi import Depends, Request

from stress.receiver.faults import FaultScript
from stress.receiver.log import CallbackLog
from stress.receiver.picture_checks import PictureChecks
from stress.receiver.signatures import SignatureVerifier
from stress.receiver.storage import Storage


@dataclass(frozen=True)
class Desk:
    """What the routes work on. `hang_up` cuts the connection from an address.

    `secret` is what callbacks must carry (None: anything); `control_token` lets others than loopback set misbehaviour.
    """

    log: CallbackLog
    storage: Storage
    script: FaultScript
    checks: PictureChecks
    verifier: SignatureVerifier
    secret: str | None
    control_token: str | None
    hang_up: Callable[[tuple[str, int]], None]


def desk_of(request: Request) -> Desk:
    """Return the desk of the app that a request came to."""
    return cast(Desk, request.app.state.desk)


AtDesk: TypeAlias = Annotated[Desk, Depends(desk_of)]
