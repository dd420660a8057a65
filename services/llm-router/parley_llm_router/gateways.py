"""Gateways: which of them live. A stateless turn whose gateway nobody hears any more has nobody who listens."""

from collections.abc import Callable

from parley_contracts.turns import GatewayAlive, Generate

DEAD_AFTER_S = 10.0
"""A gateway says that it lives every 2 s."""
_FORGET_AFTER_S = 60.0


class Gateways:
    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._heard: dict[str, float] = {}
        self._deaf_until = monotonic()

    async def hear(self, alive: GatewayAlive) -> None:
        now = self._monotonic()
        self._heard[alive.gateway_id] = now
        for turn_id in alive.adopted:
            self._heard[turn_id] = now

    def missed(self) -> None:
        """After a reconnect silence proves nothing: everyone has their time anew."""
        self._deaf_until = self._monotonic()

    def forget_old(self) -> None:
        long_ago = self._monotonic() - _FORGET_AFTER_S
        self._heard = {name: heard_at for name, heard_at in self._heard.items() if heard_at > long_ago}

    def is_gone(self, command: Generate, *, since: float) -> bool:
        """Whether nobody holds this turn: neither its gateway nor one that adopted it was heard for 10 s.

        `since`: when the turn began here; its gateway may never have been heard before.
        """
        if command.store or command.gateway_id is None:
            return False
        ids = (command.gateway_id, command.turn_id)
        heard_at = max(since, self._deaf_until, *(self._heard.get(name, 0.0) for name in ids))
        return self._monotonic() - heard_at > DEAD_AFTER_S
