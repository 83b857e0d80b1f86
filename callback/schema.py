"""The tables, for SQLite and PostgreSQL alike. `callback/migrations` brings a database to this shape."""

import sqlalchemy as sa

metadata = sa.MetaData()

tracker_owner = sa.Table(
    "tracker_owner",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("taken_at", sa.Float(53), nullable=False),
)
"""One row: the tracker that may write. Every transaction checks its epoch (see `Store.transaction`)."""

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("blamed", sa.Integer, nullable=False, default=0),
    sa.Column("holder", sa.Text),
    sa.Column("claim_id", sa.Text),
    sa.Column("request_json", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("callback_url", sa.Text),
    sa.Column("callback_secret", sa.Text),
    sa.Column("image_url", sa.Text),
    sa.Column("expiry", sa.Float(53)),
    sa.Column("queued_at", sa.Float(53), nullable=False),
    sa.Column("started_at", sa.Float(53)),
    sa.Column("finished_at", sa.Float(53)),
    sa.Column("cancel_requested", sa.Boolean, nullable=False, default=False),
    sa.Column("superseded_at", sa.Float(53)),
    sa.Column("error", sa.Text),
    sa.Column("error_code", sa.Text),
    sa.Column("picture_key", sa.Text),
    sa.Column("picture_sha256", sa.Text),
    sa.Column("picture_size_bytes", sa.BigInteger),
    sa.Column("picture_width", sa.Integer),
    sa.Column("picture_height", sa.Integer),
    sa.Column("picture_deleted_at", sa.Float(53)),
    sa.Column("result_json", sa.Text),
)
sa.Index("jobs_seq", jobs.c.seq, unique=True)
_is_current = jobs.c.superseded_at.is_(None)
sa.Index(
    "jobs_current_id",
    jobs.c.owner,
    jobs.c.job_id,
    unique=True,
    sqlite_where=_is_current,
    postgresql_where=_is_current,
)
_has_key = jobs.c.idempotency_key.is_not(None)
sa.Index(
    "jobs_idempotency_key",
    jobs.c.owner,
    jobs.c.idempotency_key,
    unique=True,
    sqlite_where=_has_key,
    postgresql_where=_has_key,
)
sa.Index("jobs_state_seq", jobs.c.state, jobs.c.seq)
sa.Index("jobs_finished_at", jobs.c.finished_at)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("key", sa.Text, sa.ForeignKey("jobs.key", ondelete="CASCADE"), primary_key=True),
    sa.Column("webhook_id", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("payload_status", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("final", sa.Boolean, nullable=False, default=False),
    sa.Column("settles_by", sa.Float(53), nullable=False),
    sa.Column("give_up_at", sa.Float(53), nullable=False),
    sa.Column("first_settled_at", sa.Float(53)),
    sa.Column("attempted_at", sa.Float(53)),
    sa.Column("next_attempt_at", sa.Float(53)),
    sa.Column("redelivery_id", sa.Text),
    sa.Column("status_code", sa.Integer),
    sa.Column("response_preview", sa.Text),
    sa.Column("error", sa.Text),
)
_not_final = deliveries.c.final.is_(sa.false())
sa.Index("deliveries_due", deliveries.c.next_attempt_at, sqlite_where=_not_final, postgresql_where=_not_final)

delivery_attempts = sa.Table(
    "delivery_attempts",
    metadata,
    sa.Column("key", sa.Text, sa.ForeignKey("deliveries.key", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("attempted_at", sa.Float(53), nullable=False),
    sa.Column("settled_at", sa.Float(53), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("status_code", sa.Integer),
    sa.Column("error", sa.Text),
)
"""The log of every attempt whose outcome is known."""
