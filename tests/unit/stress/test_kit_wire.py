from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from stress.wire import InferenceRequest, JobStatus


def test_null_in_a_field_that_has_a_default_is_that_default() -> None:
    stated = {"job_id": "a", "status": "queued", "warnings": None, "seconds": None, "cancel_requested": None}
    status = JobStatus.model_validate({**stated, "error": None, "of_a_newer_service": None})
    assert (status.warnings, status.seconds, status.cancel_requested) == ((), {}, False)
    assert status.model_extra == {"of_a_newer_service": None}


def test_what_must_be_there_must_not_be_null() -> None:
    with pytest.raises(ValidationError):
        JobStatus.model_validate({"job_id": "a", "status": None})


def test_a_null_that_was_set_in_a_request_is_sent() -> None:
    request = InferenceRequest.model_validate({"prompt": "a cat", "seed": None})
    assert request.model_dump(exclude_unset=True) == {"prompt": "a cat", "seed": None}


@pytest.mark.parametrize(
    "wrong", [{"warnings": [1] * 100_000}, {"seconds": dict.fromkeys(map(str, range(100_000)), "long")}]
)
def test_thousands_of_wrong_entries_are_one_error(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        JobStatus.model_validate({"job_id": "a", "status": "queued", **wrong})
    assert caught.value.error_count() == 1


@pytest.mark.parametrize("offset", ["", "Z", "+00:00"])
def test_a_moment_without_an_offset_is_in_utc(offset: str) -> None:
    status = JobStatus.model_validate({"job_id": "a", "status": "queued", "queued_at": f"2026-11-29T01:02:03{offset}"})
    assert status.queued_at == datetime(2026, 11, 29, 1, 2, 3, tzinfo=UTC)


def test_a_duration_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValidationError, match="finite number"):
        JobStatus.model_validate_json('{"job_id": "a", "status": "queued", "seconds": {"denoising": NaN}}')
