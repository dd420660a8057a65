"""What was last said of each user, and who says it"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "presence",
        sa.Column("user_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("last_active_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_presence"),
        schema="activity",
    )
    op.create_index(
        "ix_presence_online", "presence", ["user_id"], schema="activity", postgresql_where=sa.text("status <> 'OFFLINE'")
    )
    op.create_table(
        "speaker",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("replica", sa.String(), nullable=False),
        sa.Column("held_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_speaker"),
        sa.CheckConstraint("id = 1", name="ck_speaker_only_one"),
        schema="activity",
    )


def downgrade() -> None:
    op.drop_table("speaker", schema="activity")
    op.drop_table("presence", schema="activity")
