"""Auth on a real PostgreSQL with a clock that tests hold, and passwords that cost next to nothing."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
import pytest_asyncio
from sqlalchemy import text

from parley_auth.handlers.accounts import Accounts
from parley_auth.handlers.api_keys import ApiKeys
from parley_auth.handlers.roles import Roles
from parley_auth.handlers.settings import SettingsHandlers
from parley_auth.handlers.tokens import TokenHandlers
from parley_auth.handlers.users import Users
from parley_auth.logins import Logins
from parley_auth.passwords import Passwords
from parley_auth.settings import AuthSettings
from parley_auth.tables import METADATA
from parley_auth.tokens import Issuer
from parley_contracts.accounts import LogIn, Principal, RefreshTokens, Register, Tokens
from parley_contracts.message import Message
from parley_runtime.access_tokens import verify_access_token
from parley_runtime.database import Database, Transaction, migrate

R = TypeVar("R")
M = TypeVar("M")

SECRET = "qk3Tz8vY1wLr5uXb7nMc9pJd2sFh6gAe"
PASSWORD = "correct horse 1"
TABLES = ", ".join(f"auth.{table.name}" for table in METADATA.sorted_tables)


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


class HeardBus:
    """Keeps what auth says."""

    def __init__(self) -> None:
        self.said: list[Message] = []

    async def publish(self, message: Message) -> None:
        self.said.append(message)

    def heard(self, kind: type[M]) -> list[M]:
        return [message for message in self.said if isinstance(message, kind)]


@dataclass
class Auth:
    """Auth's handlers as its service wires them, and what a test asks of them most."""

    database: Database
    passwords: Passwords
    issuer: Issuer
    clock: HeldClock
    bus: HeardBus
    accounts: Accounts
    users: Users
    roles: Roles
    api_keys: ApiKeys
    settings: SettingsHandlers
    tokens: TokenHandlers
    refresh_ttl: timedelta

    async def tell(self, handler: Callable[[M, Transaction], Awaitable[R]], message: M) -> R:
        """As `database.transact` does."""
        return await self.database.transact(handler)(message)

    async def register(self, email: str = "ann@example.org", **changes: Any) -> Tokens:
        return await self.accounts.register(Register(**{"email": email, "username": "Ann", "password": PASSWORD, **changes}))

    async def log_in(self, email: str = "ann@example.org", password: str = PASSWORD, **more: Any) -> Tokens:
        return await self.accounts.log_in(LogIn(email=email, password=password, **more))

    async def refresh(self, tokens: Tokens | str) -> Tokens:
        token = tokens if isinstance(tokens, str) else tokens.refresh_token
        return await self.accounts.refresh_tokens(RefreshTokens(refresh_token=token))

    def principal(self, tokens: Tokens) -> Principal:
        keys = {self.issuer.signing_key.id: self.issuer.signing_key.private.public_key()}
        return verify_access_token(tokens.access_token, keys, self.clock.now())

    async def rows(self, statement: str, **values: Any) -> list[Any]:
        async with self.database.transaction() as tx:
            result: Any = await tx.session.execute(text(statement), values)
            return list(result) if result.returns_rows else []

    async def value(self, statement: str) -> Any:
        return (await self.rows(statement))[0][0]


@pytest.fixture
def secret() -> str:
    """What the handlers of `auth` sign with."""
    return SECRET


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
def bus() -> HeardBus:
    return HeardBus()


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
async def database(migrated_url: str, bus: HeardBus) -> AsyncIterator[Database]:
    """Empty tables, ids from 1."""
    opened = Database(migrated_url, bus=bus, pool_size=5)  # type: ignore[arg-type]  # auth only publishes
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
def make_auth(database: Database, passwords: Passwords, clock: HeldClock, bus: HeardBus) -> Callable[..., Auth]:
    """Auth's handlers as its service would wire them; named settings differ."""

    def make(hashing: Passwords = passwords, **changes: Any) -> Auth:
        settings = settings_for(**changes)
        issuer = Issuer(settings.jwt_secrets, access_ttl_s=settings.access_token_ttl_s, long_ttl_s=settings.s3_token_ttl_s)
        refresh_ttl = timedelta(seconds=settings.refresh_token_ttl_s)
        accounts = Accounts(
            database=database,
            passwords=hashing,
            logins=Logins(issuer=issuer, refresh_ttl=refresh_ttl),
            clock=clock,
            is_open=settings.auth_mode == "multi",
            first_is_admin=settings.bootstrap_admin,
            tells_unknown_from_wrong=settings.auth_distinct_login_errors,
            needs_old_password=settings.password_change_requires_old,
        )
        return Auth(
            database=database,
            passwords=hashing,
            issuer=issuer,
            clock=clock,
            bus=bus,
            accounts=accounts,
            users=Users(database=database, passwords=hashing, clock=clock),
            roles=Roles(clock=clock),
            api_keys=ApiKeys(database, clock),
            settings=SettingsHandlers(clock=clock, auth_mode=settings.auth_mode),
            tokens=TokenHandlers(bus=bus, database=database, issuer=issuer, clock=clock),  # type: ignore[arg-type]
            refresh_ttl=refresh_ttl,
        )

    return make


@pytest.fixture
def auth(make_auth: Callable[..., Auth]) -> Auth:
    return make_auth()
