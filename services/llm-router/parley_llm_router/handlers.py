"""What the llm-router answers about model configs."""

from dataclasses import dataclass

from parley_contracts.accounts import UserDeleted
from parley_contracts.errors import ApiKeyRequired, BaseUrlRefused, ModelConfigNotFound, ModelNotFound
from parley_contracts.ids import new_id
from parley_contracts.model_configs import (
    GetModelConfig,
    KeepInlineConfig,
    ListModelConfigs,
    ModelConfig,
    ModelConfigChanged,
)
from parley_llm_router.addresses import check_url
from parley_llm_router.registry import DEFAULT_URLS, Fingerprints, Registry, hint_of
from parley_llm_router.store import ModelConfigStore
from parley_runtime.clock import Clock
from parley_runtime.database import Database, Transaction


@dataclass(frozen=True, slots=True)
class Handlers:
    registry: Registry
    fingerprints: Fingerprints
    database: Database
    clock: Clock
    allowed_origins: tuple[str, ...]

    async def get_model_config(self, query: GetModelConfig) -> ModelConfig:
        if query.id is not None:
            return await self._by_id(query.id, query.user_id)
        if query.name is not None:
            return await self._by_name(query.name, query.user_id)
        if self.registry.system.default is None:
            raise ModelNotFound(model="default")
        return self.registry.system.default

    async def list_model_configs(self, query: ListModelConfigs, tx: Transaction) -> tuple[ModelConfig, ...]:
        return await ModelConfigStore(tx).list_visible(query.user_id) + self.registry.system.listed

    async def keep_inline_config(self, command: KeepInlineConfig, tx: Transaction) -> ModelConfig:
        if not command.api_key and command.auth != "none":
            raise ApiKeyRequired
        provider = command.provider.strip().upper()
        base_url = (command.base_url or DEFAULT_URLS.get(provider, "")).rstrip("/")
        if not base_url:
            raise BaseUrlRefused(reason="it is missing, and this provider has no usual one")
        check_url(base_url, self.allowed_origins)
        config = ModelConfig(
            id=new_id(),
            name=command.model,
            provider=provider,
            protocol=command.protocol,
            auth=command.auth,
            base_url=base_url,
            model=command.model,
            key_hint=hint_of(command.api_key),
            owner_id=command.user_id,
            is_hidden=True,
        )
        store, fingerprint = ModelConfigStore(tx), self.fingerprints.of(command.api_key)
        known = await store.equal_to(config, fingerprint=fingerprint)
        if known is not None:
            return known
        stored = self.registry.sealed(config, command.api_key)
        if not await store.add(stored, fingerprint=fingerprint, now=self.clock.now()):
            # The same credentials came twice at once: the other request's row stands, and is committed.
            return await store.equal_to(config, fingerprint=fingerprint) or config
        tx.announce(ModelConfigChanged(id=config.id, owner_id=config.owner_id))
        return config

    async def erase_user(self, event: UserDeleted) -> None:
        """Heard by every replica, and again for days: each forgets, and the one that finds rows tells the others."""
        async with self.database.transaction() as tx:
            for config_id in await ModelConfigStore(tx).delete_all(event.user_id):
                tx.announce(ModelConfigChanged(id=config_id, owner_id=event.user_id))
        self.registry.forget_owner(event.user_id)

    async def _by_id(self, config_id: str, user_id: int) -> ModelConfig:
        config = self.registry.system.get(config_id)
        if config is None:
            stored = await self.registry.stored(config_id)
            config = stored.config if stored is not None and stored.config.owner_id == user_id else None
        if config is None:
            raise ModelConfigNotFound
        return config

    async def _by_name(self, name: str, user_id: int) -> ModelConfig:
        """Own config, system config, own model, system model; a system config's name is its model's."""
        async with self.database.transaction() as tx:
            own = await ModelConfigStore(tx).called(user_id, name)
        named = next((config for config in own if config.name == name), None)
        found = named or self.registry.system.called(name) or next(iter(own), None)
        if found is None:
            raise ModelNotFound(model=name)
        return found
