"""The scripts and the tables say the same."""

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from parley_llm_router.tables import METADATA
from parley_runtime.database import Database, alembic_config, migrate


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def migrated_url(database_url: str) -> str:
    await migrate(database_url, "parley_llm_router", "llm_router")
    return database_url


@pytest_asyncio.fixture
async def database(migrated_url: str) -> AsyncIterator[Database]:
    opened = Database(migrated_url, bus=None)  # type: ignore[arg-type]  # nothing is announced
    await opened.open()
    yield opened
    await opened.close()


def differences(connection: Connection) -> list[Any]:
    options = {
        "include_schemas": True,
        "include_name": lambda name, kind, _parents: kind != "schema" or name == "llm_router",
        "version_table_schema": "llm_router",
        "compare_server_default": True,
    }
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), METADATA))


async def test_a_migrated_schema_is_what_the_tables_say(database: Database) -> None:
    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_migrating_again_changes_nothing(database: Database, migrated_url: str) -> None:
    await migrate(migrated_url, "parley_llm_router", "llm_router")
    async with database.transaction() as tx:
        found = await tx.session.execute(text("SELECT version_num FROM llm_router.alembic_version"))
        assert found.scalars().all() == ["0001"]


async def test_the_last_script_can_be_undone_and_done_again(database: Database, migrated_url: str) -> None:

    async with database.engine.begin() as connection:
        await connection.run_sync(lambda sync: command.downgrade(alembic_config("parley_llm_router", sync), "base"))
    await migrate(migrated_url, "parley_llm_router", "llm_router")
    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
