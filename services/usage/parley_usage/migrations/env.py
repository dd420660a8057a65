from alembic import context

from parley_runtime.database import run_migrations
from parley_usage.tables import metadata

run_migrations(context, metadata)
