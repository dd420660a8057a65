"""Model configs at the edge: the llm-router's answers, remembered until one changes, or for a minute."""

from collections.abc import Callable

from parley_contracts.model_configs import GetModelConfig, ModelConfig, ModelConfigChanged
from parley_runtime.bus import Bus
from parley_runtime.clock import Clock

_REMEMBERED_S = 60.0
_MOST = 10_000


class ModelConfigs:
    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._monotonic: Callable[[], float] = clock.monotonic
        self._known: dict[tuple[int, str | None, str | None], tuple[float, ModelConfig]] = {}
        bus.on(ModelConfigChanged, self.forget)
        bus.on_reconnect(self._known.clear)

    async def get(self, user_id: int, *, id: str | None = None, name: str | None = None) -> ModelConfig:  # noqa: A002 - the field's name
        """Raises ModelNotFound or ModelConfigNotFound; neither id nor name: the default."""
        key = (user_id, id, name)
        now = self._monotonic()
        found = self._known.get(key)
        if found is not None and now - found[0] < _REMEMBERED_S:
            return found[1]
        config = await self._bus.ask(GetModelConfig(user_id=user_id, id=id, name=name))
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[key] = (now, config)
        return config

    async def forget(self, _changed: ModelConfigChanged) -> None:
        self._known.clear()
