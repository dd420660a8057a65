"""Claims: one router speaks. The rules alone, then on a bus whose acknowledgements get lost."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from parley_contracts.ids import new_id
from parley_contracts.parts import Answer, FinishReason
from parley_contracts.turns import Control, TurnClaim, TurnFinal
from parley_llm_router.claims import (
    Again,
    Begin,
    Claims,
    ControlLost,
    Fenced,
    GiveUp,
    Hold,
    Lost,
    Over,
    Won,
    decide,
    settle,
)
from parley_runtime.bus import ControlRefused, LastControl, LogUnreadable, OutcomeUnknown
from parley_runtime.clock import SystemClock
from parley_runtime.memory_bus import MemoryBus, MemoryHub

TURN = new_id()


def claim(attempt: int = 1, run: int = 1, nonce: str = "mine") -> TurnClaim:
    return TurnClaim(turn_id=TURN, attempt=attempt, run=run, nonce=nonce, provider="P", model="m", claimed_at=datetime.now(UTC))


def final(attempt: int = 1, nonce: str = "final") -> TurnFinal:
    return TurnFinal(
        turn_id=TURN,
        attempt=attempt,
        n=0,
        answer=Answer(),
        finish_reason=FinishReason.STOP,
        ended_at=datetime.now(UTC),
        nonce=nonce,
    )


def test_a_run_follows_the_last_one_and_the_fourth_gives_up() -> None:
    assert decide(None) == Begin(attempt=1, run=1)
    last = claim(attempt=4, run=2)
    assert decide(last) == Begin(attempt=5, run=3, after=last)
    dead = claim(run=3)
    assert decide(dead) == GiveUp(dead)
    ended = final()
    assert decide(ended) == Over(ended)


@pytest.mark.parametrize(
    ("last", "settled"),
    [
        (LastControl(3, claim(nonce="mine")), Won(3)),
        (LastControl(0, None), Again(0)),
        (LastControl(2, claim(nonce="before")), Again(2)),
        (LastControl(2, claim(nonce="older", attempt=1)), Again(2)),
    ],
)
def test_ones_own_nonce_has_won_and_what_was_there_before_means_again(last: LastControl, settled: Any) -> None:
    assert settle(claim(attempt=2), last, over={"before"}) == settled


@pytest.mark.parametrize("entry", [claim(attempt=2, nonce="other"), claim(attempt=3, nonce="other"), final(attempt=1)])
def test_anothers_claim_or_final_has_won(entry: Control) -> None:
    assert settle(claim(attempt=2), LastControl(9, entry), over={"before"}) == Lost(LastControl(9, entry))


class Faulty:
    """A turn log whose publishes fare as a script says: stored and unacknowledged, lost, or as usual."""

    def __init__(self, hub: MemoryHub, *script: str) -> None:
        self._log = MemoryBus(hub, "llm_router").turns
        self._script = list(script)
        self.appended = 0

    async def append_control(self, entry: Control, *, expected_seq: int) -> int:
        self.appended += 1
        match self._script.pop(0) if self._script else "":
            case "unacknowledged":
                await self._log.append_control(entry, expected_seq=expected_seq)
                raise OutcomeUnknown("no acknowledgement")
            case "refused though stored":
                await self._log.append_control(entry, expected_seq=expected_seq)
                raise ControlRefused("wrong last sequence")
            case "lost":
                raise OutcomeUnknown("no acknowledgement")
        return await self._log.append_control(entry, expected_seq=expected_seq)

    async def last_control(self, turn_id: str) -> LastControl:
        if self._script and self._script[0] == "unreadable":
            self._script.pop(0)
            raise LogUnreadable("no leader")
        return await self._log.last_control(turn_id)


def claims_on(log: Any, patience_s: float = 5.0) -> Claims:
    return Claims(log, SystemClock(), patience_s=patience_s)


@pytest.mark.parametrize(
    "script",
    [
        ("unacknowledged",),
        ("refused though stored",),
        ("lost",),
        ("lost", "unacknowledged"),
        ("unacknowledged", "unreadable", "unreadable"),
        ("lost", "unreadable", "lost", "refused though stored"),
    ],
)
async def test_a_claim_is_stored_once_whatever_becomes_of_its_acknowledgement(script: tuple[str, ...]) -> None:
    hub = MemoryHub()
    stood = await claims_on(Faulty(hub, *script)).put(claim(), seq=0, over=set())
    assert stood.seq == hub.controls[TURN].seq
    assert [entry.nonce for entry in hub.logs[TURN] if isinstance(entry, TurnClaim)] == ["mine"]


async def test_one_of_twenty_claims_at_once_is_stored_and_nineteen_know_it() -> None:
    hub = MemoryHub()
    claims = claims_on(MemoryBus(hub, "llm_router").turns)
    outcomes = await asyncio.gather(
        *(claims.put(claim(nonce=f"router {n}"), seq=0, over=set()) for n in range(20)), return_exceptions=True
    )
    assert sum(isinstance(outcome, LastControl) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Fenced) for outcome in outcomes) == 19
    assert len(hub.logs[TURN]) == 1


async def test_a_bus_that_stays_away_is_given_up_without_an_end() -> None:
    hub = MemoryHub()
    hub.cut()
    with pytest.raises(ControlLost):
        await claims_on(MemoryBus(hub, "llm_router").turns, patience_s=0.05).put(claim(), seq=0, over=set())


async def test_a_claim_that_the_store_lost_is_made_again_at_the_next_look() -> None:
    hub = MemoryHub()
    hold = Hold(claims_on(MemoryBus(hub, "llm_router").turns), TURN, LastControl(0, None))
    mine = claim()
    await hold.put(mine)
    hub.controls.clear()
    hub.logs.clear()
    await hold.look()
    assert hub.controls[TURN].entry == mine
    await hold.put(final())
    assert [type(entry) for entry in hub.logs[TURN]] == [TurnClaim, TurnFinal]


async def test_a_look_at_anothers_claim_is_the_end() -> None:
    hub = MemoryHub()
    log = MemoryBus(hub, "llm_router").turns
    hold = Hold(claims_on(log), TURN, LastControl(0, None))
    await hold.put(claim())
    other = claim(attempt=2, run=2, nonce="other")
    assert hold.is_foreign(other)
    await log.append_control(other, expected_seq=hub.controls[TURN].seq)
    with pytest.raises(Fenced):
        await hold.look()
    with pytest.raises(Fenced):
        await hold.put(final())
    assert not hold.is_over
