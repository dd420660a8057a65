"""The registry: which model configs there are. System ones come from the settings, users' own from the database.

A turn on a system config asks no database at all; one on a user's own asks at most once, until the config changes. Keys
are opened for one call and not remembered.
"""

import hmac
from collections import OrderedDict
from hashlib import sha256

import structlog

from parley_contracts.errors import BaseUrlRefused, ModelConfigNotFound, ModelUnavailable
from parley_contracts.ids import derived_id
from parley_contracts.model_configs import ModelConfig, ModelConfigChanged
from parley_llm_router.addresses import origin_of
from parley_llm_router.sealing import CannotUnseal, Sealer, api_key_place
from parley_llm_router.settings import LlmRouterSettings
from parley_llm_router.store import ModelConfigStore, StoredConfig
from parley_runtime.database import Database

log = structlog.get_logger()

SIMULATOR = "simulator"
DEFAULT_URLS = {
    "OPENAI": "https://api.openai.com/v1",
    "QWEN": "https://dashscope.aliyuncs.com/compatible-mode/v1",
    "CHATGLM": "https://open.bigmodel.cn/api/paas/v4",
    "BAICHUAN": "https://api.baichuan-ai.com/v1",
}
"""Where a provider is reached when nobody names a URL."""
# Names and context sizes as in the genai-prices of our lock file.
_OPENAI_MODELS = {
    "gpt-5.4-mini": 400_000,
    "gpt-5.4": 1_050_000,
    "gpt-5.4-nano": 400_000,
    "gpt-4.1": 1_000_000,
    "gpt-4o": 128_000,
    "gpt-4o-mini": 128_000,
}
_SIMULATOR_CONTEXT = 32_000
_MOST_REMEMBERED = 10_000


def hint_of(key: str) -> str | None:
    return f"…{key[-4:]}" if key else None


class SystemModels:
    """What the settings offer to everyone. The first one is the default."""

    def __init__(self, settings: LlmRouterSettings) -> None:
        self._simulator_url = settings.simulator_url.rstrip("/")
        self._output_tokens = min(settings.max_output_tokens, 4096)
        self._openai_key = settings.openai_api_key.get_secret_value()
        self.listed: tuple[ModelConfig, ...] = tuple(self._openai(settings))
        if self._simulator_url:
            self.listed += (self._simulated(SIMULATOR),)
        self._by_id = {config.id: config for config in self.listed}
        self._by_name = {config.name: config for config in self.listed}
        if self._simulator_url:
            # Their ids do not say their names, so those that any replica may be asked for are made at once.
            for name in _simulated_names():
                self._by_id[_id_of(name)] = self._simulated(name)

    @property
    def default(self) -> ModelConfig | None:
        return self.listed[0] if self.listed else None

    def get(self, config_id: str, name: str = "") -> ModelConfig | None:
        """By id; `name` finds a simulated model that has no row anywhere."""
        found = self._by_id.get(config_id)
        if found is None and (named := self.called(name)) is not None and named.id == config_id:
            return named
        return found

    def called(self, name: str) -> ModelConfig | None:
        found = self._by_name.get(name)
        if found is None and self._simulator_url and name.startswith(f"{SIMULATOR}/"):
            return self._simulated(name)
        return found

    def key_of(self, config: ModelConfig) -> str | None:
        return self._openai_key or None if config.provider == "OPENAI" else None

    def _openai(self, settings: LlmRouterSettings) -> list[ModelConfig]:
        base_url = settings.openai_base_url.rstrip("/")
        if not (base_url or self._openai_key):
            return []
        names = settings.openai_model_names
        if not names and base_url:
            log.warning("openai_models_missing", advice="OPENAI_BASE_URL is set: name its models in OPENAI_MODELS")
            return []
        return [
            ModelConfig(
                id=derived_id("model_config", "OPENAI", name),
                name=name,
                provider="OPENAI",
                auth="bearer" if self._openai_key else "none",
                base_url=base_url or DEFAULT_URLS["OPENAI"],
                model=name,
                key_hint=hint_of(self._openai_key),
                context_limit=None if base_url else _OPENAI_MODELS.get(name),
                max_output_tokens=self._output_tokens,
            )
            for name in names or _OPENAI_MODELS
        ]

    def _simulated(self, name: str) -> ModelConfig:
        url = self._simulator_url
        return ModelConfig(
            id=_id_of(name),
            name=name,
            provider="SIMULATOR",
            auth="none",
            base_url=url if url.endswith("/v1") else f"{url}/v1",
            model=name,
            is_hidden=name != SIMULATOR,
            is_simulated=True,
            supports_images=False,
            supports_tools=False,
            context_limit=_SIMULATOR_CONTEXT,
            max_output_tokens=self._output_tokens,
        )


def _id_of(name: str) -> str:
    return derived_id("model_config", "SIMULATOR", name)


def _simulated_names() -> list[str]:
    faults = [f"fail-{status}" for status in range(400, 600)] + [f"cut-{count}" for count in range(256)]
    return [SIMULATOR, *(f"{SIMULATOR}/{fault}" for fault in ("slow", "stall", *faults))]


class Fingerprints:
    """Tells equal keys from others without keeping them: an HMAC with the oldest seal key, so that a new one changes none."""

    def __init__(self, seal_keys: str) -> None:
        oldest = seal_keys.rpartition(",")[2].strip()
        self._key = hmac.digest(oldest.encode(), b"parley llm_router key fingerprint", sha256)

    def of(self, api_key: str) -> bytes:
        return hmac.digest(self._key, api_key.encode(), sha256)


class Registry:
    """Finds a config with its key for one call."""

    def __init__(self, system: SystemModels, database: Database, sealer: Sealer) -> None:
        self.system = system
        self._database = database
        self._sealer = sealer
        self._remembered: OrderedDict[str, StoredConfig] = OrderedDict()

    async def open(self, config_id: str, name: str, user_id: int) -> tuple[ModelConfig, str | None]:
        """The config and its key. Errors: ModelConfigNotFound (also a foreign one), ModelUnavailable, ServiceUnavailable."""
        config = self.system.get(config_id, name)
        if config is not None:
            return config, self.system.key_of(config)
        stored = await self.stored(config_id)
        if stored is None or stored.config.owner_id != user_id:
            raise ModelConfigNotFound
        return stored.config, self._unsealed(stored)

    async def stored(self, config_id: str) -> StoredConfig | None:
        found = self._remembered.get(config_id)
        if found is not None:
            self._remembered.move_to_end(config_id)
            return found
        async with self._database.transaction() as tx:
            found = await ModelConfigStore(tx).get(config_id)
        if found is not None:
            self._remembered[config_id] = found
            if len(self._remembered) > _MOST_REMEMBERED:
                self._remembered.popitem(last=False)
        return found

    def sealed(self, config: ModelConfig, api_key: str) -> StoredConfig:
        sealed_key = self._sealer.seal(api_key, place=_place(config)) if api_key else None
        return StoredConfig(config=config, sealed_key=sealed_key)

    async def forget(self, changed: ModelConfigChanged) -> None:
        self._remembered.pop(changed.id, None)

    def forget_owner(self, user_id: int) -> None:
        theirs = [config_id for config_id, stored in self._remembered.items() if stored.config.owner_id == user_id]
        for config_id in theirs:
            del self._remembered[config_id]

    def _unsealed(self, stored: StoredConfig) -> str | None:
        if stored.sealed_key is None:
            return None
        try:
            return self._sealer.unseal(stored.sealed_key, place=_place(stored.config))
        except (CannotUnseal, BaseUrlRefused) as error:
            log.warning("key_unopened", model_config_id=stored.config.id, error=str(error))
            raise ModelUnavailable(model=stored.config.name) from error


def _place(config: ModelConfig) -> str:
    return api_key_place(row_id=config.id, owner_id=config.owner_id, origin=origin_of(config.base_url))
