"""`parley migrate`: the schemas in PostgreSQL and the streams in NATS made what this version needs; safe to repeat.

`parley up` does it by itself. In production it runs once before the services of a new version (docs/operations.md).
"""

import asyncio

import asyncpg
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from parley.complaints import until_reachable
from parley.services import SERVICES
from parley.supervise import StartFailed
from parley_runtime.database import alembic_config, async_url, migrate
from parley_runtime.nats_bus import provision
from parley_runtime.settings import Settings

NATS_S = 10.0
DATABASE_S = 20.0


async def migrate_all(settings: Settings) -> None:
    """Streams and schemas. Raises StartFailed, which says which server is not there."""
    await make_streams(settings)
    await make_schemas(settings)


async def make_streams(settings: Settings) -> None:
    await until_reachable(settings.nats_url, "NATS", "NATS_URL", within_s=NATS_S)
    try:
        await provision(settings.nats_url, wait_s=NATS_S)
    except TimeoutError:
        raise StartFailed(f"NATS did not answer for {NATS_S:.0f} s: does it run with JetStream? (NATS_URL)") from None


def schemas() -> dict[str, tuple[str, str]]:
    """Service → the package of its migrations and the name of its schema."""
    return {name: part.migrations for name, part in SERVICES.items() if part.migrations}


async def make_schemas(settings: Settings) -> None:
    url = settings.database_url.get_secret_value()
    try:
        async with asyncio.timeout(DATABASE_S):
            await _connects(url)
        for package, schema in schemas().values():
            await migrate(url, package, schema)
    except (OSError, TimeoutError, SQLAlchemyError, asyncpg.PostgresError) as error:
        raise _unusable(url, error) from error


async def outdated(settings: Settings) -> list[str]:
    """What `migrate` would change, one line a schema; empty: nothing."""
    url = settings.database_url.get_secret_value()
    lines: list[str] = []
    try:
        engine = create_async_engine(async_url(url))
        try:
            async with engine.connect() as connection:
                for package, schema in schemas().values():
                    line = await connection.run_sync(_difference, package, schema)
                    lines += [line] if line else []
        finally:
            await engine.dispose()
    except (OSError, TimeoutError, SQLAlchemyError, asyncpg.PostgresError) as error:
        raise _unusable(url, error) from error
    return lines


def _difference(connection: Connection, package: str, schema: str) -> str:
    head = ScriptDirectory.from_config(alembic_config(package)).get_current_head()
    context = MigrationContext.configure(connection, opts={"version_table_schema": schema})
    current = context.get_current_revision()
    return "" if current == head else f"{schema}: at {current or 'nothing'}, needs {head}"


async def _connects(url: str) -> None:
    """A connection of its own, since SQLAlchemy wraps the reason in four lines."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(plain, timeout=5.0)
    await connection.close()


def _unusable(url: str, error: BaseException) -> StartFailed:
    try:
        parts = make_url(url)
    except SQLAlchemyError:
        return StartFailed("DATABASE_URL is no address: write postgresql://user:password@host:5432/name")
    reason = "no answer" if isinstance(error, TimeoutError) else str(getattr(error, "orig", None) or error).split("\n")[0]
    place = f"{parts.host}:{parts.port or 5432}/{parts.database}"
    return StartFailed(f"the database {place} cannot be used ({reason}): is DATABASE_URL right?")
