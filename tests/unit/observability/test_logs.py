"""What a line of the log holds."""

import json
import logging
from typing import Any

from observability.logs import JsonFormatter, job_context


def line_of(**fields: Any) -> dict[str, Any]:
    record = logging.makeLogRecord({"name": "darkroom.x", "levelname": "INFO", "msg": "told", "created": 0.5} | fields)
    line: dict[str, Any] = json.loads(JsonFormatter().format(record))
    return line


def test_a_line_holds_the_fields_of_the_event_and_nothing_of_the_record() -> None:
    assert line_of(seconds=2.5, _ray_timestamp_ns=1) == {
        "time": "1970-01-01T00:00:00.500000+00:00",
        "level": "info",
        "logger": "darkroom.x",
        "job_id": None,
        "message": "told",
        "seconds": 2.5,
    }


def test_a_line_is_of_the_job_that_it_names_or_that_it_is_logged_for() -> None:
    with job_context("job-1"):
        assert line_of()["job_id"] == "job-1"
        assert line_of(job_id="job-2")["job_id"] == "job-2"
    assert line_of()["job_id"] is None


def test_an_error_is_in_its_line() -> None:
    try:
        raise OSError("The disk is full.")
    except OSError as error:
        line = line_of(exc_info=(type(error), error, error.__traceback__))
    assert line["exception"].splitlines()[-1] == "OSError: The disk is full."
