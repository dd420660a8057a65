"""Sessions, messages, turns, and the outbox"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_sessions()
    _create_turns()
    _create_messages()
    _create_outbox()


def _create_sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("title", sa.Text(), nullable=True),
        sa.Column("system_prompt", sa.Text(), nullable=True),
        sa.Column("model_config_id", sa.String(length=26), nullable=True),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("share_token", sa.Text(), nullable=True),
        sa.Column("session_type", sa.Text(), nullable=True),
        sa.Column("document_id", sa.Text(), nullable=True),
        sa.Column("product_code", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
        schema="chat",
    )
    op.create_index("ix_sessions_user_id", "sessions", ["user_id", "updated_at", "id"], unique=False, schema="chat")
    op.create_index(
        "uq_sessions_share_token",
        "sessions",
        ["share_token"],
        unique=True,
        schema="chat",
        postgresql_where=sa.text("share_token IS NOT NULL"),
    )


def _create_turns() -> None:
    op.create_table(
        "turns",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("session_id", sa.String(length=26), nullable=False),
        sa.Column("user_message_id", sa.String(length=26), nullable=False),
        sa.Column("message_id", sa.String(length=26), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("dialect", sa.Text(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("usage", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("request_hash", sa.Text(), nullable=True),
        sa.Column("body_hash", sa.Text(), nullable=False),
        sa.Column("dispatch", sa.Integer(), nullable=False),
        sa.Column("stop_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("look_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("suspicion", sa.Text(), nullable=True),
        sa.Column("suspected_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("accepted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_turns"),
        schema="chat",
    )
    op.create_index(
        "ix_turns_look_at",
        "turns",
        ["look_at"],
        unique=False,
        schema="chat",
        postgresql_where=sa.text("status IN ('queued', 'running')"),
    )
    op.create_index("ix_turns_session_id", "turns", ["session_id"], unique=False, schema="chat")
    op.create_index(
        "uq_turns_key",
        "turns",
        ["user_id", "request_hash"],
        unique=True,
        schema="chat",
        postgresql_where=sa.text("request_hash IS NOT NULL"),
    )
    op.create_index(
        "uq_turns_running",
        "turns",
        ["session_id"],
        unique=True,
        schema="chat",
        postgresql_where=sa.text("status IN ('queued', 'running')"),
    )


def _create_messages() -> None:
    op.create_table(
        "messages",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("session_id", sa.String(length=26), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("turn_id", sa.String(length=26), nullable=True),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("reasoning", sa.Text(), nullable=False),
        sa.Column("tool_calls", sa.JSON(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("usage", sa.JSON(), nullable=True),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("provider", sa.Text(), nullable=True),
        sa.Column("response_time_ms", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["session_id"], ["chat.sessions.id"], name="fk_messages_session_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_messages"),
        schema="chat",
    )
    op.create_index("ix_messages_session_id", "messages", ["session_id", "created_at", "id"], unique=False, schema="chat")


def _create_outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("turn_id", sa.String(length=26), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["turn_id"], ["chat.turns.id"], name="fk_outbox_turn_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("turn_id", name="pk_outbox"),
        schema="chat",
    )
    op.create_index("ix_outbox_due_at", "outbox", ["due_at"], unique=False, schema="chat")


def downgrade() -> None:
    op.drop_table("outbox", schema="chat")
    op.drop_table("messages", schema="chat")
    op.drop_table("turns", schema="chat")
    op.drop_table("sessions", schema="chat")
