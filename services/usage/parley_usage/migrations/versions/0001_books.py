"""The books: limits, budgets, reservations, charges.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = "usage"


def _money(name: str, *, nullable: bool = False, default: str | None = None) -> sa.Column[object]:
    return sa.Column(name, sa.Numeric(24, 12), nullable=nullable, server_default=sa.text(default) if default else None)


def _instant(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "budget_limits",
        sa.Column("user_id", sa.BigInteger(), autoincrement=False, primary_key=True),
        _money("limit_usd", nullable=True),
        schema=SCHEMA,
    )
    op.create_table(
        "budgets",
        sa.Column("user_id", sa.BigInteger(), autoincrement=False, primary_key=True),
        sa.Column("period", sa.String(7), primary_key=True),
        _money("limit_usd", nullable=True),
        _money("spent_usd", default="0"),
        _money("held_usd", default="0"),
        schema=SCHEMA,
    )
    _create_reservations()
    _create_charges()


def _create_reservations() -> None:
    op.create_table(
        "reservations",
        sa.Column("turn_id", sa.String(26), primary_key=True),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("period", sa.String(7), nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        _money("estimate_usd"),
        sa.Column("max_output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("is_limited", sa.Boolean(), nullable=False),
        sa.Column("request_hash", sa.String(), nullable=True),
        sa.Column("body_hash", sa.String(), nullable=False),
        sa.Column("is_key_free", sa.Boolean(), nullable=False, server_default=sa.false()),
        _instant("created_at"),
        _instant("asked_at", nullable=True),
        sa.Column("times_unknown", sa.Integer(), nullable=False, server_default=sa.text("0")),
        _instant("ended_since", nullable=True),
        schema=SCHEMA,
    )
    op.create_index(
        "reservations_key",
        "reservations",
        ["user_id", "request_hash"],
        unique=True,
        schema=SCHEMA,
        postgresql_where=sa.text("request_hash IS NOT NULL AND NOT is_key_free"),
    )
    op.create_index(
        "reservations_held",
        "reservations",
        ["created_at"],
        schema=SCHEMA,
        postgresql_where=sa.text("state = 'held'"),
    )


def _create_charges() -> None:
    op.create_table(
        "charges",
        sa.Column("id", sa.String(26), primary_key=True),
        sa.Column("turn_id", sa.String(26), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("session_id", sa.String(26), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("period", sa.String(7), nullable=False),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=False),
        sa.Column("total_tokens", sa.BigInteger(), nullable=False),
        _money("cost_usd"),
        sa.Column("price_version", sa.String(128), nullable=False),
        sa.Column("is_billable", sa.Boolean(), nullable=False),
        sa.Column("is_estimated", sa.Boolean(), nullable=False),
        sa.Column("method", sa.String(), nullable=False),
        sa.Column("is_success", sa.Boolean(), nullable=False),
        sa.Column("error_code", sa.String(), nullable=True),
        sa.Column("response_time_ms", sa.BigInteger(), nullable=False),
        sa.Column("first_token_ms", sa.BigInteger(), nullable=True),
        _instant("created_at"),
        sa.UniqueConstraint("turn_id", "attempt", name="charges_turn_id_attempt_key"),
        schema=SCHEMA,
    )
    for columns in (["user_id", "created_at"], ["user_id", "day"], ["user_id", "period"]):
        op.create_index(f"charges_{'_'.join(columns)}", "charges", columns, schema=SCHEMA)


def downgrade() -> None:
    for table in ("charges", "reservations", "budgets", "budget_limits"):
        op.drop_table(table, schema=SCHEMA)
