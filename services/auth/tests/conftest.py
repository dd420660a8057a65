"""Auth on a real PostgreSQL with a clock that tests hold, and passwords that cost next to nothing."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import text

from parley_auth.handlers import Handlers
from parley_auth.passwords import Passwords
from parley_auth.settings import AuthSettings
from parley_auth.tokens import Issuer
from parley_runtime.database import Database, migrate

SECRET = "qk3Tz8vY1wLr5uXb7nMc9pJd2sFh6gAe"
TABLES = "auth.users, auth.refresh_tokens, auth.bootstrap"


@dataclass
class HeldClock:
    """Stands still until it is told to go on."""

    instant: datetime = field(default_factory=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))

    def now(self) -> datetime:
        return self.instant

    def monotonic(self) -> float:
        return self.instant.timestamp()

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self.instant += timedelta(seconds=seconds)


@pytest.fixture
def secret() -> str:
    """What the handlers of `auth` sign with."""
    return SECRET


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


def settings_for(**changes: Any) -> AuthSettings:
    cheap = {"jwt_secret": SECRET, "node_env": "test", "argon2_memory_kib": 32, "argon2_time_cost": 1}
    return AuthSettings(_env_file=None, **{**cheap, **changes})


@pytest.fixture
def make_settings() -> Callable[..., AuthSettings]:
    return settings_for


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def migrated_url(database_url: str) -> str:
    await migrate(database_url, "parley_auth", "auth")
    return database_url


@pytest_asyncio.fixture
async def database(migrated_url: str) -> AsyncIterator[Database]:
    """Empty tables, ids from 1."""
    opened = Database(migrated_url, bus=None, pool_size=5)  # type: ignore[arg-type]  # auth announces nothing
    await opened.open()
    async with opened.transaction() as tx:
        await tx.session.execute(text(f"TRUNCATE {TABLES} RESTART IDENTITY"))
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def passwords() -> AsyncIterator[Passwords]:
    opened = Passwords(memory_kib=32, time_cost=1)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def make_auth(database: Database, passwords: Passwords, clock: HeldClock) -> Callable[..., Handlers]:
    """Auth's handlers as its service would wire them; named settings differ."""

    def make(**changes: Any) -> Handlers:
        settings = settings_for(**changes)
        return Handlers(
            database=database,
            passwords=passwords,
            issuer=Issuer(settings.jwt_secrets, access_ttl_s=settings.access_token_ttl_s),
            clock=clock,
            refresh_ttl=timedelta(seconds=settings.refresh_token_ttl_s),
            is_open=settings.auth_mode == "multi",
            first_is_admin=settings.bootstrap_admin,
        )

    return make


@pytest.fixture
def auth(make_auth: Callable[..., Handlers]) -> Handlers:
    return make_auth()
