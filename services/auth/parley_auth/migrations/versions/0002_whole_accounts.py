"""Disabled users, API keys, roles, settings, revocations, audit"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("users", sa.Column("status", sa.String(), nullable=False, server_default="active"), schema="auth")
    op.add_column("users", sa.Column("tokens_valid_from", INSTANT, nullable=True), schema="auth")
    op.alter_column("users", "last_login_at", nullable=True, schema="auth")
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("prefix", sa.String(), nullable=False),
        sa.Column("scopes", JSONB(), nullable=False),
        sa.Column("models", JSONB(), nullable=True),
        sa.Column("budget_usd", sa.Numeric(), nullable=True),
        sa.Column("expires_at", INSTANT, nullable=True),
        sa.Column("last_used_at", INSTANT, nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("revoked_at", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("hash", name="uq_api_keys_hash"),
        sa.ForeignKeyConstraint(["user_id"], ["auth.users.id"], name="fk_api_keys_user_id", ondelete="CASCADE"),
        schema="auth",
    )
    op.create_index("ix_api_keys_user_id", "api_keys", ["user_id"], schema="auth")
    op.create_table(
        "roles",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("permissions", JSONB(), nullable=False),
        sa.Column("limits", JSONB(), nullable=False),
        sa.Column("tokens_valid_from", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_roles"),
        schema="auth",
    )
    op.create_table(
        "system_settings",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("said", JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_system_settings"),
        sa.CheckConstraint("id = 1", name="ck_system_settings_only_one"),
        schema="auth",
    )
    op.create_table(
        "personal_settings",
        sa.Column("user_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("said", JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_personal_settings"),
        sa.ForeignKeyConstraint(["user_id"], ["auth.users.id"], name="fk_personal_settings_user_id", ondelete="CASCADE"),
        schema="auth",
    )
    op.create_table(
        "revocations",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("said", JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_revocations"),
        schema="auth",
    )
    op.create_index("ix_revocations_at", "revocations", ["at"], schema="auth")
    op.create_table(
        "deleted_users",
        sa.Column("user_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("deleted_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_deleted_users"),
        schema="auth",
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("actor_id", sa.Integer(), nullable=True),
        sa.Column("act", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("before", JSONB(), nullable=True),
        sa.Column("after", JSONB(), nullable=True),
        sa.Column("request_id", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
        schema="auth",
    )
    op.create_index("ix_audit_at", "audit", ["at"], schema="auth")


def downgrade() -> None:
    for table in ("audit", "deleted_users", "revocations", "personal_settings", "system_settings", "roles", "api_keys"):
        op.drop_table(table, schema="auth")
    op.execute("UPDATE auth.users SET last_login_at = created_at WHERE last_login_at IS NULL")
    op.alter_column("users", "last_login_at", nullable=False, schema="auth")
    op.drop_column("users", "tokens_valid_from", schema="auth")
    op.drop_column("users", "status", schema="auth")
