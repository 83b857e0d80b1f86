"""A store with a past: jobs that have ended, each with a picture's record, a delivered callback and its log."""

from callback.store import Store

_JOBS = """
INSERT INTO jobs (
    key, seq, owner, job_id, kind, model, state, attempt, blamed, request_json, fingerprint, idempotency_key,
    callback_url, callback_secret, image_url, queued_at, waiting_since, started_at, finished_at, cancel_requested,
    picture_key, picture_sha256, picture_size_bytes, picture_width, picture_height, result_json
)
WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :count)
SELECT
    printf('%032x', n), n + 1, :owner, 'job-' || lower(hex(randomblob(12))), 'text_to_image', 'sd',
    iif(n % 1000 = 0, 'failed', 'completed'), 1, 0,
    '{"prompt": "' || replace(hex(zeroblob(150)), '0', 'x') || '", "width": 1024, "height": 1024}',
    lower(hex(randomblob(32))), iif(n % 2, 'idempotent-' || n, NULL),
    'https://receiver.example/callback', 's3cret', 'https://service.example/images/' || n || '.png',
    :last - (:count - n) * :apart - 10, :last - (:count - n) * :apart - 10, :last - (:count - n) * :apart - 5,
    :last - (:count - n) * :apart, FALSE,
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


def write_past_jobs(url: str, count: int, *, owner: str, last: float, apart_s: float) -> None:
    """Fill the SQLite store at `url` with `count` finished jobs, `apart_s` seconds apart, up to the moment `last`."""
    store = Store(url)
    store.prepare()
    if count:
        epoch = store.acquire("past", last)
        with store.transaction(epoch) as tx:
            tx.exec_driver_sql(_JOBS, {"count": count, "owner": owner, "last": last, "apart": apart_s})
            tx.exec_driver_sql(_DELIVERIES)
            tx.exec_driver_sql(_ATTEMPTS)
        store.release(epoch)
    store.close()
