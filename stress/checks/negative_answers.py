"""Negative checks of single answers: requests that must be refused (422), and ids that nobody knows (404)."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from uuid import uuid4

from stress.checks.features import features_of
from stress.checks.guard import guarded
from stress.checks.jobs import Watch
from stress.checks.negative_callbacks import CHEAP
from stress.checks.outcome import CheckReport, Fault, Finding
from stress.checks.session import Session
from stress.errors import AnswerError, NotFoundError, ServiceError

INVALID: dict[str, dict[str, Any]] = {
    "a prompt that is no text": {"prompt": 7},
    "a width below 64": {"width": 63},
    "a height above 2048": {"height": 2049},
    "no steps at all": {"num_inference_steps": 0},
    "101 steps": {"num_inference_steps": 101},
    "a guidance scale above 20": {"guidance_scale": 20.5},
    "a guidance scale below 0": {"guidance_scale": -1},
    "a seed that is no number": {"seed": "red"},
    "an expiry that is no moment": {"expiry": "tomorrow"},
}
"""What every service of the protocol refuses."""
INVALID_WHEN_COMPLETE: dict[str, dict[str, Any]] = {
    "a blank prompt": {"prompt": "  \n"},
    "a negative seed": {"seed": -1},
    "a callback address that is none": {"callback_url": "not an address"},
    "a callback address of another scheme": {"callback_url": "file:///etc/hostname"},
    "a job id that is a path": {"job_id": "../kit-path"},
    "a job id that starts with a dot": {"job_id": ".kit-hidden"},
}
"""What the first form let pass, and the complete protocol refuses."""


async def check_invalid_requests(session: Session) -> CheckReport:
    """Requests with a wrong field are refused with 422 and a reason."""
    name, title = "invalid-requests", "Requests with a wrong field are refused (422)"

    async def body(watch: Watch) -> CheckReport:
        complete = (await features_of(session)).complete
        findings, passed = [], []
        for what, fields in INVALID.items():
            findings += await _refusal_faults(watch, what, fields)
        for what, fields in INVALID_WHEN_COMPLETE.items():
            faults = await _refusal_faults(watch, what, fields)
            if complete:
                findings += faults
            elif faults:
                passed.append(what)
        note = f"Let pass, as the first form did: {', '.join(passed)}." if passed else None
        return watch.report(name, title, [], findings=findings, note=note)

    return await guarded(session, name, title, 0, body)


async def check_unknown_id(session: Session) -> CheckReport:
    """An id that was never accepted is answered 404 on every route."""
    name, title = "unknown-id", "An unknown job id is answered 404"

    async def body(watch: Watch) -> CheckReport:
        job_id, client = f"kit-unknown-{uuid4().hex}", session.client
        calls: dict[str, Callable[[str], Awaitable[object]]] = {
            "status": client.status,
            "result": client.result,
            "image": client.image,
        }
        features = await features_of(session)
        if features.cancel:
            calls["cancel"] = client.cancel
        if features.redeliver:
            calls["redeliver"] = client.redeliver
        findings = []
        for what, call in calls.items():
            try:
                await session.ask(partial(call, job_id))
            except NotFoundError:
                continue
            except ServiceError as error:
                sentence = f"The {what} of an unknown job: expected HTTP 404. {error}"
            else:
                sentence = f"The {what} of an unknown job was answered with success, expected HTTP 404."
            findings.append(Finding(fault=Fault.WRONG_ANSWER, sentence=sentence, job_id=job_id))
        return watch.report(name, title, [], findings=findings)

    return await guarded(session, name, title, 0, body)


async def _refusal_faults(watch: Watch, what: str, fields: dict[str, Any]) -> list[Finding]:
    request = watch.request(seed=41, **CHEAP)
    try:
        answer = await watch.session.ask(lambda: watch.session.submit(request, **fields))
    except AnswerError as error:
        if error.status_code == 422 and error.detail:
            return []
        sentence = f"{what.capitalize()}: expected HTTP 422 with a reason. {error}"
        return [Finding(fault=Fault.WRONG_ANSWER, sentence=sentence)]
    except ServiceError as error:
        return [Finding(fault=Fault.NO_ANSWER, sentence=f"{what.capitalize()}: {error}")]
    sentence = f"{what.capitalize()} was accepted, expected HTTP 422."
    return [Finding(fault=Fault.WRONG_ANSWER, sentence=sentence, job_id=answer.job_id)]
