"""S0's `/chat/completions`: ask in a session, or without one; streamed or whole (S0-11, S0-12)."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field, field_validator
from starlette.responses import Response

from parley_contracts.errors import EmptyMessages, InvalidMessage, Problem, ValidationFailed, error_from
from parley_contracts.ids import new_id
from parley_contracts.parts import FinishReason
from parley_contracts.prompts import Content, ImageContent, Params, PromptMessage, Role, TextContent
from parley_contracts.turns import GetTurn, Turn, TurnStatus, status_of
from parley_gateway.asking import Ask, ask_in_session, ask_stateless
from parley_gateway.dialects import DIALECTS
from parley_gateway.dialects.s0 import usage_json
from parley_gateway.edge import Caller, Edge, SnakeBody, TheEdge, UserRoute, body_hash, body_id, idempotency, no_nul
from parley_gateway.formats import instant
from parley_gateway.responses import TurnResponse, gathered, json_response
from parley_gateway.turn_stream import LiveTurn

router = APIRouter(tags=["turns"], route_class=UserRoute)

_ROLES: dict[str, Role] = {"SYSTEM": "system", "USER": "user", "ASSISTANT": "assistant"}


class ImageUrl(SnakeBody):
    url: Annotated[str, Field(max_length=4 * 1024 * 1024)]
    detail: str | None = None


class ContentPart(SnakeBody):
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class AskedMessage(SnakeBody):
    role: str
    content: str | list[ContentPart]

    @field_validator("role")
    @classmethod
    def _known(cls, role: str) -> str:
        if role.upper() not in _ROLES:
            raise ValueError("is one of SYSTEM, USER, ASSISTANT")
        return role.upper()


class CompletionBody(SnakeBody):
    session_id: Annotated[str | None, Field(alias="sessionId")] = None
    model: Annotated[str, Field(max_length=200)] | None = None
    messages: list[AskedMessage]
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=32_000)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None

    def params(self) -> Params:
        return Params(
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            top_p=self.top_p,
            top_k=self.top_k,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
        )


def as_prompt(messages: list[AskedMessage]) -> tuple[PromptMessage, ...]:
    return tuple(PromptMessage(role=_ROLES[message.role], content=_content(message)) for message in messages)


def _content(message: AskedMessage) -> str | tuple[Content, ...]:
    if isinstance(message.content, str):
        return message.content
    parts: list[Content] = []
    for part in message.content:
        if part.type == "text":
            parts.append(TextContent(part.text or ""))
        elif part.image_url is not None:
            parts.append(ImageContent(part.image_url.url, part.image_url.detail))
    if all(isinstance(part, TextContent) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, TextContent))
    return tuple(parts)


def new_question(messages: list[AskedMessage]) -> tuple[str, str | None]:
    """Of a list sent to a stored session only the last message is new, and must be the user's (requirements 2.7.1).

    Returns its text, and the leading system message, which replaces the session's prompt for this turn.
    """
    last = messages[-1]
    if last.role != "USER":
        raise InvalidMessage(index=len(messages) - 1)
    content = _content(last)
    if not isinstance(content, str):
        raise ValidationFailed(problems=(Problem("messages", "of a stored session hold text only"),))
    system = _content(messages[0]) if messages[0].role == "SYSTEM" else None
    if system is not None and not isinstance(system, str):
        raise InvalidMessage(index=0)
    if not content.strip():
        raise InvalidMessage(index=len(messages) - 1)
    return no_nul(content, "messages"), system and no_nul(system, "messages")


@router.post("/chat/completions")
async def complete(
    body: CompletionBody,
    request: Request,
    caller: Caller,
    edge: TheEdge,
    stream: Annotated[bool | None, Query()] = None,
) -> Response:
    if not body.messages:
        raise EmptyMessages
    ask = Ask(
        user_id=caller.user_id,
        dialect="s0",
        model=body.model,
        params=body.params(),
        request_hash=idempotency(request),
        body_hash=await body_hash(request),
    )
    if body.session_id is not None:
        content, system = new_question(body.messages)
        live = await ask_in_session(
            edge, ask, session_id=body_id(body.session_id, "sessionId"), content=content, system_prompt=system
        )
    else:
        live = await ask_stateless(edge, ask, as_prompt(body.messages))
    # `stream=false` in the query wins over the body; either of the two suffices to stream (S0-12).
    if stream or (stream is None and body.stream):
        return TurnResponse(live, DIALECTS["s0"], edge.connections)
    return await _whole(edge, live, request)


async def _whole(edge: Edge, live: LiveTurn, request: Request) -> Response:
    try:
        async with edge.connections.held(live.user_id):
            ended, _ = await gathered(live, request.receive)
        if ended.reason is FinishReason.ERROR and ended.error is not None:
            raise error_from(ended.error)
        ticket = live.ticket
        turn: Turn | None = None
        if live.is_stored:
            turn = await edge.bus.ask(GetTurn(turn_id=ticket.turn_id, user_id=live.user_id))
    finally:
        await live.__aexit__(None, None, None)
    tokens = ended.usage.output_tokens if ended.usage else None
    message: dict[str, Any] = {
        "id": ticket.message_id or new_id(),
        "role": "ASSISTANT",
        "content": ended.answer.text,
        "status": "CANCELED" if status_of(ended.reason) is TurnStatus.CANCELED else "SENT",
        "images": [],
        "sessionId": ticket.session_id,
        "userId": live.user_id,
        "tokenCount": tokens,
        "finishReason": ended.reason,
        "model": ticket.model,
        "turnId": ticket.turn_id,
        "createdAt": instant(ticket.created_at),
        "updatedAt": instant((turn and turn.ended_at) or edge.clock.now()),
    }
    data = {
        "turnId": ticket.turn_id,
        "sessionId": ticket.session_id,
        "userMessageId": ticket.user_message_id,
        "message": message,
        "model": ticket.model,
        "provider": ticket.provider,
        "finishReason": ended.reason,
        "usage": usage_json(ended.usage),
    }
    return json_response({"success": True, "data": data}, headers={"X-Turn-Id": ticket.turn_id})
