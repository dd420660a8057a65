"""Claims: who may speak in a turn. Compare-and-set on its control subject; an acknowledgement fences nobody (reliability §4).

`decide` and `settle` are the rules, `Claims` carries them out, `Hold` is what one run holds of a turn.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeAlias

import structlog

from parley_contracts.turns import Control, TurnClaim, TurnFinal
from parley_runtime.bus import ControlRefused, LastControl, LogUnreadable, OutcomeUnknown, TurnLog
from parley_runtime.clock import Clock

log = structlog.get_logger()

MAX_RUNS = 3
"""So many routers may die of one turn."""
_PAUSES_S = (0.0, 0.05, 0.1, 0.2, 0.5)
_LONGEST_PAUSE_S = 1.0


class Fenced(Exception):
    """Another's claim or final stands: whoever gets this is silent from now on."""

    def __init__(self, last: LastControl) -> None:
        super().__init__("another's control message stands")
        self.last = last


class ControlLost(Exception):
    """Control could not be read or written for too long. The command comes again."""


@dataclass(frozen=True, slots=True)
class Begin:
    """The next claim is `attempt` of `run`. `after`: whose turn this was before, if it is a takeover."""

    attempt: int
    run: int
    after: TurnClaim | None = None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The last of all runs died as well."""

    after: TurnClaim


@dataclass(frozen=True, slots=True)
class Over:
    """The turn has ended; only its result may be missing."""

    final: TurnFinal


def decide(last: Control | None) -> Begin | GiveUp | Over:
    """What a router that takes the command does, given the last control message."""
    match last:
        case None:
            return Begin(attempt=1, run=1)
        case TurnFinal():
            return Over(last)
        case TurnClaim(attempt=attempt, run=run):
            return GiveUp(last) if run >= MAX_RUNS else Begin(attempt=attempt + 1, run=run + 1, after=last)


@dataclass(frozen=True, slots=True)
class Won:
    seq: int


@dataclass(frozen=True, slots=True)
class Again:
    """Not stored so far: publish again, expecting `seq`."""

    seq: int


@dataclass(frozen=True, slots=True)
class Lost:
    last: LastControl


Settled: TypeAlias = Won | Again | Lost


def settle(mine: Control, last: LastControl, *, over: Collection[str]) -> Settled:
    """The nonce rule: what an unacknowledged or refused `mine` came to, by what the leader says now.

    `over` holds the nonces that `mine` may replace: the claim it was decided upon, and one's own. A last message older than
    all that, or none, means that the store lost its end: there is nobody else, so `mine` is published again.
    """
    entry = last.entry
    if entry is not None and entry.nonce == mine.nonce:
        return Won(last.seq)
    if entry is None or (isinstance(entry, TurnClaim) and (entry.nonce in over or entry.attempt < mine.attempt)):
        return Again(last.seq)
    return Lost(last)


class Claims:
    """Reads and writes control, through the leader, until the outcome is known."""

    def __init__(self, turns: TurnLog, clock: Clock, *, patience_s: float = 15.0) -> None:
        self._turns = turns
        self._clock = clock
        self._patience_s = patience_s

    async def last(self, turn_id: str) -> LastControl:
        """Raises ControlLost."""
        began_at = self._clock.monotonic()
        tries = 0
        while True:
            try:
                return await self._turns.last_control(turn_id)
            except LogUnreadable as error:
                await self._pause(tries, began_at, error)
            tries += 1

    async def put(self, mine: Control, *, seq: int, over: Collection[str], patience_s: float | None = None) -> LastControl:
        """Store a claim or a final over the control message `seq`. Raises Fenced, ControlLost."""
        began_at = self._clock.monotonic()
        tries = 0
        while True:
            try:
                return LastControl(await self._turns.append_control(mine, expected_seq=seq), mine)
            except (ControlRefused, OutcomeUnknown) as error:
                unknown = error
            try:
                last = await self._turns.last_control(mine.turn_id)
            except LogUnreadable as error:
                await self._pause(tries, began_at, error, patience_s)
            else:
                match settle(mine, last, over=over):
                    case Won(stored):
                        return LastControl(stored, mine)
                    case Again(seq):
                        await self._pause(tries, began_at, unknown, patience_s)
                    case Lost(standing):
                        raise Fenced(standing)
            tries += 1

    async def _pause(self, tries: int, began_at: float, error: Exception, patience_s: float | None = None) -> None:
        if self._clock.monotonic() - began_at > (self._patience_s if patience_s is None else patience_s):
            raise ControlLost from error
        if tries == len(_PAUSES_S):
            log.warning("control_unreachable", error=repr(error))
        await self._clock.sleep(_PAUSES_S[tries] if tries < len(_PAUSES_S) else _LONGEST_PAUSE_S)


class Hold:
    """One run's hold on its turn: the claim it made last, and all it may write over."""

    def __init__(self, claims: Claims, turn_id: str, last: LastControl) -> None:
        self.claim: TurnClaim | None = None
        self.is_over = False
        self._claims = claims
        self._turn_id = turn_id
        self._seq = last.seq
        self._nonces = {last.entry.nonce} if last.entry is not None else set[str]()
        self._lock = asyncio.Lock()  # nobody looks while a claim's fate is open: it would take the old one for lost

    async def put(self, entry: Control, *, patience_s: float | None = None) -> None:
        """Raises Fenced, ControlLost."""
        async with self._lock:
            await self._put(entry, self._seq, patience_s)
            if isinstance(entry, TurnClaim):
                self.claim = entry
            else:
                self.is_over = True

    def is_foreign(self, control: Control) -> bool:
        """Whether a live control message hints at a successor; it is no more than a hint, the stream may have refused it."""
        return self.claim is not None and control.nonce not in self._nonces and control.attempt >= self.claim.attempt

    async def look(self) -> None:
        """Read whether the turn is still this run's. Raises Fenced, ControlLost."""
        async with self._lock:
            if self.claim is None or self.is_over:
                return
            last = await self._claims.last(self._turn_id)
            match settle(self.claim, last, over=self._nonces):
                case Won():
                    pass
                case Again(seq):  # the store lost its end, and our claim with it
                    await self._put(self.claim, seq, None)
                case Lost(standing):
                    raise Fenced(standing)

    async def _put(self, entry: Control, seq: int, patience_s: float | None) -> None:
        over = frozenset(self._nonces)
        self._nonces.add(entry.nonce)
        self._seq = (await self._claims.put(entry, seq=seq, over=over, patience_s=patience_s)).seq
