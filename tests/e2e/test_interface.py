"""The documented interface against what the service does with whatever is thrown at it."""

import contextlib
import re

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import load_all_checks

from stress.errors import KitError
from tests.apps import App

load_all_checks()
EXAMPLES = 40


def test_no_route_answers_5xx_or_an_undocumented_status(app: App) -> None:
    schema = schemathesis.openapi.from_url(f"{app.url}/openapi.json")
    schema.config.update(base_url=app.url)
    checks = [
        schemathesis.checks.CHECKS.get_one(name)
        for name in ("not_a_server_error", "status_code_conformance", "response_schema_conformance")
    ]
    tried = 0
    for operation in schema.get_all_operations():
        found = operation.ok()

        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @_given(found)
        def call(case: schemathesis.Case) -> None:
            nonlocal tried
            tried += 1
            case.call_and_validate(checks=checks)

        call()
    assert tried > EXAMPLES
    with app.client() as client:
        for job in client.jobs(limit=500).inference_jobs:
            if not job.is_final:
                with contextlib.suppress(KitError):
                    client.cancel(job.job_id)


def _given(operation):  # type: ignore[no-untyped-def]
    from hypothesis import given

    return given(case=operation.as_strategy())


def test_every_error_in_the_document_has_a_sentence(app: App) -> None:
    document = httpx.get(f"{app.url}/openapi.json", trust_env=False).json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for status, answer in operation["responses"].items():
                assert re.search(r"\w{3}", answer["description"]), (path, method, status)


@pytest.mark.parametrize("field", ["prompt", "width", "seed", "callback_url", "expiry"])
def test_the_document_names_the_fields_of_a_request(app: App, field: str) -> None:
    document = httpx.get(f"{app.url}/openapi.json", trust_env=False).json()
    assert field in document["components"]["schemas"]["InferenceRequest"]["properties"]
