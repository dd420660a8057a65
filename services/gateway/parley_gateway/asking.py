"""Asking: a request becomes a turn. Stored ones go through chat; stateless ones are commanded from here.

Either way the turn's live messages are subscribed to before anyone may say something about it, and the caller gets a
`LiveTurn` that is entered already. An Idempotency-Key finds the turn it began (requirements 2.7.6).
"""

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta

import msgspec

from parley_contracts.errors import (
    IdempotencyKeyReused,
    Overloaded,
    PayloadTooLarge,
    Problem,
    UnsupportedParameter,
    ValidationFailed,
)
from parley_contracts.ids import new_id
from parley_contracts.model_configs import ModelConfig
from parley_contracts.prompts import ImageContent, Params, PromptMessage
from parley_contracts.reader import Position
from parley_contracts.tokens import estimate_prompt_tokens
from parley_contracts.turns import Generate, StartTurn, Turn, TurnResult
from parley_contracts.usage import ReleaseBudget, ReserveBudget
from parley_gateway.dialects.dialect import Ticket
from parley_gateway.edge import Edge
from parley_gateway.turn_stream import LiveTurn


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a dialect made of a request, whoever sent it. `request_hash`: of the Idempotency-Key, if there is one."""

    user_id: int
    dialect: str
    model: str | None = None
    params: Params = Params()
    request_hash: str | None = None
    body_hash: str = ""
    include_usage: bool = False
    can_reset: bool = True
    """The client can be told that another attempt replaces what it shows; or it is shown nothing before the end."""


async def ask_in_session(edge: Edge, ask: Ask, *, session_id: str, content: str, system_prompt: str | None) -> LiveTurn:
    """Start a stored turn, or find the one that this key or id began."""
    _refuse_overload(edge)
    turn_id = new_id()
    ticket = Ticket(turn_id=turn_id, model="", created_at=edge.clock.now())
    async with AsyncExitStack() as stack:
        live = await stack.enter_async_context(LiveTurn(edge.streams, ticket, user_id=ask.user_id, is_stored=True))
        turn = await edge.bus.ask(
            StartTurn(
                turn_id=turn_id,
                user_message_id=new_id(),
                message_id=new_id(),
                user_id=ask.user_id,
                session_id=session_id,
                content=content,
                system_prompt=system_prompt,
                model=ask.model,
                params=ask.params,
                request_hash=ask.request_hash,
                body_hash=ask.body_hash,
                dialect=ask.dialect,
            ),
            timeout_s=10.0,
        )
        if turn.turn_id == turn_id:
            live.is_new = True
            live.ticket = _stored_ticket(turn)
            stack.pop_all()
            return live
    return await join(edge, turn, user_id=ask.user_id)


async def join(edge: Edge, turn: Turn, *, user_id: int, seen: Position | None = None) -> LiveTurn:
    """Follow a stored turn that began elsewhere, from its start or after what the client has `seen`."""
    live = LiveTurn(edge.streams, _stored_ticket(turn), user_id=user_id, is_stored=True)
    live.seen = seen
    if turn.status.is_terminal:
        live.follower.committed.set()  # chat itself said so
    if turn.status.is_terminal and not await edge.bus.turns.read(turn.turn_id):
        live.stored_turn = turn
    return await live.__aenter__()


def _stored_ticket(turn: Turn) -> Ticket:
    return Ticket(
        turn_id=turn.turn_id,
        session_id=turn.session_id,
        user_message_id=turn.user_message_id,
        message_id=turn.message_id,
        model=turn.model,
        provider=turn.provider,
        created_at=turn.created_at,
    )


async def ask_stateless(edge: Edge, ask: Ask, prompt: tuple[PromptMessage, ...]) -> LiveTurn:
    """Command a turn that is not stored: reserve, publish, follow. It lives as long as a connection holds it."""
    _refuse_overload(edge)
    config = await edge.configs.get(ask.user_id, name=ask.model)
    _refuse_what_it_cannot(config, ask.params, prompt)
    params = ask.params.over(config.params)
    max_output_tokens = params.max_tokens or config.max_output_tokens
    now = edge.clock.now()
    turn_id = new_id()
    ticket = Ticket(
        turn_id=turn_id, model=config.name, provider=config.provider, created_at=now, include_usage=ask.include_usage
    )
    reserve = ReserveBudget(
        turn_id=turn_id,
        user_id=ask.user_id,
        provider=config.provider,
        model=config.name,
        input_tokens=estimate_prompt_tokens(prompt),
        max_output_tokens=max_output_tokens,
        request_hash=ask.request_hash,
        body_hash=ask.body_hash,
    )
    async with AsyncExitStack() as stack:
        live = LiveTurn(edge.streams, ticket, user_id=ask.user_id, is_stored=False, is_keyed=ask.request_hash is not None)
        # Side by side: the subscription must stand before the command is sent, and so must the money.
        _, reservation = await asyncio.gather(stack.enter_async_context(live), edge.bus.ask(reserve))
        if reservation.turn_id != turn_id:
            return await _join_stateless(edge, ask, msgspec.structs.replace(ticket, turn_id=reservation.turn_id))
        live.is_begun = True
        try:
            await edge.bus.publish(
                Generate(
                    turn_id=turn_id,
                    user_id=ask.user_id,
                    prompt=prompt,
                    model_config_id=config.id,
                    model=config.name,
                    provider=config.provider,
                    params=params,
                    max_output_tokens=reservation.max_output_tokens,
                    is_budget_limited=reservation.is_limited,
                    accepted_at=now,
                    deadline_at=now + timedelta(milliseconds=2 * edge.settings.provider_timeout_ms),
                    store=False,
                    restart_after_text=ask.can_reset,
                    gateway_id=edge.gateway_id,
                )
            )
        except (Overloaded, PayloadTooLarge):
            # Not stored for certain. Any other failure leaves that open: the turn is then stopped like one that nobody
            # holds, and its key stays taken until it has ended.
            live.is_begun = False
            await edge.bus.ask(ReleaseBudget(turn_id=turn_id, user_id=ask.user_id))
            raise
        live.is_new = True
        stack.pop_all()
        return live


async def _join_stateless(edge: Edge, ask: Ask, ticket: Ticket) -> LiveTurn:
    """The turn that an equal key began: its log, or, after the log's hour, its result."""
    live = LiveTurn(edge.streams, ticket, user_id=ask.user_id, is_stored=False, is_keyed=True)
    live.is_begun = True
    if not await edge.bus.turns.read(ticket.turn_id):
        result = await edge.bus.turns.find_result(ticket.turn_id)
        if result is not None:
            if result.user_id != ask.user_id:
                raise IdempotencyKeyReused
            live.stored_turn = _as_turn(result)
    return await live.__aenter__()


def _as_turn(result: TurnResult) -> Turn:
    return Turn(
        turn_id=result.turn_id,
        session_id=result.turn_id,
        user_message_id=result.turn_id,
        message_id=result.turn_id,
        status=result.status,
        finish_reason=result.finish_reason,
        attempt=result.attempt,
        model=result.model,
        provider=result.provider,
        answer=result.answer,
        usage=result.usage,
        error=result.error,
        dialect="openai",
        created_at=result.accepted_at,
        ended_at=result.ended_at,
    )


def _refuse_overload(edge: Edge) -> None:
    if edge.streams.open_streams >= edge.settings.max_streams:
        raise Overloaded


def _refuse_what_it_cannot(config: ModelConfig, params: Params, prompt: tuple[PromptMessage, ...]) -> None:
    """What the provider cannot do is refused, never dropped in silence (requirements §9)."""
    if not config.supports_tools:
        if params.tools:
            raise UnsupportedParameter(param="tools", reason=f" by the model {config.name}")
        if params.response_format is not None and params.response_format.kind != "text":
            raise UnsupportedParameter(param="response_format", reason=f" by the model {config.name}")
    if not config.supports_images and any(
        isinstance(part, ImageContent)
        for message in prompt
        if not isinstance(message.content, str | None)
        for part in message.content
    ):
        raise ValidationFailed(problems=(Problem("messages", f"hold an image, which {config.name} cannot read"),))
