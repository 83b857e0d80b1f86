"""Structured logs: one JSON object a line, with the job id of whatever the line is about."""

import contextvars
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

_job_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("darkroom_job_id", default=None)

ROOT_LOGGER = "darkroom"
# Built once: `json.dumps` would build one for every line.
_ENCODER = json.JSONEncoder(default=str, ensure_ascii=False)
# Ray gives every record of its workers a moment of its own.
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "job_id", "_ray_timestamp_ns"}


@contextmanager
def job_context(job_id: str) -> Iterator[None]:
    """Put `job_id` into every line logged inside, in this task or thread."""
    token = _job_id.set(job_id)
    try:
        yield
    finally:
        _job_id.reset(token)


class JsonFormatter(logging.Formatter):
    """Format a record as one JSON object; `extra` fields become keys of their own."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a newline."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "job_id": getattr(record, "job_id", None) or _job_id.get(),
            "message": record.getMessage(),
        }
        line.update({k: v for k, v in vars(record).items() if k not in _STANDARD_FIELDS})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _ENCODER.encode(line)


def get_logger(name: str) -> logging.Logger:
    """Return the logger `darkroom.<name>`."""
    return logging.getLogger(f"{ROOT_LOGGER}.{name}")


def configure(level: str = "INFO") -> None:
    """Send the `darkroom` loggers to standard error as JSON lines. Calling it again changes only the level."""
    root = logging.getLogger(ROOT_LOGGER)
    root.setLevel(level.upper())
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonFormatter())
        root.addHandler(handler)
        root.propagate = False
