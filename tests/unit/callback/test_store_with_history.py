"""100,000 finished jobs in the store cost neither memory nor time."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from callback import delivery_rows, job_rows
from callback.states import JobState
from callback.store import Store
from tests.unit.callback.history import NOW, fill, key_of

JOBS = 100_000
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('history')}/jobs.db"
    fill(url, JOBS)
    return url


def test_a_long_history_costs_neither_memory_nor_time(history: str) -> None:
    process = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("history_process.py")), history],
        capture_output=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    figures: dict[str, float] = json.loads(process.stdout)
    print("\n" + ", ".join(f"{name} {value:.2f}" for name, value in figures.items()))  # noqa: T201 - for the record

    assert figures["start_to_accepting_s"] < 5
    assert figures["resident_mb"] < 300
    assert figures["submit_ratio"] < 1.5
    assert figures["three_pages_s"] < 1
    assert figures["sweep_s"] < 1


# ---- how the statements find their rows ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plans(history: str) -> Iterator[Callable[..., list[str]]]:
    """Return what SQLite says of how it carries a function's statements out."""
    store = Store(history)
    seen: list[str] = []

    def explain(_c: Any, cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        asked = cursor.connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters[0] if many else parameters)
        seen.extend(row[3] for row in asked)

    def plans_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[str]:
        seen.clear()
        with store._reader.connect() as tx:
            sa.event.listen(tx, "before_cursor_execute", explain)
            function(tx, *args, **kwargs)
            tx.rollback()
        return list(seen)

    yield plans_of
    store.close()


@pytest.mark.parametrize(
    ("function", "args", "index"),
    [
        (job_rows.open_jobs, (), "SCAN jobs USING INDEX jobs_open"),
        (job_rows.last_seq, (), "USING COVERING INDEX jobs_seq"),
        (job_rows.by_key, ("key",), "(key=?)"),
        (job_rows.by_client_id, ("anyone", "id"), "jobs_current_id (owner=? AND job_id=?)"),
        (job_rows.by_idempotency_key, ("anyone", "key"), "jobs_idempotency_key (owner=? AND idempotency_key=?)"),
        (job_rows.page, ("anyone", (), None, 100), "jobs_owner_seq (owner=?)"),
        (job_rows.page, ("anyone", (), 50_000, 100), "jobs_owner_seq (owner=? AND seq<?)"),
        (job_rows.page, ("anyone", (JobState.FAILED,), None, 100), "jobs_owner_state_seq (owner=? AND state=?)"),
        (job_rows.page, ("anyone", tuple(JobState), None, 100), "jobs_owner_state_seq (owner=? AND state=?)"),
        (job_rows.claim, ([key_of(1), key_of(2)], 0, "holder", "claim"), "(key=?)"),
        (job_rows.finished_before, (NOW - JOBS + 10, 200), "jobs_finished_at (finished_at<?)"),
        (job_rows.pictures_bytes, (), "USING COVERING INDEX jobs_pictures_kept"),
        (job_rows.oldest_pictures, (200,), "USING INDEX jobs_pictures_kept"),
        (job_rows.picture_deleted, ([key_of(1)], NOW), "(key=?)"),
        (job_rows.delete, ([key_of(1)],), "(key=?)"),
        (delivery_rows.due, (NOW, 100), "deliveries_due (next_attempt_at<?)"),
        (delivery_rows.unsettled, (NOW,), "deliveries_due (next_attempt_at=?)"),
        (delivery_rows.reserve, ("key", NOW), "(key=?)"),
        (delivery_rows.parcel, (key_of(1),), "(key=?)"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_statement_finds_its_rows_by_index(
    plans: Callable[..., list[str]], function: Callable[..., Any], args: tuple[Any, ...], index: str
) -> None:
    steps = plans(function, *args)

    assert index in steps[0]
    assert not [step for step in steps if "TEMP B-TREE" in step]
    assert not [step for step in steps if step.startswith("SCAN") and "INDEX" not in step]
