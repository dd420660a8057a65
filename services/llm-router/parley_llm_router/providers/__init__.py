"""PROVIDERS: the protocols Parley speaks to models, by the name a model config gives them."""

from parley_llm_router.providers.openai import OpenAI
from parley_llm_router.providers.provider import Provider

PROVIDERS: dict[str, Provider] = {"openai": OpenAI()}
