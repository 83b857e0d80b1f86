"""further idempotency keys of a job, back-off of a redelivery"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "idempotency_aliases",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["key"], ["jobs.key"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("owner", "idempotency_key"),
    )
    op.create_index("idempotency_aliases_key", "idempotency_aliases", ["key"], unique=False)
    op.add_column("deliveries", sa.Column("attempts_before", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Take back."""
    op.drop_column("deliveries", "attempts_before")
    op.drop_table("idempotency_aliases")
