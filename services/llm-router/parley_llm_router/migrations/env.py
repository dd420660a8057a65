"""Alembic's entry: the llm-router's scripts run inside its own schema."""

from alembic import context

from parley_llm_router.tables import METADATA
from parley_runtime.database import run_migrations

run_migrations(context, METADATA)
