"""SERVICES: every part of Parley by the name it is run under. The page to read first.

A gateway speaks to clients; chat keeps conversations, llm-router asks models, usage keeps the books, auth keeps accounts,
activity knows who is here. They share a bus (`parley_runtime.bus`) and its words (`parley_contracts`), and nothing else.
"""

from dataclasses import dataclass
from importlib import import_module

from parley_runtime.bus import Bus
from parley_runtime.service import Service
from parley_runtime.settings import Settings


@dataclass(frozen=True, slots=True)
class Kind:
    """Where a service is to be found. Imported when it is run, so that a process holds no more than it needs."""

    package: str
    service: str
    settings: str = "parley_runtime.settings:Settings"
    schema: str | None = None
    """Its schema in PostgreSQL; `package`.migrations makes it."""

    def make_settings(self) -> Settings:
        """Raises pydantic's ValidationError."""
        settings: Settings = _load(self.settings)()
        return settings

    def make(self, settings: Settings, bus: Bus) -> Service:
        """Wire it; no I/O happens here."""
        service: Service = _load(f"{self.package}.service:{self.service}")(settings, bus)
        return service


def _load(place: str) -> type:
    module, _, name = place.partition(":")
    found: type = getattr(import_module(module), name)
    return found


SERVICES: dict[str, Kind] = {
    "auth": Kind("parley_auth", "AuthService", "parley_auth.settings:AuthSettings", schema="auth"),
    "usage": Kind("parley_usage", "UsageService", "parley_usage.settings:UsageSettings", schema="usage"),
    "llm-router": Kind(
        "parley_llm_router", "LlmRouterService", "parley_llm_router.settings:LlmRouterSettings", schema="llm_router"
    ),
    "chat": Kind("parley_chat", "ChatService", "parley_chat.settings:ChatSettings", schema="chat"),
    "activity": Kind("parley_activity", "ActivityService", schema="activity"),
    "gateway": Kind("parley_gateway", "GatewayService", "parley_gateway.settings:GatewaySettings"),
}
