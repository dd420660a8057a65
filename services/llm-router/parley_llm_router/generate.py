"""Generate: one turn, run by this router. The one loop that claims, calls, speaks, waits, and states the end.

The loop waits for one thing at a time (a call's outcome, a pause), and whatever ends that early, a stop, a successor's
claim, the drain, comes through `interrupt`. One timer a turn keeps it heard and its call within its time: waiting costs
nothing per token.
"""

import asyncio
import secrets
from enum import Enum
from typing import Any

import structlog
from prometheus_client import Counter, Histogram

from parley_contracts.errors import DeadlinePassed, ParleyError, ServiceUnavailable
from parley_contracts.model_configs import ModelConfig
from parley_contracts.parts import MAX_PART_CHARACTERS as LONGEST
from parley_contracts.parts import Answer, FinishReason, Part, ToolCall
from parley_contracts.turns import Attempt, Control, Generate, StopGeneration, TurnClaim, TurnFinal
from parley_llm_router.attempts import attempt_of, counted
from parley_llm_router.claims import Begin, ControlLost, Fenced, Hold
from parley_llm_router.failover import Failure, Kind, fell_silent, next_call
from parley_llm_router.means import Means
from parley_llm_router.provider_call import Ended, Outcome, ProviderCall, provider_label
from parley_llm_router.providers import PROVIDERS
from parley_llm_router.publisher import Speaker, split
from parley_runtime.bus import Closable, LastControl, LogUnreadable

log = structlog.get_logger()

PROVIDER_SECONDS = Histogram("parley_provider_seconds", "How long provider calls took", ["provider"])
FIRST_TOKEN_SECONDS = Histogram("parley_first_token_seconds", "From opening a provider call to its first part", ["provider"])
ATTEMPTS = Counter("parley_attempts", "Provider calls by how they ended", ["provider", "outcome"])
FENCED = Counter("parley_fenced", "Turns that another router or chat took over")

BEAT_S = 5.0
"""A router that has nothing to say says so this often; readers look at the log after 12 s of silence."""
_FINAL_PATIENCE_S = 60.0  # beyond the turn's deadline; then whoever has the command next ends it


class Interruption(Enum):
    STOPPED = "stopped"
    """Someone asked for it, or nobody is there any more to listen."""
    FENCED = "fenced"
    LEAVING = "leaving"
    """This router stops; another one takes over."""


class Interrupted(Exception):
    def __init__(self, by: Interruption) -> None:
        super().__init__(by.value)
        self.by = by


class HandedOver(Exception):
    """The turn is another router's now: the command goes back at once."""


_NOT_OURS = (Fenced, ControlLost, LogUnreadable, HandedOver, ServiceUnavailable)  # nothing is wrong with the command


class Generation:
    """A running turn. `earlier`: the attempts of routers that ran it before and died."""

    def __init__(
        self,
        means: Means,
        command: Generate,
        config: ModelConfig,
        key: str | None,
        *,
        begin: Begin,
        last: LastControl,
        earlier: tuple[Attempt, ...] = (),
    ) -> None:
        self.command = command
        self._means = means
        self._config = config
        self._key = key
        self._run = begin.run
        self._attempt = begin.attempt
        self._hold = Hold(means.claims, command.turn_id, last)
        self._attached: list[Closable] = []
        self._attempts = list(earlier)
        self._failures: list[Failure] = []
        self._speaker: Speaker | None = None
        self._call: ProviderCall | None = None
        self._is_counted = False
        self._is_looking = False
        self._fenced_by = last
        self._loop = asyncio.get_running_loop()
        self._interrupted: asyncio.Future[Interruption] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._opened_at = self._loop.time()
        self._first_at: float | None = None
        until_deadline_s = (command.deadline_at - means.clock.now()).total_seconds()
        self._ends_at = self._opened_at + min(means.limits.timeout_s, until_deadline_s)

    # --- life ---

    async def run(self) -> TurnFinal:
        """The final that stands. Raises Fenced, HandedOver, ControlLost."""
        attaching = asyncio.ensure_future(self._attach())
        attaching.add_done_callback(self._attached_or_cut_off)
        try:
            await self._claim()
            return await self._ended()
        except Fenced:
            FENCED.inc()
            log.info("turn_fenced", attempt=self._attempt)
            raise
        except _NOT_OURS:
            raise
        except Exception:
            log.exception("turn_failed", attempt=self._attempt)
            return await self._finish_broken()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._call is not None:
                self._call.close()
            await self._detach(attaching)

    async def _attach(self) -> None:
        """Hear of stops and successors. Side by side with the claim: both take their time on the bus."""
        bus, turn_id = self._means.bus, self.command.turn_id
        attaching = (
            bus.answer_one(StopGeneration, turn_id, self.stop),
            bus.turns.watch_control(turn_id, self._hear_control),
        )
        lost: BaseException | None = None
        for attached in await asyncio.gather(*attaching, return_exceptions=True):
            if isinstance(attached, BaseException):
                lost = attached
            else:
                self._attached.append(attached)
        if lost is not None:
            raise ControlLost from lost  # cut off from the bus, in its words

    def _attached_or_cut_off(self, attaching: asyncio.Future[None]) -> None:
        # The provider is not kept waiting for the subscriptions. Without them nobody could stop this run: another takes it.
        if not attaching.cancelled() and attaching.exception() is not None:
            self.interrupt(Interruption.LEAVING)

    async def _detach(self, attaching: asyncio.Future[None]) -> None:
        await asyncio.gather(attaching, return_exceptions=True)
        for attached in self._attached:
            try:
                await attached.close()
            except Exception:  # how the turn ended stands, whatever becomes of a subscription
                log.exception("detach_failed")

    async def stop(self) -> bool:
        """Answers before anything else happens; the provider call is closed in the loop's next round."""
        self.interrupt(Interruption.STOPPED)
        return True

    def interrupt(self, by: Interruption) -> None:
        if not self._interrupted.done():
            self._interrupted.set_result(by)

    async def _ended(self) -> TurnFinal:
        try:
            return await self._attempt_until_ended()
        except Interrupted as interrupted:
            match interrupted.by:
                case Interruption.STOPPED:
                    return await self._finish(FinishReason.CANCELED)
                case Interruption.FENCED:
                    self._count_attempt(outcome="fenced")
                    raise Fenced(self._fenced_by) from None
                case Interruption.LEAVING:
                    self._count_attempt(outcome="handed_over")
                    self._spoken.flush()
                    raise HandedOver from None

    async def _attempt_until_ended(self) -> TurnFinal:
        is_stream = True
        while True:
            outcome = await self._called(is_stream=is_stream)
            if isinstance(outcome, Ended):
                is_spent = outcome.reason is FinishReason.LENGTH and self.command.is_budget_limited
                return await self._finish(FinishReason.BUDGET_EXHAUSTED if is_spent else outcome.reason)
            self._failures.append(outcome)
            limits, has_text = self._means.limits, bool(self._spoken.parts)
            retry = next_call(self._failures, has_text=has_text, left_s=self._left_s, pauses=limits.pauses)
            if retry is None:
                return await self._finish(FinishReason.ERROR, outcome)
            log.info("provider_called_again", wait_s=retry.wait_s, is_stream=retry.is_stream, error=outcome.error.code)
            self._note_attempt(outcome, is_billable=False)
            await self._pause(retry.wait_s)
            is_stream = retry.is_stream
            await self._claim()

    # --- one attempt ---

    async def _claim(self) -> None:
        claim = TurnClaim(
            turn_id=self.command.turn_id,
            attempt=self._attempt,
            run=self._run,
            nonce=secrets.token_hex(16),
            provider=self._config.provider,
            model=self._config.name,
            model_config_id=self._config.id,
            claimed_at=self._means.clock.now(),
        )
        await self._hold.put(claim)
        self._attempt += 1
        self._speaker = Speaker(self._means.publisher, claim.turn_id, claim.attempt)
        self._call = None
        self._is_counted = False
        self._first_at = None
        self._arm()

    async def _called(self, *, is_stream: bool) -> Outcome:
        if self._interrupted.done():
            raise Interrupted(self._interrupted.result())
        self._opened_at = self._loop.time()
        if self._left_s <= 0:
            return fell_silent(is_charged=False)
        command, config, limits = self.command, self._config, self._means.limits
        provider = PROVIDERS[config.protocol]
        most_tokens = min(command.max_output_tokens, limits.max_output_tokens)
        try:
            request = provider.build_request(
                config, self._key, command.prompt, command.params, max_output_tokens=most_tokens, is_stream=is_stream
            )
        except ParleyError as error:
            return Failure(error, Kind.REFUSED)
        call = self._call = ProviderCall(self._means.clients.for_config(config), provider, config, hear=self._hear)
        timeout_s = self._left_s if is_stream else min(self._left_s, limits.request_timeout_s)
        max_idle_s = limits.max_idle_s if is_stream else timeout_s
        self._means.tasks.spawn(call.run(request, max_output_tokens=most_tokens, max_idle_s=max_idle_s, timeout_s=timeout_s))
        await asyncio.sleep(0)  # the call begins and knows its time
        self._arm()
        try:
            await self._unless_interrupted(call.outcome)
        except Interrupted:
            call.close()
            raise
        return call.outcome.result()

    def _hear(self, part: Part) -> None:
        if self._first_at is None:
            self._first_at = self._loop.time()
            FIRST_TOKEN_SECONDS.labels(provider_label(self._config.provider)).observe(self._first_at - self._opened_at)
        text = part.arguments if isinstance(part, ToolCall) else part.text
        if len(text) <= LONGEST:
            self._spoken.add(part)
        else:
            for piece in split(part):
                self._spoken.add(piece)

    @property
    def _spoken(self) -> Speaker:
        if self._speaker is None:
            raise RuntimeError("nothing was claimed")
        return self._speaker

    @property
    def _left_s(self) -> float:
        return self._ends_at - self._loop.time()

    async def _unless_interrupted(self, work: asyncio.Future[Any]) -> None:
        await asyncio.wait((work, self._interrupted), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise Interrupted(self._interrupted.result())

    async def _pause(self, seconds: float) -> None:
        sleeping = asyncio.ensure_future(self._means.clock.sleep(seconds))
        try:
            await self._unless_interrupted(sleeping)
        finally:
            sleeping.cancel()

    def _arm(self) -> None:
        due = self._spoken.spoke_at + BEAT_S
        if self._call is not None and not self._call.outcome.done():
            due = min(due, self._call.due_at)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        now = self._loop.time()
        if now >= self._spoken.spoke_at + BEAT_S:
            self._spoken.beat()
        if self._call is not None and now >= self._call.due_at:
            self._call.overdue()
        self._arm()

    # --- the end ---

    def _note_attempt(self, failure: Failure | None, *, is_billable: bool, outcome: str = "done") -> None:
        if self._is_counted or self._hold.claim is None:
            return
        call, has_text = self._call, bool(self._spoken.parts)
        is_charged = has_text or (failure.is_charged if failure is not None else call is not None and call.is_sent)
        first_at = self._first_at
        self._attempts.append(
            attempt_of(
                self._hold.claim,
                self._config,
                usage=call.usage if call is not None else None,
                estimate=counted(self.command.prompt, Answer.of(self._spoken.parts)) if is_charged else None,
                error_code=failure.error.code if failure is not None else None,
                is_billable=is_billable,
                duration_ms=round((self._loop.time() - self._opened_at) * 1000),
                first_token_ms=round((first_at - self._opened_at) * 1000) if first_at is not None else None,
            )
        )
        self._count_attempt(outcome=failure.error.code if failure is not None else outcome)

    def _count_attempt(self, *, outcome: str) -> None:
        if not self._is_counted:
            self._is_counted = True
            label = provider_label(self._config.provider)
            ATTEMPTS.labels(label, outcome).inc()
            PROVIDER_SECONDS.labels(label).observe(self._loop.time() - self._opened_at)

    async def _finish(self, reason: FinishReason, failure: Failure | None = None) -> TurnFinal:
        speaker = self._spoken
        speaker.flush()
        is_canceled = reason is FinishReason.CANCELED
        self._note_attempt(failure, is_billable=failure is None, outcome="canceled" if is_canceled else "done")
        error = failure.error if failure is not None else None
        if error is not None and self._means.clock.now() >= self.command.deadline_at:
            error = DeadlinePassed()
        return await self._state(reason, Answer.of(speaker.parts), error)

    async def _finish_broken(self) -> TurnFinal:
        """Something nobody thought of. The turn ends all the same, and if its own answer is the cause, without it."""
        error = ParleyError()
        if self._speaker is not None:
            try:
                return await self._finish(FinishReason.ERROR, Failure(error, Kind.REFUSED))
            except _NOT_OURS:
                raise
            except Exception:
                log.exception("answer_unstated", attempt=self._attempt)
        return await self._state(FinishReason.ERROR, Answer(), error)

    async def _state(self, reason: FinishReason, answer: Answer, error: ParleyError | None) -> TurnFinal:
        attempt = self._hold.claim.attempt if self._hold.claim is not None else self._attempt - 1
        usage = next((row.usage for row in self._attempts if row.attempt == attempt), None)
        final = TurnFinal(
            turn_id=self.command.turn_id,
            attempt=attempt,
            n=len(self._speaker.parts) if self._speaker is not None else 0,
            answer=answer,
            finish_reason=reason,
            usage=usage,
            error=error.body() if error is not None else None,
            attempts=tuple(self._attempts),
            ended_at=self._means.clock.now(),
            nonce=secrets.token_hex(16),
        )
        patience_s = (self.command.deadline_at - self._means.clock.now()).total_seconds() + _FINAL_PATIENCE_S
        await self._hold.put(final, patience_s=patience_s)
        return final

    # --- watching ---

    def _hear_control(self, control: Control) -> None:
        if self._hold.is_foreign(control):
            self.look(say_again=False)

    def look(self, *, say_again: bool) -> None:
        """Read whose turn this is; still ours: after a reconnect, say everything again."""
        if say_again or not self._is_looking:
            self._means.tasks.spawn(self._look(say_again=say_again))

    async def _look(self, *, say_again: bool) -> None:
        self._is_looking = True
        try:
            await self._hold.look()
        except Fenced as fenced:
            self._fenced_by = fenced.last
            self.interrupt(Interruption.FENCED)
        except ControlLost:
            log.warning("control_unknown", turn_id=self.command.turn_id)
        else:
            if say_again and self._speaker is not None and not self._hold.is_over:
                self._speaker.say_again()
        finally:
            self._is_looking = False
