"""Every service's scripts and tables say the same; each script can be undone, and what ran may run again."""

from collections.abc import AsyncIterator
from importlib import import_module

import asyncpg
import pytest
import pytest_asyncio
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, MetaData
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from parley.services import SERVICES
from parley_runtime.database import alembic_config, async_url, migrate

MIGRATIONS = [part.migrations for part in SERVICES.values() if part.migrations is not None]


def tables_of(package: str) -> MetaData:
    tables = import_module(f"{package}.tables")
    metadata: MetaData = getattr(tables, "METADATA", None) or tables.metadata
    return metadata


def differences(connection: Connection, package: str, schema: str) -> list[object]:
    options = {
        "include_schemas": True,
        "include_name": lambda name, kind, _parents: kind != "schema" or name == schema,
        "version_table_schema": schema,
        "compare_server_default": True,
    }
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), tables_of(package)))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(database_url))
    yield engine
    await engine.dispose()


@pytest.mark.parametrize(("package", "schema"), MIGRATIONS)
async def test_a_migrated_schema_is_what_the_tables_say(
    engine: AsyncEngine, database_url: str, package: str, schema: str
) -> None:
    await migrate(database_url, package, schema)
    async with engine.connect() as connection:
        assert await connection.run_sync(differences, package, schema) == []


@pytest.mark.parametrize(("package", "schema"), MIGRATIONS)
async def test_migrating_again_changes_nothing(engine: AsyncEngine, database_url: str, package: str, schema: str) -> None:
    await migrate(database_url, package, schema)
    first = await versions(database_url, schema)
    await migrate(database_url, package, schema)
    assert await versions(database_url, schema) == first
    assert len(first) == 1
    async with engine.connect() as connection:
        assert await connection.run_sync(differences, package, schema) == []


@pytest.mark.parametrize(("package", "schema"), MIGRATIONS)
async def test_every_script_can_be_undone_and_done_again(
    engine: AsyncEngine, database_url: str, package: str, schema: str
) -> None:
    await migrate(database_url, package, schema)
    async with engine.begin() as connection:
        await connection.run_sync(lambda sync: command.downgrade(alembic_config(package, sync), "base"))
        assert await connection.run_sync(differences, package, schema) != []
    await migrate(database_url, package, schema)
    async with engine.connect() as connection:
        assert await connection.run_sync(differences, package, schema) == []


async def versions(database_url: str, schema: str) -> list[str]:
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch(f"SELECT version_num FROM {schema}.alembic_version")  # noqa: S608 - a name of ours
        return [row["version_num"] for row in rows]
    finally:
        await connection.close()
