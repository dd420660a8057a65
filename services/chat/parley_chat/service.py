"""Chat: sessions, messages and turns; it accepts every stored turn and sees that it ends.

Answers the questions about sessions and turns; takes TurnResult and dead letters. Hears UserDeleted. Asks GetModelConfig,
ReserveBudget, ReleaseBudget, StopGeneration; says Generate, TurnCommitted, and the TurnResult of a final it wrote itself.
"""

from parley_chat.dead_letters import DeadLetters
from parley_chat.ending import Ending
from parley_chat.handlers import Handlers
from parley_chat.outbox import Outbox
from parley_chat.settings import ChatSettings
from parley_chat.stop import Stopping
from parley_chat.sweeper import Sweeper
from parley_chat.turns import Turns
from parley_contracts.accounts import UserDeleted
from parley_contracts.sessions import (
    CreateSession,
    DeleteSessions,
    GetSession,
    GetSharedSession,
    ListMessages,
    ListSessions,
    UpdateSession,
)
from parley_contracts.turns import FindTurn, GetTurn, StartTurn, StopTurn, TurnResult
from parley_runtime.bus import Bus
from parley_runtime.clock import Clock, SystemClock
from parley_runtime.database import Database
from parley_runtime.service import Service


class ChatService(Service):
    MIGRATIONS = ("parley_chat", "chat")

    def __init__(self, settings: ChatSettings, bus: Bus, clock: Clock = SystemClock()) -> None:  # noqa: B008 - holds no state
        database = Database(settings.database_url.get_secret_value(), bus=bus, pool_size=settings.database_pool_size)
        self.outbox = outbox = Outbox(database, bus, clock, max_messages=settings.chat_max_history_messages)
        ending = Ending(bus, clock)
        stopping = Stopping(database, bus, ending, clock)
        self.sweeper = sweeper = Sweeper(database, bus, outbox, ending, stopping, clock)
        turns = Turns(database, bus, outbox, clock, settings)
        handlers = Handlers(database, stopping, clock)
        bus.answer(CreateSession, database.transact(handlers.create_session))
        bus.answer(UpdateSession, database.transact(handlers.update_session))
        bus.answer(GetSession, database.transact(handlers.get_session))
        bus.answer(ListSessions, database.transact(handlers.list_sessions))
        bus.answer(ListMessages, database.transact(handlers.list_messages))
        bus.answer(GetSharedSession, database.transact(handlers.get_shared_session))
        bus.answer(DeleteSessions, handlers.delete_sessions)
        bus.answer(StartTurn, turns.start_turn)
        bus.answer(GetTurn, database.transact(turns.get_turn))
        bus.answer(FindTurn, turns.find_turn)
        bus.answer(StopTurn, stopping.stop_turn)
        bus.on(UserDeleted, handlers.erase_user)
        bus.take(TurnResult, database.transact(turns.finish_turn))
        bus.take_dead_letters(DeadLetters(database, bus, ending).bury)
        super().__init__("chat", bus, settings, owns=(database,), loops=(outbox.relay_outbox, sweeper.sweep_turns))
