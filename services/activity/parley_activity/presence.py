"""Presence: who is online, as the union of what every gateway counted. Pure: counts and time in, changes out.

A user is ACTIVE while any gateway that was heard within 45 s reported an open connection of theirs, else OFFLINE.
Gateways tell of each change and repeat everything every 15 s, so a lost message heals and a dead gateway's users expire.
"""

from collections import defaultdict
from collections.abc import Collection

from parley_contracts.activity import ConnectionsCounted

SILENCE_S = 45.0
"""A gateway not heard for so long is gone: it has missed three of its reports."""


class Connected:
    """What this replica heard. Times are seconds of a monotonic clock: setting the wall clock puts nobody offline."""

    def __init__(self) -> None:
        self._heard_at: dict[str, float] = {}
        self._users: defaultdict[str, set[int]] = defaultdict(set)
        self._gateways: defaultdict[int, set[str]] = defaultdict(set)

    def hear(self, event: ConnectionsCounted, now_s: float) -> frozenset[int]:
        """The users whose status this changes."""
        self._heard_at[event.gateway_id] = now_s
        connected = {user_id for user_id, connections in event.users.items() if connections > 0}
        gone = self._users[event.gateway_id] if event.is_complete else event.users.keys()
        return self._set(event.gateway_id, connected, frozenset(gone) - connected)

    def expire(self, now_s: float) -> frozenset[int]:
        """The users who are offline now because their gateways fell silent."""
        silent = [gateway_id for gateway_id, heard_at in self._heard_at.items() if now_s - heard_at > SILENCE_S]
        changed: set[int] = set()
        for gateway_id in silent:
            changed |= self._set(gateway_id, (), frozenset(self._users[gateway_id]))
            del self._heard_at[gateway_id], self._users[gateway_id]
        return frozenset(changed)

    def is_active(self, user_id: int) -> bool:
        return user_id in self._gateways

    def active_users(self) -> frozenset[int]:
        return frozenset(self._gateways)

    def _set(self, gateway_id: str, connected: Collection[int], gone: Collection[int]) -> frozenset[int]:
        changed = {user_id for user_id in connected if user_id not in self._gateways}
        for user_id in connected:
            self._gateways[user_id].add(gateway_id)
        for user_id in gone:
            if user_id not in self._gateways:
                continue
            self._gateways[user_id].discard(gateway_id)
            if not self._gateways[user_id]:
                del self._gateways[user_id]
                changed.add(user_id)
        self._users[gateway_id].update(connected)
        self._users[gateway_id].difference_update(gone)
        return frozenset(changed)
