"""The speaker: of all replicas of activity, the one that writes presence down and tells of changes.

Every replica hears every count and knows who is online. If each told of what it sees, a change would be told twice, and a
replica that lags would take back what another just said. So one holds a lease, a row in Postgres renewed every 5 s and
locked while it writes; the others keep silent and up to date, and one of them goes on when the lease runs out.

What was told is the stored status. A change is told when storing it changed something, so whoever takes over, and whoever
starts anew, tells what is different from then and nothing else.
"""

import asyncio
from collections.abc import Collection
from datetime import datetime, timedelta

from parley_activity.presence import SILENCE_S, Connected
from parley_activity.store import ActivityStore
from parley_contracts.activity import PresenceChanged, PresenceStatus
from parley_contracts.ids import new_id
from parley_runtime.clock import Clock
from parley_runtime.database import Database, Transaction

SWEEP_S = 5.0
LEASE = timedelta(seconds=10)
NOTE_EVERY = timedelta(seconds=30)
"""How often it is written down that whoever is online was seen."""


class Speaker:
    """Owned by its service; `sweep` and `tell` are the service's loops, and only `tell` writes."""

    name = "speaker"

    def __init__(self, connected: Connected, database: Database, clock: Clock) -> None:
        self._connected = connected
        self._database = database
        self._clock = clock
        self._replica = new_id()
        self._woken = asyncio.Event()
        self._changed: set[int] = set()
        self._is_behind = True  # what was told is not known to be what we see: compare everybody, not the changed ones
        self._hears_since_s: float | None = None
        self._noted_at: datetime | None = None

    async def open(self) -> None:
        """Connections are made when needed."""

    async def check(self) -> None:
        """The database is asked by itself."""

    async def close(self) -> None:
        """Let another replica go on at once."""
        async with self._database.transaction() as tx:
            await ActivityStore(tx).release_speech(self._replica, self._clock.now())

    def see(self, changed: Collection[int]) -> None:
        """These users came or went."""
        if changed:
            self._changed.update(changed)
            self._woken.set()

    async def sweep(self) -> None:
        while True:
            self.see(self._connected.expire(self._clock.monotonic()))
            self._woken.set()  # renews the lease
            await self._clock.sleep(SWEEP_S)

    async def tell(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            await self.tell_once()

    async def tell_once(self) -> None:
        """Write and tell what changed since the last time, if it is on us to speak."""
        changed, self._changed = self._changed, set()
        was_behind, self._is_behind = self._is_behind, True  # so it stays when anything below fails
        knows_all = self._has_heard_everybody()
        async with self._database.transaction() as tx:
            store, now = ActivityStore(tx), self._clock.now()
            if not await store.hold_speech(self._replica, now=now, until=now + LEASE):
                return
            await self._tell_of(changed, store, tx, now)
            if was_behind:
                await self._catch_up(store, tx, now, knows_all=knows_all)
            if self._noted_at is None or now - self._noted_at >= NOTE_EVERY:
                await store.note_active(self._connected.active_users(), now)
                self._noted_at = now
        self._is_behind = not knows_all

    async def _tell_of(self, changed: Collection[int], store: ActivityStore, tx: Transaction, now: datetime) -> None:
        came = {user_id for user_id in changed if self._connected.is_active(user_id)}
        went = set(changed) - came
        if came:
            _announce(await store.mark_active(came, now), "ACTIVE", tx, now)
        if went:
            await store.note_active(went, now)
            _announce(await store.mark_offline(went), "OFFLINE", tx, now)

    async def _catch_up(self, store: ActivityStore, tx: Transaction, now: datetime, *, knows_all: bool) -> None:
        told, seen = await store.online_users(), self._connected.active_users()
        _announce(await store.mark_active(seen - told, now), "ACTIVE", tx, now)
        if knows_all:
            # When they were last seen stays as it is written: they may have left long ago, while nobody listened.
            _announce(await store.mark_offline(told - seen), "OFFLINE", tx, now)

    def _has_heard_everybody(self) -> bool:
        """A replica that just started does not know yet who is online; it puts nobody offline whom it never saw."""
        now_s = self._clock.monotonic()
        if self._hears_since_s is None:
            self._hears_since_s = now_s
        return now_s - self._hears_since_s > SILENCE_S


def _announce(user_ids: Collection[int], status: PresenceStatus, tx: Transaction, now: datetime) -> None:
    for user_id in user_ids:
        tx.announce(PresenceChanged(user_id=user_id, status=status, changed_at=now))
