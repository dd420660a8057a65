"""Presence at the edge: who holds open streams on this gateway, told to activity at each change and every 15 s.

Who left is told ten seconds later: most come back with their next question, and each change costs two services a write.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from parley_contracts.accounts import Principal
from parley_contracts.activity import ConnectionsCounted
from parley_runtime.bus import Bus
from parley_runtime.clock import Clock

_TELL_ALL_S = 15.0
_LINGER_S = 10.0
_LOOK_S = 1.0


class Connections:
    """Open connections by user. `held` counts one for as long as it is open.

    One that names its `principal` is closed by `close` when that is refused: logged out, disabled, demoted (security §10).
    """

    def __init__(self, bus: Bus, gateway_id: str, clock: Clock) -> None:
        self._bus = bus
        self._gateway_id = gateway_id
        self._clock = clock
        self._counts: Counter[int] = Counter()
        self._left_at: dict[int, float] = {}
        self._closable: dict[object, tuple[Principal, Callable[[], None]]] = {}

    @asynccontextmanager
    async def held(
        self, user_id: int, principal: Principal | None = None, close: Callable[[], None] = lambda: None
    ) -> AsyncIterator[None]:
        self._counts[user_id] += 1
        place = object()
        if principal is not None:
            self._closable[place] = (principal, close)
        try:
            if self._left_at.pop(user_id, None) is None and self._counts[user_id] == 1:
                await self._tell(user_id)
            yield
        finally:
            self._closable.pop(place, None)
            self._counts[user_id] -= 1
            if not self._counts[user_id]:
                del self._counts[user_id]
                self._left_at[user_id] = self._clock.monotonic()

    def close_if(self, is_refused: Callable[[Principal], bool]) -> None:
        for principal, close in tuple(self._closable.values()):
            if is_refused(principal):
                close()

    async def _tell(self, user_id: int) -> None:
        users = {user_id: self._counts[user_id]}
        await self._bus.publish(ConnectionsCounted(gateway_id=self._gateway_id, users=users, is_complete=False))

    async def tell_all(self) -> None:
        """A loop of the service: heals what a lost message broke, and lets a dead gateway's users expire."""
        while True:
            users = dict.fromkeys(self._left_at, 1) | self._counts
            await self._bus.publish(ConnectionsCounted(gateway_id=self._gateway_id, users=users, is_complete=True))
            await self._clock.sleep(_TELL_ALL_S)

    async def tell_gone(self) -> None:
        """A loop of the service: who left and did not come back."""
        while True:
            await self._clock.sleep(_LOOK_S)
            long_ago = self._clock.monotonic() - _LINGER_S
            for user_id in [user_id for user_id, left_at in self._left_at.items() if left_at <= long_ago]:
                del self._left_at[user_id]
                await self._tell(user_id)
