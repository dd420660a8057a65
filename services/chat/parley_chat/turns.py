"""Turns: accepted in one transaction, sent, and ended by their result (reliability §3, steps 2 to 4 and 9)."""

import hashlib
from dataclasses import dataclass
from datetime import timedelta

import msgspec
import structlog

from parley_chat.outbox import FIRST_REPEAT, Outbox
from parley_chat.settings import ChatSettings
from parley_chat.store import MessageStore, SessionStore
from parley_chat.sweeper import FIRST_LOOK
from parley_chat.tables import TurnRequest
from parley_chat.turn_store import KEY_LIFE, OutboxStore, TurnStore
from parley_chat.window import Said, with_prompt
from parley_contracts.errors import (
    IdConflict,
    IdempotencyKeyReused,
    MessageTooLong,
    Overloaded,
    ParleyError,
    ServiceUnavailable,
    SessionNotFound,
    TurnInProgress,
    TurnNotFound,
)
from parley_contracts.model_configs import GetModelConfig, ModelConfig
from parley_contracts.sessions import MessageStatus, Session
from parley_contracts.tokens import estimate_prompt_tokens
from parley_contracts.turns import (
    FindTurn,
    Generate,
    GetTurn,
    StartTurn,
    Turn,
    TurnCommitted,
    TurnFinal,
    TurnResult,
    TurnStatus,
    TurnWhereabouts,
)
from parley_contracts.usage import ReleaseBudget, Reservation, ReserveBudget
from parley_runtime.bus import Bus, LogUnreadable
from parley_runtime.clock import Clock
from parley_runtime.database import Database, Transaction

log = structlog.get_logger()

_TRIES = 3
_ASK_S = 2.0  # two answers, a commit and a publish within the 10 s that the gateway waits
_MESSAGE_STATUS = {
    TurnStatus.DONE: MessageStatus.SENT,
    TurnStatus.CANCELED: MessageStatus.CANCELED,
    TurnStatus.ERROR: MessageStatus.ERROR,
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a question is asked into."""

    session: Session
    history: tuple[Said, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A turn as it will be accepted: the command to send, what of it the tables lack, and what was reserved for it."""

    command: Generate
    request: TurnRequest
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class Turns:
    database: Database
    bus: Bus
    outbox: Outbox
    clock: Clock
    settings: ChatSettings

    # --- asking -----------------------------------------------------------------------------------------------------

    async def start_turn(self, question: StartTurn) -> Turn:
        """Accept a question, or find the turn that the same question began. No connection is held while the bus is asked."""
        if len(question.content) > self.settings.chat_max_message_length:
            raise MessageTooLong(length=len(question.content), limit=self.settings.chat_max_message_length)
        async with self.database.transaction() as tx:
            session = await SessionStore(tx).find(question.user_id, question.session_id)
            # After the session: the turn that it is seen to run may be the one that this very question began.
            if (known := await self._known(question, tx)) is not None:
                return known
            asked = await self._asked(session, tx)
        if self.outbox.is_full:
            raise Overloaded
        plan = await self._plan(question, asked)
        try:
            async with self.database.transaction() as tx:
                turn, is_current = await self._accept(question, asked, plan, tx)
        except ParleyError as error:
            if not isinstance(error, ServiceUnavailable):  # then nobody knows whether it was accepted; usage finds out
                await self._release(question, plan.reservation)
            raise
        if turn.turn_id != question.turn_id:
            await self._release(question, plan.reservation)
        elif is_current:
            await self.outbox.send(plan.command)
        else:
            await self.outbox.send_again(turn.turn_id)
        return turn

    async def _known(self, question: StartTurn, tx: Transaction) -> Turn | None:
        """The turn that this question began already: by its id, or by the client's key."""
        turns = TurnStore(tx)
        known = await turns.find(question.turn_id)
        if known is not None:
            if known.user_id != question.user_id or known.fingerprint != fingerprint(question):
                raise IdConflict
            return known.turn
        if question.request_hash is None:
            return None
        since = self.clock.now() - KEY_LIFE
        known = await turns.find_by_key(question.user_id, question.request_hash, since=since)
        if known is None:
            return None
        if known.body_hash != question.body_hash:
            raise IdempotencyKeyReused
        return known.turn

    async def _asked(self, session: Session | None, tx: Transaction) -> Asked:
        if session is None:
            raise SessionNotFound
        if session.running_turn is not None:
            raise TurnInProgress(turnId=session.running_turn.turn_id)
        limit = self.settings.chat_max_history_messages
        return Asked(session, await MessageStore(tx).history(session.id, limit=limit))

    async def _plan(self, question: StartTurn, asked: Asked) -> Plan:
        session = asked.session
        config = await self._model_config(question, session)
        params = question.params.over(session.params).over(config.params)
        asked_tokens = config.max_output_tokens if params.max_tokens is None else params.max_tokens
        max_output_tokens = min(asked_tokens, self.settings.max_output_tokens)
        token_limit = None if config.context_limit is None else config.context_limit - max_output_tokens
        now = self.clock.now()
        unasked = Generate(
            turn_id=question.turn_id,
            user_id=question.user_id,
            session_id=session.id,
            user_message_id=question.user_message_id,
            message_id=question.message_id,
            prompt=(),
            model_config_id=config.id,
            model=config.name,
            provider=config.provider,
            params=params,
            max_output_tokens=max_output_tokens,
            accepted_at=now,
            deadline_at=now + timedelta(milliseconds=2 * self.settings.provider_timeout_ms),
            store=True,
            restart_after_text=True,
        )
        command = with_prompt(
            unasked,
            system_prompt=session.system_prompt if question.system_prompt is None else question.system_prompt,
            history=asked.history,
            content=question.content,
            max_messages=self.settings.chat_max_history_messages,
            max_tokens=token_limit,
        )
        input_tokens = estimate_prompt_tokens(command.prompt)
        reservation = await self._reserve(command, input_tokens)
        command = msgspec.structs.replace(
            command, max_output_tokens=reservation.max_output_tokens, is_budget_limited=reservation.is_limited
        )
        request = TurnRequest(
            model_config_id=config.id,
            params=params,
            system_prompt=question.system_prompt,
            input_tokens=input_tokens,
            token_limit=token_limit,
            max_output_tokens=command.max_output_tokens,
            is_budget_limited=command.is_budget_limited,
        )
        return Plan(command, request, reservation)

    async def _model_config(self, question: StartTurn, session: Session) -> ModelConfig:
        """The request's model, else the session's, else the caller's default."""
        config_id = session.model_config_id if question.model is None else None
        return await self.bus.ask(GetModelConfig(user_id=question.user_id, id=config_id, name=question.model), timeout_s=_ASK_S)

    async def _reserve(self, command: Generate, input_tokens: int) -> Reservation:
        return await self.bus.ask(
            ReserveBudget(
                turn_id=command.turn_id,
                user_id=command.user_id,
                session_id=command.session_id,
                provider=command.provider,
                model=command.model,
                input_tokens=input_tokens,
                max_output_tokens=command.max_output_tokens,
            ),
            timeout_s=_ASK_S,
        )

    async def _release(self, question: StartTurn, reservation: Reservation) -> None:
        """Give back what was set aside for nothing. A replay's is another's, who may need it; what is missed, usage frees."""
        if reservation.is_replay:
            return
        try:
            await self.bus.ask(ReleaseBudget(turn_id=question.turn_id, user_id=question.user_id), timeout_s=_ASK_S)
        except ParleyError as error:
            log.warning("budget_not_released", turn_id=question.turn_id, error=error.code)

    async def _accept(self, question: StartTurn, asked: Asked, plan: Plan, tx: Transaction) -> tuple[Turn, bool]:
        """TX-C1: both messages, the turn, its outbox row. False: the history moved on, so the prompt must be built again.

        The unique indexes decide between questions that come at once; one that lost reads what won.
        """
        now = plan.command.accepted_at
        sessions, messages, turns = SessionStore(tx), MessageStore(tx), TurnStore(tx)
        if await sessions.lock(question.user_id, question.session_id) is None:
            raise SessionNotFound
        last = await messages.last(question.session_id)
        if question.request_hash is not None:
            await turns.free_old_key(question.user_id, question.request_hash, until=now - KEY_LIFE)
        for _ in range(_TRIES):
            turn = await turns.add(
                question, plan.command, plan.request, fingerprint=fingerprint(question), look_at=now + FIRST_LOOK
            )
            if turn is not None:
                break
            if (known := await self._known(question, tx)) is not None:
                return known, True
            if (running := await turns.running_in(question.session_id)) is not None:
                raise TurnInProgress(turnId=running)
        else:
            raise IdConflict
        # Order within a session is kept whatever the clocks of replicas say.
        at = now if last is None else max(now, last[1] + timedelta(microseconds=1))
        if not await messages.add_exchange(question, model=plan.command.model, provider=plan.command.provider, at=at):
            raise IdConflict
        await OutboxStore(tx).add(turn.turn_id, due_at=now + FIRST_REPEAT)
        await sessions.touch(question.session_id, now)
        expected = asked.history[-1].id if asked.history else None
        return turn, (None if last is None else last[0]) == expected

    # --- reading ----------------------------------------------------------------------------------------------------

    async def get_turn(self, query: GetTurn, tx: Transaction) -> Turn:
        turn = await TurnStore(tx).get(query.user_id, query.turn_id)
        if turn is None:
            raise TurnNotFound
        return turn

    async def find_turn(self, query: FindTurn) -> TurnWhereabouts:
        """Whether anything can still end a turn: chat's own row decides, else the log and the commands do."""
        async with self.database.transaction() as tx:
            status = await TurnStore(tx).status(query.turn_id)
        if status is not None:
            return "ended" if status.is_terminal else "open"
        try:
            control = (await self.bus.turns.last_control(query.turn_id)).entry
            if isinstance(control, TurnFinal):
                return "ended"
            is_open = control is not None or await self.bus.turns.find_command(query.turn_id)
            return "open" if is_open or await self.bus.turns.read(query.turn_id) else "unknown"
        except LogUnreadable as error:
            raise ServiceUnavailable(service="turn log") from error

    # --- ending -----------------------------------------------------------------------------------------------------

    async def finish_turn(self, result: TurnResult, tx: Transaction) -> None:
        """TX-C2: store the answer, once. Whatever text there is is kept, however the turn ended."""
        sessions, messages, turns = SessionStore(tx), MessageStore(tx), TurnStore(tx)
        if not result.store or result.session_id is None:
            return
        # First the session, then its turn, as TX-C1 does: a question that comes just now must wait, not deadlock.
        await sessions.lock(result.user_id, result.session_id)
        if not await turns.finish(result):
            log.info("turn_already_finished", turn_id=result.turn_id)
            return
        await OutboxStore(tx).mark_sent(result.turn_id)
        named = next((attempt for attempt in result.attempts if attempt.attempt == result.attempt), None)
        is_kept = await messages.finish(
            result,
            status=_MESSAGE_STATUS[result.status],
            model=named.model if named else result.model,
            provider=named.provider if named else result.provider,
            now=self.clock.now(),
        )
        if is_kept:
            await sessions.touch(result.session_id, self.clock.now())
        else:
            await turns.forget(result.turn_id)  # its session was deleted while it ran
        tx.announce(TurnCommitted(turn_id=result.turn_id, session_id=result.session_id, status=result.status))


def fingerprint(question: StartTurn) -> str:
    """What makes two questions the same: who asks what, where, and into which messages."""
    said = (
        question.user_id,
        question.session_id,
        question.user_message_id,
        question.message_id,
        question.content,
        question.system_prompt,
        question.model,
        question.params,
    )
    return hashlib.sha256(msgspec.json.encode(said)).hexdigest()
