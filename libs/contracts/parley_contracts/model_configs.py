"""Model configs: which models there are and how to reach them. A key goes in once and never comes out."""

from typing import ClassVar, Literal, TypeAlias

import msgspec

from parley_contracts.ids import ModelConfigId
from parley_contracts.message import Command, Event, Query
from parley_contracts.prompts import Params

Protocol: TypeAlias = Literal["openai"]
Credential: TypeAlias = Literal["bearer", "x-api-key", "api-key", "none"]


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A model as others may see it. `key_hint` is `…` and the last four characters; `owner_id` None: a system config."""

    id: ModelConfigId
    name: str
    provider: str
    protocol: Protocol = "openai"
    auth: Credential = "bearer"
    base_url: str
    model: str
    key_hint: str | None = None
    owner_id: int | None = None
    is_hidden: bool = False
    is_simulated: bool = False
    supports_images: bool = True
    supports_tools: bool = True
    context_limit: int | None = None
    max_output_tokens: int = 4096
    """What is asked for, and reserved, when the request names no `max_tokens`."""
    params: Params = Params()


class GetModelConfig(Query[ModelConfig], frozen=True, kw_only=True):
    """One config for a user: by `id`, else by `name` (own name, system name, own model, system model), else the default.

    Errors: ModelNotFound, ModelConfigNotFound (also for a foreign one).
    """

    subject: ClassVar[str] = "llm_router.get_model_config"
    user_id: int
    id: ModelConfigId | None = None
    name: str | None = None


class ListModelConfigs(Query[tuple[ModelConfig, ...]], frozen=True, kw_only=True):
    """What the user may use: own configs first, then system ones; hidden ones not."""

    subject: ClassVar[str] = "llm_router.list_model_configs"
    user_id: int


class KeepInlineConfig(Command[ModelConfig], frozen=True, kw_only=True):
    """Turn credentials that came with a request into a private, hidden, sealed config; equal ones are kept once.

    The only message that carries a provider key. Errors: BaseUrlRefused, ApiKeyRequired.
    """

    subject: ClassVar[str] = "llm_router.keep_inline_config"
    user_id: int
    provider: str
    base_url: str | None = None
    model: str
    api_key: str
    protocol: Protocol = "openai"
    auth: Credential = "bearer"


class ModelConfigChanged(Event, frozen=True, kw_only=True):
    """A config was made, changed or removed: forget what you remember of it. `owner_id` None: a system config."""

    subject: ClassVar[str] = "llm_router.event.model_config_changed"
    id: ModelConfigId
    owner_id: int | None = None
