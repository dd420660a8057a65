"""What was revoked: ended logins, changed rights, deleted keys. Told by events, and asked for every 4 s: some are missed.

So a revocation holds on every route, and closes every open stream, within 5 s; while auth is down, valid tokens go on working.
"""

from collections.abc import Callable, Hashable
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

import msgspec
import structlog

from parley_contracts.accounts import ApiKeyRevoked, FamilyRevoked, ListRevoked, Principal, RightsChanged
from parley_contracts.errors import ParleyError, TokenExpired, TokenRevoked
from parley_runtime.bus import Bus
from parley_runtime.clock import Clock

log = structlog.get_logger()

_ASK_EVERY_S = 4.0
_ASK_TIMEOUT_S = 2.0
_REMEMBERED = timedelta(hours=25)
"""A little longer than the longest access token lives (S3_TOKEN_TTL_S)."""
_NEVER = datetime.min.replace(tzinfo=UTC)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Cut(msgspec.Struct, frozen=True):
    """Tokens made before these instants are refused: log in again; refresh."""

    log_in: datetime = _NEVER
    refresh: datetime = _NEVER


class _Remembered(Generic[K, V]):
    """A mapping that forgets what no living token can meet any more."""

    def __init__(self) -> None:
        self._values: dict[K, tuple[datetime, V]] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def get(self, key: K) -> V | None:
        found = self._values.get(key)
        return None if found is None else found[1]

    def put(self, key: K, value: V, until: datetime) -> bool:
        """Whether this is news."""
        is_news = self.get(key) != value
        self._values[key] = (until, value)
        return is_news

    def forget(self, now: datetime) -> None:
        self._values = {key: kept for key, kept in self._values.items() if kept[0] > now}


class RevocationList:
    """`refusal(principal)`: why a token is refused now. `listeners` are called after each news."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._as_of: datetime | None = None
        self._is_reached = True
        self._families: _Remembered[str, int] = _Remembered()
        self._keys: _Remembered[str, int] = _Remembered()
        self._users: _Remembered[int, _Cut] = _Remembered()
        self._roles: _Remembered[str, _Cut] = _Remembered()
        self.listeners: list[Callable[[], None]] = []
        bus.on(FamilyRevoked, self.hear_family)
        bus.on(RightsChanged, self.hear_rights)
        bus.on(ApiKeyRevoked, self.hear_key)

    def refusal(self, principal: Principal) -> ParleyError | None:
        if principal.key_id is not None:
            if principal.key_id in self._keys:
                return TokenRevoked()
        elif principal.family in self._families:
            return TokenRevoked()
        user, role = self._users.get(principal.user_id), self._roles.get(principal.role)
        if user is None and role is None:
            return None
        issued_at = principal.issued_at or _NEVER
        cuts = [cut for cut in (user, role) if cut is not None]
        if any(issued_at < cut.log_in for cut in cuts):
            return TokenRevoked()
        if any(issued_at < cut.refresh for cut in cuts):
            return TokenExpired()
        return None

    async def hear_family(self, event: FamilyRevoked) -> None:
        self._tell(is_news=self._learn_family(event))

    async def hear_rights(self, event: RightsChanged) -> None:
        self._tell(is_news=self._learn_rights(event))

    async def hear_key(self, event: ApiKeyRevoked) -> None:
        self._tell(is_news=self._learn_key(event))

    async def keep_learning(self) -> None:
        """A loop of the service."""
        while True:
            await self.learn()
            await self._clock.sleep(_ASK_EVERY_S)

    async def learn(self) -> None:
        try:
            revoked = await self._bus.ask(ListRevoked(since=self._as_of), timeout_s=_ASK_TIMEOUT_S)
        except ParleyError as error:
            if self._is_reached:
                log.warning("revocations_not_known", code=error.code)
            self._is_reached = False
            return
        self._is_reached = True
        self._as_of = revoked.as_of
        news = [self._learn_family(event) for event in revoked.families]
        news += [self._learn_rights(event) for event in revoked.rights]
        news += [self._learn_key(event) for event in revoked.api_keys]
        self._tell(is_news=any(news))
        for remembered in (self._families, self._keys, self._users, self._roles):
            remembered.forget(self._clock.now())

    def _learn_family(self, event: FamilyRevoked) -> bool:
        return self._families.put(event.family, event.user_id, self._until)

    def _learn_key(self, event: ApiKeyRevoked) -> bool:
        return self._keys.put(event.key_id, event.user_id, self._until)

    def _learn_rights(self, event: RightsChanged) -> bool:
        is_news = False
        if event.user_id is not None:
            is_news = self._users.put(event.user_id, _later(self._users.get(event.user_id), event), self._until)
        if event.role is not None:
            is_news = self._roles.put(event.role, _later(self._roles.get(event.role), event), self._until) or is_news
        return is_news

    @property
    def _until(self) -> datetime:
        return self._clock.now() + _REMEMBERED

    def _tell(self, *, is_news: bool) -> None:
        if is_news:
            for listener in self.listeners:
                listener()


def _later(known: _Cut | None, event: RightsChanged) -> _Cut:
    cut = known or _Cut()
    return _Cut(
        log_in=max(cut.log_in, event.before) if event.must_log_in else cut.log_in,
        refresh=max(cut.refresh, event.before),
    )
