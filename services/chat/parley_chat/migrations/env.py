"""Alembic's entry: chat's scripts run inside its own schema."""

from alembic import context

from parley_chat.tables import METADATA
from parley_runtime.database import run_migrations

run_migrations(context, METADATA)
