"""Database: one PostgreSQL schema a service, one transaction a message, announcements after COMMIT.

Logic never commits; the boundary does. A handler gets a `Transaction`, returns its reply, and what the world may know is
announced once the commit stands. No connection is held while anything streams.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, TypeVar

import structlog
from alembic import command
from alembic.config import Config
from sqlalchemy import MetaData, event, text
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from parley_contracts.errors import ServiceUnavailable
from parley_contracts.message import Durable, Event
from parley_runtime.bus import Bus

log = structlog.get_logger()

M = TypeVar("M")
R = TypeVar("R")

POOL_TIMEOUT_S = 5.0
_MIGRATION_LOCK = 0x7061726C6579  # "parley": one migration at a time, whoever starts it


class Transaction:
    """One database transaction: `session` to send SQL through, `announce` for what may be known after COMMIT."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session
        self.announcements: list[Event | Durable] = []

    def announce(self, message: Event | Durable) -> None:
        self.announcements.append(message)


class Database:
    """A service's own schema. Owned by its `Service`; opened without I/O, connections are made when needed."""

    name = "database"

    def __init__(self, url: str, *, bus: Bus, pool_size: int = 5) -> None:
        self._url = async_url(url)
        self._bus = bus
        self._pool_size = pool_size
        self._engine: AsyncEngine | None = None

    async def open(self) -> None:
        self._engine = create_async_engine(
            self._url,
            pool_size=self._pool_size,
            max_overflow=self._pool_size,
            pool_timeout=POOL_TIMEOUT_S,
            pool_recycle=1800,
            connect_args={"timeout": POOL_TIMEOUT_S, "command_timeout": 30},
        )
        event.listen(self._engine.sync_engine, "checkout", _refuse_closed)

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.dispose()

    async def check(self) -> None:
        async with self.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    @property
    def engine(self) -> AsyncEngine:
        if self._engine is None:
            raise ServiceUnavailable(service="database")
        return self._engine

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Commit at the end, or roll back on any error; then announce. A store that is down is `ServiceUnavailable`."""
        try:
            async with AsyncSession(self.engine, expire_on_commit=False) as session, session.begin():
                tx = Transaction(session)
                yield tx
        except (OperationalError, InterfaceError, PoolTimeout, OSError) as error:
            log.warning("database_unavailable", error=f"{type(error).__name__}: {error}"[:300])
            raise ServiceUnavailable(service="database") from error
        except DBAPIError as error:
            if error.connection_invalidated:
                log.warning("database_connection_lost", error=str(error)[:300])
                raise ServiceUnavailable(service="database") from error
            raise
        for message in tx.announcements:
            await self._bus.publish(message)

    def transact(self, handler: Callable[[M, Transaction], Awaitable[R]]) -> Callable[[M], Awaitable[R]]:
        """`handler` with one transaction around it: what a bus calls."""

        async def handle(message: M) -> R:
            async with self.transaction() as tx:
                return await handler(message, tx)

        return handle


def _refuse_closed(connection: Any, _record: object, _proxy: object) -> None:
    """A connection that the server closed meanwhile is replaced by another; asking would cost a round trip each time."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def async_url(url: str) -> str:
    """`postgresql://…` as SQLAlchemy's asyncpg dialect spells it."""
    return make_url(url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)


# --- migrations -----------------------------------------------------------------------------------------------------


async def migrate(url: str, package: str, schema: str) -> None:
    """Bring one service's schema up to date: `package`.migrations holds Alembic's scripts. Safe to run side by side."""
    engine = create_async_engine(async_url(url))
    try:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            await connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
            await connection.run_sync(_upgrade, package)
    finally:
        await engine.dispose()


def _upgrade(connection: Connection, package: str) -> None:
    command.upgrade(alembic_config(package, connection), "head")


def alembic_config(package: str, connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(files(package).joinpath("migrations")))
    config.attributes["connection"] = connection
    return config


def run_migrations(context: Any, metadata: MetaData) -> None:
    """All that a service's `migrations/env.py` does: run its scripts inside the caller's connection and its own schema."""
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=metadata,
        version_table_schema=metadata.schema,
        include_schemas=True,
        include_name=lambda name, kind, _parents: kind != "schema" or name == metadata.schema,
    )
    with context.begin_transaction():
        context.run_migrations()
