"""the key that callbacks are signed with, and the secrets of clients who want HMAC"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "signing_key",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("private_key", sa.Text(), nullable=False),
        sa.Column("made_at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.add_column("jobs", sa.Column("callback_signing_secret", sa.Text(), nullable=True))


def downgrade() -> None:
    """Take back."""
    op.drop_column("jobs", "callback_signing_secret")
    op.drop_table("signing_key")
