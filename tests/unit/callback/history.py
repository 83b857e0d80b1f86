"""Fills a SQLite store with jobs that have ended, each with a picture, a delivered callback and its log."""

from callback.store import Store

NOW = 1_900_000_000.0

_JOBS = """
INSERT INTO jobs (
    key, seq, owner, job_id, kind, model, state, attempt, blamed, request_json, fingerprint, idempotency_key,
    callback_url, callback_secret, image_url, queued_at, waiting_since, started_at, finished_at, cancel_requested,
    picture_key, picture_sha256, picture_size_bytes, picture_width, picture_height, result_json
)
WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :count)
SELECT
    printf('%032x', n), n + 1, 'anyone', 'job-' || lower(hex(randomblob(12))), 'text_to_image', 'sd',
    iif(n % 1000 = 0, 'failed', 'completed'), 1, 0,
    '{"prompt": "' || replace(hex(zeroblob(150)), '0', 'x') || '", "width": 1024, "height": 1024}',
    lower(hex(randomblob(32))), iif(n % 2, 'idempotent-' || n, NULL),
    'https://receiver.example/callback', 's3cret', 'https://service.example/images/' || n || '.png',
    :now - :count + n - 10, :now - :count + n - 10, :now - :count + n - 5, :now - :count + n, FALSE,
    printf('%032x', n) || '/1.png', lower(hex(randomblob(32))), 50000, 1024, 1024,
    '{"seed": 1, "determinism": "exact", "seconds": {"denoising": 3.25, "decoding": 0.5}}'
FROM numbers
"""
_DELIVERIES = """
INSERT INTO deliveries (
    key, webhook_id, receiver, state, payload_status, attempts, final, settles_by, give_up_at, first_settled_at,
    attempted_at, status_code, response_preview
)
SELECT
    key, 'msg_' || key, 'receiver.example:443', 'delivered', 'completed', 1, TRUE, finished_at + 30,
    finished_at + 3600, finished_at + 1, finished_at, 200, '{"message": "Callback received"}'
FROM jobs
"""
_ATTEMPTS = """
INSERT INTO delivery_attempts (key, attempt, attempted_at, settled_at, state, status_code)
SELECT key, 1, attempted_at, first_settled_at, state, status_code FROM deliveries
"""


def fill(url: str, count: int) -> None:
    """Write `count` finished jobs, a second apart, the last of them at `NOW`."""
    store = Store(url)
    store.prepare()
    with store.transaction(store.acquire("history", NOW)) as tx:
        tx.exec_driver_sql(_JOBS, {"now": NOW, "count": count})
        tx.exec_driver_sql(_DELIVERIES)
        tx.exec_driver_sql(_ATTEMPTS)
    store.close()


def key_of(n: int) -> str:
    return f"{n:032x}"
