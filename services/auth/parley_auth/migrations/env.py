"""Alembic's entry: auth's scripts run inside its own schema."""

from alembic import context

from parley_auth.tables import METADATA
from parley_runtime.database import run_migrations

run_migrations(context, METADATA)
