"""Ending: the final of a turn that no router ends, written by chat, and the result that any final states.

One final stands: compare-and-set on the control subject lets one router, or chat, write it (reliability §4). Whoever finds
one standing states the result from it, always the same one.
"""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from parley_contracts.errors import ErrorBody, ServiceUnavailable, UpstreamInterrupted
from parley_contracts.parts import Answer, FinishReason, TokenUsage
from parley_contracts.reader import Gap, Reading, step
from parley_contracts.tokens import METHOD, estimate_tokens
from parley_contracts.turns import Attempt, Generate, LogEntry, TurnClaim, TurnDelta, TurnFinal, result_of
from parley_runtime.bus import Bus, ControlRefused, LastControl, OutcomeUnknown
from parley_runtime.clock import Clock

_TRIES = 5


@dataclass(frozen=True, slots=True)
class Heard:
    """What the log holds of one attempt."""

    claim: TurnClaim
    reading: Reading


def hear(log: Iterable[LogEntry]) -> dict[int, Heard]:
    """Every attempt of a log with all its parts, by the reader rule; those of fenced routers too, for the books."""
    heard: dict[int, Heard] = {}
    for entry in log:
        match entry:
            case TurnClaim():
                known = heard.get(entry.attempt)
                if known is None or known.claim.nonce != entry.nonce:
                    heard[entry.attempt] = Heard(entry, Reading(entry.attempt, entry.nonce))
            case TurnDelta():
                known = heard.get(entry.attempt)
                if known is not None:
                    stepped = step(known.reading, entry, stored=True)
                    if not isinstance(stepped, Gap):
                        heard[entry.attempt] = Heard(known.claim, stepped[0])
            case TurnFinal():
                pass
    return heard


def final_of(
    turn_id: str,
    log: Iterable[LogEntry],
    last: TurnClaim | None,
    *,
    reason: FinishReason,
    error: ErrorBody | None,
    input_tokens: int,
    now: datetime,
) -> TurnFinal:
    """The final that chat writes after the claim `last`: the text its attempt got to, and every attempt, counted."""
    heard = hear(log)
    if last is not None and (last.attempt not in heard or heard[last.attempt].claim.nonce != last.nonce):
        heard[last.attempt] = Heard(last, Reading(last.attempt, last.nonce))  # the log lags behind its leader
    named = heard[last.attempt] if last is not None else None
    attempts = tuple(
        _attempt(heard[number], named=named, reason=reason, error=error, input_tokens=input_tokens, now=now)
        for number in sorted(heard)
    )
    return TurnFinal(
        turn_id=turn_id,
        attempt=0 if last is None else last.attempt,
        n=0 if named is None else named.reading.next,
        answer=Answer() if named is None else named.reading.answer(),
        finish_reason=reason,
        usage=next((attempt.usage for attempt in attempts if last is not None and attempt.attempt == last.attempt), None),
        error=error,
        attempts=attempts,
        ended_at=now,
        nonce=secrets.token_hex(16),
    )


def _attempt(
    heard: Heard, *, named: Heard | None, reason: FinishReason, error: ErrorBody | None, input_tokens: int, now: datetime
) -> Attempt:
    claim, is_named = heard.claim, heard is named
    is_success = is_named and reason is not FinishReason.ERROR
    error_code = UpstreamInterrupted.code if not is_named else error.code if error is not None else None
    answer = heard.reading.answer()
    reasoning_tokens = estimate_tokens(answer.reasoning)
    calls = sum(estimate_tokens(call.name) + estimate_tokens(call.arguments) for call in answer.tool_calls)
    return Attempt(
        attempt=claim.attempt,
        provider=claim.provider,
        model=claim.model,
        model_config_id=claim.model_config_id,
        usage=TokenUsage(
            input_tokens=input_tokens,
            output_tokens=estimate_tokens(answer.text) + reasoning_tokens + calls,
            reasoning_tokens=reasoning_tokens,
        ),
        is_estimated=True,
        method=METHOD,
        # What the user was given is paid for, as far as it got; an attempt that never spoke, or was given up, is not.
        is_billable=is_success and heard.reading.has_shown,
        is_success=is_success,
        error_code=error_code,
        duration_ms=max(0, round((now - claim.claimed_at).total_seconds() * 1000)),
    )


@dataclass(frozen=True, slots=True)
class Ending:
    bus: Bus
    clock: Clock

    async def end(self, turn_id: str, *, reason: FinishReason, error: ErrorBody | None = None, input_tokens: int) -> TurnFinal:
        """The final that stands: ours, or the one that was there first. Raises LogUnreadable, ServiceUnavailable."""
        for _ in range(_TRIES):
            last = await self.bus.turns.last_control(turn_id)
            if isinstance(last.entry, TurnFinal):
                return last.entry
            await self._try_to_end(turn_id, last, reason=reason, error=error, input_tokens=input_tokens)
        raise ServiceUnavailable(service="turn log")

    async def end_unclaimed(self, turn_id: str, *, reason: FinishReason, input_tokens: int) -> TurnFinal | None:
        """The final that stands, if there is one or no router has claimed the turn. None: a router has."""
        for _ in range(_TRIES):
            last = await self.bus.turns.last_control(turn_id)
            if isinstance(last.entry, TurnFinal):
                return last.entry
            if last.entry is not None:
                return None
            await self._try_to_end(turn_id, last, reason=reason, error=None, input_tokens=input_tokens)
        raise ServiceUnavailable(service="turn log")

    async def state(self, command: Generate, final: TurnFinal) -> None:
        """Publish the result of a turn. Raises Overloaded, ServiceUnavailable."""
        await self.bus.publish(result_of(command, final))

    async def _try_to_end(
        self, turn_id: str, last: LastControl, *, reason: FinishReason, error: ErrorBody | None, input_tokens: int
    ) -> None:
        """Write a final after `last`, if nothing else comes first. Reading control again tells what became of it."""
        claim = last.entry if isinstance(last.entry, TurnClaim) else None
        log = await self.bus.turns.read(turn_id) if claim is not None else []
        final = final_of(turn_id, log, claim, reason=reason, error=error, input_tokens=input_tokens, now=self.clock.now())
        try:
            await self.bus.turns.append_control(final, expected_seq=last.seq)
        except (ControlRefused, OutcomeUnknown):
            return
