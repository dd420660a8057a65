"""LLM router: the only one who speaks to model providers, and who knows their keys.

Takes Generate; answers StopGeneration, GetModelConfig, ListModelConfigs, KeepInlineConfig; hears GatewayAlive,
ModelConfigChanged and UserDeleted; says TurnClaim, TurnDelta, TurnFinal, TurnResult and ModelConfigChanged.
"""

from parley_contracts.accounts import UserDeleted
from parley_contracts.model_configs import GetModelConfig, KeepInlineConfig, ListModelConfigs, ModelConfigChanged
from parley_contracts.turns import GatewayAlive, Generate
from parley_llm_router.claims import Claims
from parley_llm_router.failover import Pauses
from parley_llm_router.gateways import Gateways
from parley_llm_router.handlers import Handlers
from parley_llm_router.http_client import HttpClients
from parley_llm_router.means import Limits, Means
from parley_llm_router.publisher import Publisher
from parley_llm_router.registry import Fingerprints, Registry, SystemModels
from parley_llm_router.sealing import Sealer
from parley_llm_router.settings import LlmRouterSettings
from parley_llm_router.turns import Turns
from parley_runtime.bus import Bus
from parley_runtime.clock import Clock, SystemClock
from parley_runtime.database import Database
from parley_runtime.service import Service
from parley_runtime.tasks import Tasks


class Providers:
    """The connections to providers, as something the service owns."""

    name = "providers"

    def __init__(self, clients: HttpClients) -> None:
        self._clients = clients

    async def open(self) -> None:
        pass

    async def check(self) -> None:
        pass  # a provider that is down makes its models fail, not this service

    async def close(self) -> None:
        await self._clients.close()


class LlmRouterService(Service):
    MIGRATIONS = ("parley_llm_router", "llm_router")

    def __init__(self, settings: LlmRouterSettings, bus: Bus, clock: Clock = SystemClock()) -> None:  # noqa: B008 - holds no state
        seal_keys = settings.seal_keys.get_secret_value()
        database = Database(settings.database_url.get_secret_value(), bus=bus, pool_size=settings.database_pool_size)
        registry = Registry(SystemModels(settings), database, Sealer(seal_keys, service="llm_router"))
        clients = HttpClients(allow=settings.allowed_origins, user_agent=settings.provider_user_agent)
        means = Means(
            bus=bus,
            claims=Claims(bus.turns, clock),
            publisher=Publisher(bus.turns),
            clients=clients,
            clock=clock,
            limits=limits_of(settings),
            tasks=Tasks(),
        )
        gateways = Gateways(clock.monotonic)
        turns = Turns(means, registry, gateways, drain_s=min(settings.llm_router_drain_s, settings.provider_timeout_ms / 1000))
        handlers = Handlers(
            registry=registry,
            fingerprints=Fingerprints(seal_keys),
            database=database,
            clock=clock,
            allowed_origins=settings.allowed_origins,
        )
        bus.take(Generate, turns.generate, at_once=settings.llm_router_max_turns, keep_alive=True)
        bus.answer(GetModelConfig, handlers.get_model_config)
        bus.answer(ListModelConfigs, database.transact(handlers.list_model_configs))
        bus.answer(KeepInlineConfig, database.transact(handlers.keep_inline_config))
        bus.on(GatewayAlive, gateways.hear)
        bus.on(ModelConfigChanged, registry.forget)
        bus.on(UserDeleted, handlers.erase_user)
        bus.on_reconnect(turns.after_reconnect)
        super().__init__(
            "llm_router",
            bus,
            settings,
            owns=(database, Providers(clients)),
            serves=(turns,),
            loops=(turns.watch_gateways,),
        )


def limits_of(settings: LlmRouterSettings) -> Limits:
    return Limits(
        timeout_s=settings.provider_timeout_ms / 1000,
        max_idle_s=settings.provider_max_idle_ms / 1000,
        request_timeout_s=settings.provider_request_timeout_ms / 1000,
        pauses=Pauses(busy_s=settings.retry_after_429_s, broken_s=settings.retry_after_5xx_s),
        max_output_tokens=settings.max_output_tokens,
    )
