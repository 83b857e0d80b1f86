"""From a client's request to a job: the checks that need the service, the defaults, the seed."""

import hashlib
import json
import secrets
import time
from uuid import uuid4

from callback.errors import EgressRefused
from callback.records import Callback, NewJob
from deployments.errors import AdapterError
from serve_app import adapter_lookup
from serve_app.access.clients import Client
from serve_app.api.errors import InvalidFieldError, Refused
from serve_app.api.wire import MAX_SEED, InferenceRequest, image_url
from serve_app.job_request import JobRequest
from serve_app.service import OfferedModel, Service


async def new_job(service: Service, client: Client, body: InferenceRequest, idempotency_key: str | None) -> NewJob:
    """Return the job that the request describes. Raises `InvalidFieldError`, `Refused`."""
    model = _model(service, body)
    _check_pixels(service, body)
    adapter = await _adapter(model, body.lora_path)
    job_id = body.job_id or str(uuid4())
    callback = await _callback(service, client, body, job_id)
    defaults = model.description
    request = JobRequest(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or None,
        adapter=adapter,
        width=body.width,
        height=body.height,
        num_inference_steps=body.num_inference_steps or defaults.default_steps,
        guidance_scale=defaults.default_guidance if body.guidance_scale is None else body.guidance_scale,
        seed=secrets.randbelow(MAX_SEED + 1) if body.seed is None else body.seed,
        asked_seed=body.seed,
        warnings=_warnings(body),
    )
    return NewJob(
        key=new_key(),
        owner=client.name,
        job_id=job_id,
        kind="text_to_image",
        model=model.settings.name,
        request_json=request.model_dump_json(),
        fingerprint=_fingerprint(body, model.settings.name),
        callback=callback,
        expiry=body.expiry.timestamp() if body.expiry else None,
        idempotency_key=idempotency_key,
        pixel_steps=request.width * request.height * request.num_inference_steps,
    )


def new_key() -> str:
    """Return a key of our own for a job: unique, and ordered by time to the millisecond."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def _fingerprint(body: InferenceRequest, model: str) -> str:
    """Return a digest that is equal for submissions that ask for the same."""
    fields = body.model_dump(mode="json") | {"model": model}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _model(service: Service, body: InferenceRequest) -> OfferedModel:
    name = body.model or service.default_model
    if name not in service.models:
        raise InvalidFieldError("model", f"there is no model {name!r}; this server offers {', '.join(service.models)}.")
    return service.models[name]


def _check_pixels(service: Service, body: InferenceRequest) -> None:
    pixels, limit = body.width * body.height, service.settings.max_pixels
    if pixels > limit:
        raise InvalidFieldError("width", f"width x height is {pixels} pixels; this server renders at most {limit}.")


async def _adapter(model: OfferedModel, lora_path: str | None) -> str | None:
    """Return the adapter's plain name; None for the base model."""
    if not lora_path:
        return None
    try:
        return (await model.adapters.resolve(lora_path)).name
    except TimeoutError:
        sentence = f"The adapter folder did not answer within {adapter_lookup.TIMEOUT_S:g} s. Try again later."
        raise Refused(503, "adapters_unavailable", sentence) from None
    except AdapterError as error:
        raise InvalidFieldError("lora_path", str(error), error.code) from None


async def _callback(service: Service, client: Client, body: InferenceRequest, job_id: str) -> Callback | None:
    url = body.callback_url
    if url is None:
        return None
    try:
        await service.policy.check(url)
    except EgressRefused as error:
        raise InvalidFieldError("callback_url", str(error), error.code) from None
    image = image_url(service.settings.service_url, job_id)
    return Callback(url, body.callback_secret, image, client.signing_secret)


def _warnings(body: InferenceRequest) -> list[str]:
    warnings = []
    if body.expiry is not None and body.expiry.timestamp() < time.time():
        warnings.append("expiry has passed already: the picture is rendered, but no callback will be sent.")
    if body.callback_secret is not None and body.callback_url is None:
        warnings.append("callback_secret has no effect without callback_url.")
    return warnings
