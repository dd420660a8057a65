"""Model configs that came inline with requests"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "model_configs",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("owner_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("protocol", sa.String(), nullable=False),
        sa.Column("auth", sa.String(), nullable=False),
        sa.Column("base_url", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("sealed_key", sa.String(), nullable=True),
        sa.Column("key_hint", sa.String(), nullable=True),
        sa.Column("key_fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("is_hidden", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_model_configs"),
        schema="llm_router",
    )
    op.create_index(
        "uq_model_configs_inline",
        "model_configs",
        ["owner_id", "provider", "base_url", "model", "key_fingerprint", "protocol", "auth"],
        unique=True,
        schema="llm_router",
        postgresql_where=sa.text("is_hidden"),
    )
    op.create_index("ix_model_configs_owner_id", "model_configs", ["owner_id"], schema="llm_router")


def downgrade() -> None:
    op.drop_table("model_configs", schema="llm_router")
