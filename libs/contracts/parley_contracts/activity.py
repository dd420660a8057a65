"""Presence: who is online, as the union of all connections of a user over all gateways."""

from datetime import datetime
from typing import ClassVar, Literal, TypeAlias

import msgspec

from parley_contracts.ids import GatewayId
from parley_contracts.message import Event, Query

PresenceStatus: TypeAlias = Literal["ACTIVE", "IDLE", "OFFLINE"]


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """A user's status now. `last_active_at` None: never seen."""

    user_id: int
    status: PresenceStatus
    last_active_at: datetime | None = None


class ConnectionsCounted(Event, frozen=True, kw_only=True):
    """Which users hold open connections on one gateway.

    Said at each change of one user (`users` holds just that one), and for all of them every 15 s, so that a lost message
    heals and a dead gateway's users expire.

    `users` maps a user id to the number of their open connections; `is_complete`: users not named have none.
    """

    subject: ClassVar[str] = "gateway.event.connections_counted"
    gateway_id: GatewayId
    users: dict[int, int]
    is_complete: bool


class GetPresence(Query[Presence], frozen=True, kw_only=True):
    subject: ClassVar[str] = "activity.get_presence"
    user_id: int


class ListPresence(Query[tuple[Presence, ...]], frozen=True, kw_only=True):
    """Everyone who is not OFFLINE."""

    subject: ClassVar[str] = "activity.list_presence"


class PresenceChanged(Event, frozen=True, kw_only=True):
    subject: ClassVar[str] = "activity.event.presence_changed"
    user_id: int
    status: PresenceStatus
    changed_at: datetime
