"""Answers that misbehave as told."""

from collections.abc import AsyncIterator

from fastapi import Response
from fastapi.responses import StreamingResponse

from stress.receiver.faults import FaultScript, Turn

_MAX_DRIPS = 100


def misbehaved(turn: Turn, usual: Response, script: FaultScript) -> Response:
    """Return the answer that the turn's misbehaviour asks for in place of the usual one, without its delay."""
    fault = turn.misbehaviour
    answer = usual if fault.status is None else Response(fault.body, fault.status)
    answer.headers.update(fault.headers)
    return _dripping(answer, turn, script) if fault.drip_s else answer


def _dripping(answer: Response, turn: Turn, script: FaultScript) -> Response:
    body = bytes(answer.body)
    # With its length announced, the sender cannot tell the body from one that is only late.
    return StreamingResponse(_drips(body, turn, script), answer.status_code, headers=dict(answer.headers))


async def _drips(body: bytes, turn: Turn, script: FaultScript) -> AsyncIterator[bytes]:
    count = min(len(body), _MAX_DRIPS)
    size = -(-len(body) // count)
    for start in range(0, len(body), size):
        if not await script.delay(turn, turn.misbehaviour.drip_s / count):
            yield body[start:]
            return
        yield body[start : start + size]
