"""SERVICES: the six parts of Parley. The page to read first: each line is a process that is run, scaled and killed alone.

A part is imported only where it is run, so that a router's process holds no web framework. `parley up` starts them in
this order, the gateway last: who can reach Parley finds everybody there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from parley_runtime.bus import Bus
from parley_runtime.service import Service
from parley_runtime.settings import Settings


@dataclass(frozen=True, slots=True)
class Part:
    """Where a service is: its package, its class, the class of its settings, and what several of it are called."""

    package: str
    service: str
    settings: str
    replicas: str

    @property
    def settings_class(self) -> type[Settings]:
        if self.settings == "Settings":  # it adds nothing of its own
            return Settings
        found: type[Settings] = getattr(import_module(f"{self.package}.settings"), self.settings)
        return found

    @property
    def service_class(self) -> Callable[[Settings, Bus], Service]:
        found: Callable[[Settings, Bus], Service] = getattr(import_module(f"{self.package}.service"), self.service)
        return found

    @property
    def migrations(self) -> tuple[str, str] | None:
        """The package whose `migrations` make its schema, and the schema's name; None: it stores nothing."""
        found: tuple[str, str] | None = getattr(self.service_class, "MIGRATIONS", None)
        return found


SERVICES: dict[str, Part] = {
    "auth": Part("parley_auth", "AuthService", "AuthSettings", "auths"),
    "usage": Part("parley_usage", "UsageService", "UsageSettings", "usages"),
    "activity": Part("parley_activity", "ActivityService", "Settings", "activities"),
    "llm-router": Part("parley_llm_router", "LlmRouterService", "LlmRouterSettings", "routers"),
    "chat": Part("parley_chat", "ChatService", "ChatSettings", "chats"),
    "gateway": Part("parley_gateway", "GatewayService", "GatewaySettings", "gateways"),
}


def bus_name(service: str) -> str:
    """Folders, the CLI and Kubernetes say `llm-router`; Python and subjects say `llm_router`."""
    return service.replace("-", "_")
