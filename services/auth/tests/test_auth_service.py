"""Auth as a whole, through a bus: what the gateway will see, errors included."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from decimal import Decimal

import jwt
import pytest
import pytest_asyncio
from pydantic import SecretStr

from parley_auth.service import AuthService
from parley_auth.settings import AuthSettings
from parley_contracts.accounts import (
    FamilyRevoked,
    GetJwks,
    GetUser,
    GetUsers,
    KeysChanged,
    LogIn,
    LogOut,
    RefreshTokens,
    Register,
)
from parley_contracts.api_keys import CheckApiKey, CreateApiKey, ListApiKeys
from parley_contracts.errors import EmailTaken, InvalidCredentials, ServiceUnavailable, Unauthenticated, ValidationFailed
from parley_contracts.message import Event
from parley_contracts.settings import PutSystemSettings, SettingsChanged, SystemSettingsChanges
from parley_runtime.access_tokens import verify_access_token
from parley_runtime.clock import SystemClock
from parley_runtime.database import Database
from parley_runtime.memory_bus import MemoryBus, MemoryHub

PASSWORD = "correct horse 1"


@pytest_asyncio.fixture
async def gateway(
    migrated_url: str, database: Database, make_settings: Callable[..., AuthSettings]
) -> AsyncIterator[MemoryBus]:
    """A bus on which auth answers."""
    assert database  # emptied
    hub = MemoryHub()
    service = AuthService(make_settings(database_url=SecretStr(migrated_url)), MemoryBus(hub, "auth"))
    asker = MemoryBus(hub, "gateway")
    await service.start()
    await asker.start()
    assert await service.readiness.problems() == {}
    yield asker
    await asker.close()
    await service.stop()


async def test_register_log_in_refresh_and_look_up_over_the_bus(gateway: MemoryBus) -> None:
    registered = await gateway.ask(Register(email="ann@example.org", username="Ann", password=PASSWORD))
    logged_in = await gateway.ask(LogIn(email="ANN@example.org", password=PASSWORD))
    refreshed = await gateway.ask(RefreshTokens(refresh_token=logged_in.refresh_token))
    assert len({registered.refresh_token, logged_in.refresh_token, refreshed.refresh_token}) == 3

    keys = {jwk.kid: jwt.PyJWK({"kty": jwk.kty, "crv": jwk.crv, "x": jwk.x}).key for jwk in await gateway.ask(GetJwks())}
    principal = verify_access_token(refreshed.access_token, keys, SystemClock().now())
    user = await gateway.ask(GetUser(user_id=principal.user_id))
    assert (user.id, user.username, user.role) == (1, "Ann", "ADMIN")
    assert await gateway.ask(GetUsers(user_ids=(1, 2))) == (user,)


async def test_errors_reach_the_asker_as_themselves(gateway: MemoryBus) -> None:
    await gateway.ask(Register(email="ann@example.org", username="Ann", password=PASSWORD))
    with pytest.raises(EmailTaken):
        await gateway.ask(Register(email="ann@example.org", username="Ann", password=PASSWORD))
    with pytest.raises(InvalidCredentials):
        await gateway.ask(LogIn(email="ann@example.org", password="wrong"))
    with pytest.raises(Unauthenticated):
        await gateway.ask(RefreshTokens(refresh_token="nonsense"))
    with pytest.raises(ValidationFailed) as refusal:
        await gateway.ask(Register(email="bob@example.org", username="", password=PASSWORD))
    assert refusal.value.problems[0].field == "username"


async def test_a_database_that_is_away_is_said_so(make_settings: Callable[..., AuthSettings]) -> None:
    hub = MemoryHub()
    nowhere = SecretStr("postgresql://nobody@127.0.0.1:9/nothing")
    service = AuthService(make_settings(database_url=nowhere), MemoryBus(hub, "auth"))
    asker = MemoryBus(hub, "gateway")
    await service.start()
    await asker.start()
    with pytest.raises(ServiceUnavailable):
        await asker.ask(Register(email="ann@example.org", username="Ann", password=PASSWORD))
    assert await asker.ask(GetJwks())
    assert "database" in await service.readiness.problems()
    await asker.close()
    await service.stop()


async def test_what_ended_is_told_to_everyone_and_the_keys_at_the_start(
    migrated_url: str, database: Database, make_settings: Callable[..., AuthSettings]
) -> None:
    assert database  # emptied
    hub = MemoryHub()
    service = AuthService(make_settings(database_url=SecretStr(migrated_url)), MemoryBus(hub, "auth"))
    gateway = MemoryBus(hub, "gateway")
    heard: asyncio.Queue[Event] = asyncio.Queue()
    gateway.on(KeysChanged, heard.put)
    gateway.on(FamilyRevoked, heard.put)
    gateway.on(SettingsChanged, heard.put)
    await gateway.start()
    await service.start()
    try:
        async with asyncio.timeout(5):
            keys = await heard.get()
            assert keys == KeysChanged(key_ids=tuple(jwk.kid for jwk in await gateway.ask(GetJwks())))
            tokens = await gateway.ask(Register(email="ann@example.org", username="Ann", password=PASSWORD))
            await gateway.ask(LogOut(refresh_token=tokens.refresh_token))
            assert isinstance(await heard.get(), FamilyRevoked)
            changes = SystemSettingsChanges(monthly_budget_default_usd=Decimal("1.5"), default_model_id=None)
            changed = await gateway.ask(PutSystemSettings(actor_id=1, changes=changes))
            assert changed.monthly_budget_default_usd == Decimal("1.5")
            assert await heard.get() == SettingsChanged()
    finally:
        await gateway.close()
        await service.stop()


async def test_a_key_made_over_the_bus_is_checked_over_the_bus_and_its_use_is_written(gateway: MemoryBus) -> None:
    await gateway.ask(Register(email="ann@example.org", username="Ann", password=PASSWORD))
    made = await gateway.ask(CreateApiKey(user_id=1, name="k", budget_usd=Decimal("2.5"), models=("gpt",)))
    principal = await gateway.ask(CheckApiKey(hash=hashlib.sha256(made.key.encode()).hexdigest()))
    assert (principal.user_id, principal.key_id, principal.models) == (1, made.api_key.id, ("gpt",))
    assert (await gateway.ask(ListApiKeys(user_id=1)))[0].budget_usd == Decimal("2.5")


SAMPLE = "your-jwt-secret-your-jwt-secret-your-jwt-secret"


async def test_a_sample_secret_is_refused_at_every_start_after_the_first_account(
    migrated_url: str, database: Database, make_settings: Callable[..., AuthSettings]
) -> None:
    assert database  # emptied
    settings = make_settings(database_url=SecretStr(migrated_url), jwt_secret=SAMPLE, node_env="development")
    hub = MemoryHub()
    first = AuthService(settings, MemoryBus(hub, "auth"))
    asker = MemoryBus(hub, "gateway")
    await asker.start()
    await first.start()
    await asker.ask(Register(email="ann@example.org", username="Ann", password=PASSWORD))
    await first.stop()
    await asker.close()
    second = AuthService(settings, MemoryBus(MemoryHub(), "auth"))
    with pytest.raises(OSError, match=r"JWT_SECRET is a sample.*openssl rand") as refusal:
        await second.start()
    assert SAMPLE not in str(refusal.value)
    good = AuthService(make_settings(database_url=SecretStr(migrated_url), node_env="development"), MemoryBus(hub, "auth"))
    await good.start()
    await good.stop()
