"""Activity: who is online.

Hears ConnectionsCounted and UserDeleted; answers GetPresence and ListPresence; says PresenceChanged.
"""

from parley_activity.handlers import Handlers
from parley_activity.presence import Connected
from parley_activity.speaker import Speaker
from parley_contracts.accounts import UserDeleted
from parley_contracts.activity import ConnectionsCounted, GetPresence, ListPresence
from parley_runtime.bus import Bus
from parley_runtime.clock import Clock, SystemClock
from parley_runtime.database import Database
from parley_runtime.service import Service
from parley_runtime.settings import Settings


class ActivityService(Service):
    MIGRATIONS = ("parley_activity", "activity")

    def __init__(self, settings: Settings, bus: Bus, clock: Clock = SystemClock()) -> None:  # noqa: B008 - holds no state
        database = Database(settings.database_url.get_secret_value(), bus=bus, pool_size=settings.database_pool_size)
        connected = Connected()
        speaker = Speaker(connected, database, clock)
        handlers = Handlers(connected=connected, speaker=speaker, clock=clock)
        bus.on(ConnectionsCounted, handlers.count_connections)
        bus.on(UserDeleted, database.transact(handlers.erase_user))
        bus.answer(GetPresence, database.transact(handlers.get_presence))
        bus.answer(ListPresence, database.transact(handlers.list_presence))
        super().__init__("activity", bus, settings, owns=(database, speaker), loops=(speaker.sweep, speaker.tell))
