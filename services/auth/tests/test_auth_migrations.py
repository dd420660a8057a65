"""What an upgrade makes of the accounts that were there."""

from alembic import command
from sqlalchemy import text

from parley_runtime.database import Database, alembic_config, migrate


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
