"""Usage: what every turn cost. Hears budgets' commands and TurnResult; asks FindTurn; says UsageRecorded."""

from parley_contracts.turns import TurnResult
from parley_contracts.usage import GetBudget, ListCharges, ReleaseBudget, ReserveBudget, SetBudget
from parley_runtime.bus import Bus
from parley_runtime.clock import Clock, SystemClock
from parley_runtime.database import Database
from parley_runtime.service import Service
from parley_usage.counters import Counters
from parley_usage.handlers import Handlers
from parley_usage.periods import Calendar
from parley_usage.pricing import load_prices
from parley_usage.settings import UsageSettings
from parley_usage.settlement import Settlement
from parley_usage.sweeper import Sweeper

MIGRATIONS = ("parley_usage", "usage")


class UsageService(Service):
    """Keeps the books."""

    MIGRATIONS = MIGRATIONS

    def __init__(self, settings: UsageSettings, bus: Bus, clock: Clock | None = None) -> None:
        clock = clock or SystemClock()
        database = Database(settings.database_url.get_secret_value(), bus=bus, pool_size=settings.database_pool_size)
        handlers = Handlers(prices=load_prices(), calendar=Calendar(settings.timezone), clock=clock)
        counters = Counters(settings.redis_url.get_secret_value(), database, clock)
        settlement = Settlement(database, handlers, counters)
        sweeper = Sweeper(bus, database, settlement, clock)
        bus.answer(ReserveBudget, database.transact(handlers.reserve_budget))
        bus.answer(ReleaseBudget, database.transact(handlers.release_budget))
        bus.answer(GetBudget, database.transact(handlers.get_budget))
        bus.answer(SetBudget, database.transact(handlers.set_budget))
        bus.answer(ListCharges, database.transact(handlers.list_charges))
        bus.take(TurnResult, settlement.settle)
        super().__init__(
            "usage",
            bus,
            settings,
            owns=(database, counters),
            loops=(sweeper.keep_holds_true, counters.keep_written),
        )
