"""Settlement: a turn's result into the books, then what may be known of it once the commit stands."""

from prometheus_client import Counter

from parley_contracts.turns import TurnResult
from parley_runtime.database import Database
from parley_usage.counters import Counters
from parley_usage.handlers import Handlers

turns_settled_total = Counter("parley_turns_settled_total", "Turns whose result was billed.")
cost_usd_total = Counter("parley_cost_usd_total", "What provider calls cost in US dollars.", ["provider", "is_billable"])


class Settlement:
    """Settles results, whoever found them: the stream, or the sweeper."""

    def __init__(self, database: Database, handlers: Handlers, counters: Counters) -> None:
        self._settle = database.transact(handlers.settle_turn)
        self._calendar = handlers.calendar
        self._counters = counters

    async def settle(self, result: TurnResult) -> None:
        """Any number of times; the first one charges."""
        charges = await self._settle(result)
        if charges is not None:
            turns_settled_total.inc()
        for charge in charges or ():
            cost_usd_total.labels(charge.provider, str(charge.is_billable).lower()).inc(float(charge.cost_usd))
        # Also when it was settled already: who settled it may have died before it counted.
        self._counters.count(result.user_id, self._calendar.day(result.ended_at))
