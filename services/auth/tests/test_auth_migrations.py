"""The scripts and the tables say the same."""

from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from parley_auth.tables import METADATA
from parley_runtime.database import Database, alembic_config, migrate


def differences(connection: Connection) -> list[Any]:
    options = {
        "include_schemas": True,
        "include_name": lambda name, kind, _parents: kind != "schema" or name == "auth",
        "version_table_schema": "auth",
        "compare_server_default": True,
    }
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), METADATA))


async def test_a_migrated_schema_is_what_the_tables_say(database: Database) -> None:
    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_migrating_again_changes_nothing(database: Database, migrated_url: str) -> None:
    await migrate(migrated_url, "parley_auth", "auth")
    async with database.transaction() as tx:
        found = await tx.session.execute(text("SELECT version_num FROM auth.alembic_version"))
        assert found.scalars().all() == ["0002"]


async def test_the_last_script_can_be_undone_and_done_again(database: Database, migrated_url: str) -> None:

    async with database.engine.begin() as connection:
        await connection.run_sync(lambda sync: command.downgrade(alembic_config("parley_auth", sync), "base"))
    await migrate(migrated_url, "parley_auth", "auth")
    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_accounts_of_the_first_version_are_there_active_and_without_a_date(database: Database, migrated_url: str) -> None:
    async with database.engine.begin() as connection:
        await connection.run_sync(lambda sync: command.downgrade(alembic_config("parley_auth", sync), "0001"))
        await connection.execute(
            text("INSERT INTO auth.users (email, username, role, password_hash, created_at, last_login_at)"
                 " VALUES ('old@example.org', 'Old', 'ADMIN', 'x', now(), now())")
        )  # fmt: skip
    await migrate(migrated_url, "parley_auth", "auth")
    async with database.transaction() as tx:
        found = await tx.session.execute(text("SELECT email, status, tokens_valid_from FROM auth.users"))
        assert found.all() == [("old@example.org", "active", None)]
