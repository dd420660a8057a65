from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from parley_chat.tables import METADATA
from parley_runtime.database import async_url, migrate


def differences(connection: Connection) -> list[object]:
    options = {
        "include_schemas": True,
        "include_name": lambda name, kind, _parents: kind != "schema" or name == "chat",
        "version_table_schema": "chat",
        "compare_server_default": True,
    }
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), METADATA))


async def test_the_migrations_make_what_the_tables_say(chat_database_url: str) -> None:
    engine = create_async_engine(async_url(chat_database_url))
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


async def test_a_migration_that_ran_runs_again_without_harm(chat_database_url: str) -> None:
    await migrate(chat_database_url, "parley_chat", "chat")
