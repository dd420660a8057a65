"""What activity does: keep count of connections, and tell who is online. Answers are what is stored, so all replicas agree."""

from dataclasses import dataclass

from parley_activity.presence import Connected
from parley_activity.speaker import Speaker
from parley_activity.store import ActivityStore
from parley_contracts.accounts import UserDeleted
from parley_contracts.activity import ConnectionsCounted, GetPresence, ListPresence, Presence, PresenceChanged
from parley_runtime.clock import Clock
from parley_runtime.database import Transaction


@dataclass(frozen=True, slots=True)
class Handlers:
    connected: Connected
    speaker: Speaker
    clock: Clock

    async def count_connections(self, event: ConnectionsCounted) -> None:
        self.speaker.see(self.connected.hear(event, self.clock.monotonic()))

    async def get_presence(self, query: GetPresence, tx: Transaction) -> Presence:
        return await ActivityStore(tx).get_presence(query.user_id)

    async def list_presence(self, _query: ListPresence, tx: Transaction) -> tuple[Presence, ...]:
        return await ActivityStore(tx).list_online()

    async def erase_user(self, event: UserDeleted, tx: Transaction) -> None:
        """Heard by every replica, and again for days: that also takes the row which a connection's end leaves later."""
        if await ActivityStore(tx).delete(event.user_id):
            tx.announce(PresenceChanged(user_id=event.user_id, status="OFFLINE", changed_at=self.clock.now()))
