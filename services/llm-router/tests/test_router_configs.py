"""Model configs: what is offered, found, kept, and never told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr, ValidationError
from sqlalchemy import text

from parley_contracts.accounts import UserDeleted
from parley_contracts.errors import ApiKeyRequired, BaseUrlRefused, ModelConfigNotFound, ModelNotFound
from parley_contracts.ids import derived_id, new_id
from parley_contracts.model_configs import GetModelConfig, KeepInlineConfig, ListModelConfigs, ModelConfig, ModelConfigChanged
from parley_contracts.turns import TurnStatus
from parley_llm_router.registry import Fingerprints, SystemModels
from parley_llm_router.sealing import new_seal_keys
from parley_llm_router.settings import LlmRouterSettings
from parley_runtime.database import migrate

Make = Callable[..., Awaitable[Any]]
KEY = "sk-live-0123456789abcdef"
SEAL_KEYS = new_seal_keys()


def models(**changes: Any) -> SystemModels:
    return SystemModels(LlmRouterSettings(_env_file=None, seal_keys=SEAL_KEYS, **changes))


def test_the_simulator_and_its_faults_are_found_by_name_and_by_id_on_every_replica() -> None:
    here, there = models(simulator_url="http://127.0.0.1:1"), models(simulator_url="http://127.0.0.1:1/v1")
    assert [config.name for config in here.listed] == ["simulator"]
    for name in ("simulator", "simulator/slow", "simulator/stall", "simulator/fail-503", "simulator/cut-5"):
        config = here.called(name)
        assert config is not None
        assert there.get(config.id) == config
        assert (config.model, config.provider, config.is_simulated, config.context_limit) == (name, "SIMULATOR", True, 32_000)
        assert (config.supports_images, config.supports_tools) == (False, False)
        assert config.base_url == "http://127.0.0.1:1/v1"
    unheard_of = here.called("simulator/cut-99999")
    assert unheard_of is not None
    assert there.get(unheard_of.id, "simulator/cut-99999") == unheard_of
    assert there.get(unheard_of.id, "simulator/slow") is None
    assert models().called("simulator") is None


def test_a_key_alone_offers_openais_own_models_and_a_url_the_named_ones() -> None:
    with_key = models(openai_api_key=SecretStr(KEY), simulator_url="http://127.0.0.1:1")
    assert with_key.default is not None
    assert (with_key.default.provider, with_key.default.base_url) == ("OPENAI", "https://api.openai.com/v1")
    assert (with_key.default.auth, with_key.default.key_hint) == ("bearer", "…cdef")
    assert with_key.key_of(with_key.default) == KEY
    assert with_key.listed[-1].name == "simulator"
    with_url = models(openai_base_url="http://127.0.0.1:11434/v1/", openai_models=" qwen3 , llama ,qwen3")
    assert [config.name for config in with_url.listed] == ["qwen3", "llama"]
    assert with_url.default is not None
    assert (with_url.default.base_url, with_url.default.auth) == ("http://127.0.0.1:11434/v1", "none")
    assert with_url.key_of(with_url.default) is None
    assert models(openai_base_url="http://127.0.0.1:11434/v1").listed == ()


def test_settings_without_seal_keys_are_refused_and_no_error_shows_a_key() -> None:
    with pytest.raises(ValidationError, match="SEAL_KEYS is missing") as refusal:
        LlmRouterSettings(_env_file=None, openai_api_key=SecretStr(KEY))
    assert KEY not in str(refusal.value)


def test_a_new_seal_key_in_front_changes_no_fingerprint() -> None:
    old = new_seal_keys()
    new = new_seal_keys().replace("k1:", "k2:") + "," + old
    assert Fingerprints(old).of(KEY) == Fingerprints(new).of(KEY)
    assert Fingerprints(old).of(KEY) != Fingerprints(new_seal_keys()).of(KEY)


# --- over the bus, with the database --------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def migrated_url(database_url: str) -> str:
    await migrate(database_url, "parley_llm_router", "llm_router")
    return database_url


@pytest_asyncio.fixture
async def house(make_house: Make, migrated_url: str, provider: Any) -> AsyncIterator[Any]:
    made = await make_house()
    await made.router(database_url=SecretStr(migrated_url), model_url_allow=provider.url, seal_keys=SEAL_KEYS)
    async with made.services[0]._owns[0].transaction() as tx:
        await tx.session.execute(text("TRUNCATE llm_router.model_configs"))
    yield made


def inline(house: Any, **changes: Any) -> KeepInlineConfig:
    usual = {"user_id": 7, "provider": "custom", "base_url": f"{house.provider.url}/v1", "model": "simulator", "api_key": KEY}
    return KeepInlineConfig(**{**usual, **changes})


async def kept(house: Any, **changes: Any) -> ModelConfig:
    return await house.gateway.ask(inline(house, **changes))


async def rows(house: Any) -> list[Any]:
    async with house.services[0]._owns[0].transaction() as tx:
        return list((await tx.session.execute(text("SELECT * FROM llm_router.model_configs ORDER BY id"))).mappings())


async def test_inline_credentials_are_kept_once_sealed_hidden_and_private(house: Any) -> None:
    config = await kept(house)
    assert (config.owner_id, config.is_hidden, config.key_hint, config.provider) == (7, True, "…cdef", "CUSTOM")
    assert await kept(house) == config
    many = await asyncio.gather(*(kept(house, model="another") for _ in range(10)))
    assert len({each.id for each in many}) == 1
    stored = await rows(house)
    assert len(stored) == 2
    assert KEY not in str(stored)
    assert {row["sealed_key"][:6] for row in stored} == {"v1.k1."}
    changes = [said for said in house.hub.said if isinstance(said, ModelConfigChanged)]
    assert {change.id for change in changes} == {row["id"] for row in stored}


@pytest.mark.parametrize(
    "changes",
    [{"user_id": 8}, {"api_key": "sk-another-0123456789"}, {"model": "m"}, {"provider": "QWEN"}, {"auth": "api-key"}],
)
async def test_other_credentials_are_another_config(house: Any, changes: dict[str, Any]) -> None:
    assert (await kept(house)).id != (await kept(house, **changes)).id


async def test_an_inline_config_is_seen_by_its_owner_and_listed_to_nobody(house: Any) -> None:
    config = await kept(house)
    assert await house.gateway.ask(GetModelConfig(user_id=7, id=config.id)) == config
    with pytest.raises(ModelConfigNotFound):
        await house.gateway.ask(GetModelConfig(user_id=8, id=config.id))
    listed = await house.gateway.ask(ListModelConfigs(user_id=7))
    assert [each.name for each in listed] == ["simulator"]
    assert (await house.gateway.ask(GetModelConfig(user_id=7, name="simulator"))).provider == "SIMULATOR"


async def test_a_turn_on_an_inline_config_takes_its_key_to_its_url_only(house: Any) -> None:
    config = await kept(house)
    command = house.command("tokens=3", model_config_id=config.id, model=config.name, provider=config.provider)
    result = await house.ended(command)
    assert (result.status, result.attempts[0].model_config_id) == (TurnStatus.DONE, config.id)
    assert house.provider.calls(command.turn_id)[0].authorization_last4 == "cdef"
    foreign = house.command("tokens=3", user_id=8, model_config_id=config.id, model=config.name)
    assert (await house.ended(foreign)).error.code == "model_config_not_found"
    assert house.provider.calls(foreign.turn_id) == []
    assert KEY not in str(house.hub.said)
    assert KEY not in str(house.log(command.turn_id))


async def test_a_key_whose_seal_does_not_open_makes_the_model_unavailable(house: Any) -> None:
    config = await kept(house)
    async with house.services[0]._owns[0].transaction() as tx:
        await tx.session.execute(text("UPDATE llm_router.model_configs SET sealed_key = 'v1.k9.' || substr(sealed_key, 7)"))
    result = await house.ended(house.command(model_config_id=config.id, model=config.name))
    assert (result.error.code, result.attempts) == ("model_unavailable", ())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"api_key": ""}, ApiKeyRequired),
        ({"base_url": None, "provider": "OPENAI", "api_key": ""}, ApiKeyRequired),
        ({"base_url": None}, BaseUrlRefused),
        ({"base_url": None, "provider": "CLAUDE"}, BaseUrlRefused),
        ({"base_url": "http://example.org/v1"}, BaseUrlRefused),
        ({"base_url": "https://127.0.0.1/v1"}, BaseUrlRefused),
        ({"base_url": "https://me:secret@example.org/v1"}, BaseUrlRefused),
    ],
)
async def test_credentials_that_cannot_be_used_are_refused(house: Any, changes: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        await kept(house, **changes)
    assert await rows(house) == []


@pytest.mark.parametrize("provider_name", ["openai", "QWEN", "ChatGLM", "BAICHUAN"])
async def test_a_known_provider_needs_no_url(house: Any, provider_name: str) -> None:
    config = await kept(house, provider=provider_name, base_url=None)
    assert config.base_url.startswith("https://")
    assert config.provider == provider_name.upper()


async def test_the_default_model_and_unknown_names(house: Any) -> None:
    assert (await house.gateway.ask(GetModelConfig(user_id=7))).name == "simulator"
    stalled = await house.gateway.ask(GetModelConfig(user_id=7, name="simulator/stall"))
    assert (stalled.id, stalled.is_hidden) == (derived_id("model_config", "SIMULATOR", "simulator/stall"), True)
    with pytest.raises(ModelNotFound, match="Model nobody not found"):
        await house.gateway.ask(GetModelConfig(user_id=7, name="nobody"))
    with pytest.raises(ModelConfigNotFound):
        await house.gateway.ask(GetModelConfig(user_id=7, id=new_id()))


async def test_the_service_is_ready_with_its_database_and_counts_its_turns(house: Any) -> None:
    assert await house.services[0].readiness.problems() == {}


async def test_a_deleted_users_configs_are_gone_from_every_replica_and_others_stay(house: Any, migrated_url: str) -> None:
    await house.router(database_url=SecretStr(migrated_url), model_url_allow=house.provider.url, seal_keys=SEAL_KEYS)
    erased, other = await kept(house), await kept(house, user_id=8)
    for _ in range(20):  # whichever replica answers remembers it
        assert await is_known(house, erased)
    for _ in range(2):
        await house.gateway.publish(UserDeleted(user_id=7))
        async with asyncio.timeout(5):
            while [row["id"] for row in await rows(house)] != [other.id]:  # noqa: ASYNC110 - it happens in the database
                await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        while await is_known(house, erased):  # noqa: ASYNC110 - replicas hear of it one after another
            await asyncio.sleep(0.01)
    for _ in range(20):
        assert not await is_known(house, erased)
    assert await is_known(house, other)
    changes = [said for said in house.hub.said if isinstance(said, ModelConfigChanged) and said.id == erased.id]
    assert len(changes) == 2, "made once, removed once"


async def is_known(house: Any, config: ModelConfig) -> bool:
    try:
        return await house.gateway.ask(GetModelConfig(user_id=config.owner_id, id=config.id)) == config
    except ModelConfigNotFound:
        return False
