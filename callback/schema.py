"""The tables, for SQLite and PostgreSQL alike. `callback/migrations` brings a database to this shape."""

from typing import Any

import sqlalchemy as sa


class PlainText(sa.TypeDecorator[str]):
    """Text that every database can hold.

    PostgreSQL refuses NUL, and nothing that is stored as UTF-8 takes lone surrogates; both come in error messages (of
    operating systems, of libraries) and in ids that clients make up. They become U+FFFD.
    """

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        """Return the text as it will be stored and looked up."""
        del dialect
        if value is None or (value.isascii() and "\x00" not in value):
            return value
        whole = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return whole.replace("\x00", "\N{REPLACEMENT CHARACTER}")


metadata = sa.MetaData()

tracker_owner = sa.Table(
    "tracker_owner",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("holder", PlainText, nullable=False),
    sa.Column("taken_at", sa.Float(53), nullable=False),
)
"""One row: the tracker that may write. Every transaction checks its epoch (see `Store.transaction`)."""

signing_key = sa.Table(
    "signing_key",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("private_key", PlainText, nullable=False),
    sa.Column("made_at", sa.Float(53), nullable=False),
)
"""One row: what callbacks are signed with."""

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("key", PlainText, primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("owner", PlainText, nullable=False),
    sa.Column("job_id", PlainText, nullable=False),
    sa.Column("kind", PlainText, nullable=False),
    sa.Column("model", PlainText, nullable=False),
    sa.Column("state", PlainText, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("blamed", sa.Integer, nullable=False, default=0),
    sa.Column("holder", PlainText),
    sa.Column("claim_id", PlainText),
    sa.Column("request_json", PlainText, nullable=False),
    sa.Column("fingerprint", PlainText, nullable=False),
    sa.Column("idempotency_key", PlainText),
    sa.Column("callback_url", PlainText),
    sa.Column("callback_secret", PlainText),
    sa.Column("callback_signing_secret", PlainText),
    sa.Column("image_url", PlainText),
    sa.Column("expiry", sa.Float(53)),
    sa.Column("queued_at", sa.Float(53), nullable=False),
    sa.Column("waiting_since", sa.Float(53), nullable=False),
    sa.Column("started_at", sa.Float(53)),
    sa.Column("finished_at", sa.Float(53)),
    sa.Column("cancel_requested", sa.Boolean, nullable=False, default=False),
    sa.Column("superseded_at", sa.Float(53)),
    sa.Column("error", PlainText),
    sa.Column("error_code", PlainText),
    sa.Column("picture_key", PlainText),
    sa.Column("picture_sha256", PlainText),
    sa.Column("picture_size_bytes", sa.BigInteger),
    sa.Column("picture_width", sa.Integer),
    sa.Column("picture_height", sa.Integer),
    sa.Column("picture_deleted_at", sa.Float(53)),
    sa.Column("result_json", PlainText),
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
sa.Index("jobs_owner_seq", jobs.c.owner, jobs.c.seq)
sa.Index("jobs_owner_state_seq", jobs.c.owner, jobs.c.state, jobs.c.seq)
_is_open = jobs.c.finished_at.is_(None)
sa.Index("jobs_open", jobs.c.seq, sqlite_where=_is_open, postgresql_where=_is_open)
_is_final = jobs.c.finished_at.is_not(None)
sa.Index("jobs_finished_at", jobs.c.finished_at, sqlite_where=_is_final, postgresql_where=_is_final)
_has_picture = sa.and_(jobs.c.picture_size_bytes.is_not(None), jobs.c.picture_deleted_at.is_(None))
# It holds whatever the sum of the sizes needs, so that the rows themselves are not read for it.
sa.Index(
    "jobs_pictures_kept",
    jobs.c.finished_at,
    jobs.c.picture_size_bytes,
    jobs.c.picture_deleted_at,
    sqlite_where=_has_picture,
    postgresql_where=_has_picture,
)

idempotency_aliases = sa.Table(
    "idempotency_aliases",
    metadata,
    sa.Column("owner", PlainText, primary_key=True),
    sa.Column("idempotency_key", PlainText, primary_key=True),
    sa.Column("key", PlainText, sa.ForeignKey("jobs.key", ondelete="CASCADE"), nullable=False),
)
"""Idempotency-Keys of repeated submissions that were answered with an open job; the first key is in the job's row."""
sa.Index("idempotency_aliases_key", idempotency_aliases.c.key)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("key", PlainText, sa.ForeignKey("jobs.key", ondelete="CASCADE"), primary_key=True),
    sa.Column("webhook_id", PlainText, nullable=False),
    sa.Column("receiver", PlainText, nullable=False),
    sa.Column("state", PlainText, nullable=False),
    sa.Column("payload_status", PlainText, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("attempts_before", sa.Integer, nullable=False, default=0, server_default="0"),
    sa.Column("final", sa.Boolean, nullable=False, default=False),
    sa.Column("settles_by", sa.Float(53), nullable=False),
    sa.Column("give_up_at", sa.Float(53), nullable=False),
    sa.Column("first_settled_at", sa.Float(53)),
    sa.Column("attempted_at", sa.Float(53)),
    sa.Column("next_attempt_at", sa.Float(53)),
    sa.Column("reserved_at", sa.Float(53)),
    sa.Column("redelivery_id", PlainText),
    sa.Column("status_code", sa.Integer),
    sa.Column("response_preview", PlainText),
    sa.Column("error", PlainText),
)
"""The outbox. An attempt is reserved (`reserved_at`, a number of its own) in a transaction before anything is sent;
`next_attempt_at` is set while the delivery waits for the next one; `attempts_before` were made before the client asked
for a redelivery, and do not count for its back-off."""
_not_final = deliveries.c.final.is_(sa.false())
sa.Index("deliveries_due", deliveries.c.next_attempt_at, sqlite_where=_not_final, postgresql_where=_not_final)

delivery_attempts = sa.Table(
    "delivery_attempts",
    metadata,
    sa.Column("key", PlainText, sa.ForeignKey("deliveries.key", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("attempted_at", sa.Float(53), nullable=False),
    sa.Column("settled_at", sa.Float(53), nullable=False),
    sa.Column("state", PlainText, nullable=False),
    sa.Column("status_code", sa.Integer),
    sa.Column("error", PlainText),
)
"""The log of every attempt whose outcome is known."""
