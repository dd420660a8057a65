"""Sessions in S0's spelling: create, list, get, change, delete, and what a share link shows (S0-06 … S0-10)."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import Field
from starlette.responses import Response

from parley_contracts.errors import ApiKeyRequired, ModelNotFound, Problem, SessionNotFound, ValidationFailed
from parley_contracts.model_configs import Credential, KeepInlineConfig, ModelConfig, Protocol
from parley_contracts.prompts import Params
from parley_contracts.sessions import (
    ChatMessage,
    CreateSession,
    DeleteSessions,
    GetSession,
    GetSharedSession,
    ListMessages,
    ListSessions,
    Session,
    SessionChanges,
    UpdateSession,
)
from parley_gateway.edge import Caller, CamelBody, Edge, OpenRoute, TheEdge, UserRoute, body_id, no_nul
from parley_gateway.formats import instant
from parley_gateway.responses import json_response

user_router = APIRouter(prefix="/chat/sessions", route_class=UserRoute)
open_router = APIRouter(route_class=OpenRoute)

SessionPath = Annotated[str, Path(alias="sessionId")]
PARAM_NAMES = ("temperature", "max_tokens", "top_p", "top_k", "frequency_penalty", "presence_penalty")
"""Of a session's parameters, as `Params` and `SessionChanges` call them."""


class ParamFields(CamelBody):
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=32_000)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None


class ModelConfigBody(ParamFields):
    """A model by name, or one's own: its URL and key go to the llm-router once and are sealed there."""

    model_provider: Annotated[str, Field(max_length=40)] | None = None
    model_name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    model_url: Annotated[str, Field(max_length=2_000)] | None = None
    model_token: Annotated[str, Field(min_length=1, max_length=2_000)] | None = None
    model_auth: Credential | None = None
    model_protocol: Protocol | None = None


class SessionBody(CamelBody):
    name: Annotated[str, Field(max_length=200)] | None = None
    system_prompt: Annotated[str, Field(max_length=100_000)] | None = None
    llm: Annotated[ModelConfigBody | None, Field(alias="modelConfig")] = None
    model_config_id: Annotated[str | None, Field(alias="modelConfigId")] = None
    share_able: bool = False
    session_type: Annotated[str, Field(max_length=50)] | None = None
    document_id: Annotated[str, Field(max_length=200)] | None = None
    product_code: Annotated[str, Field(max_length=200)] | None = None


async def chosen_config(edge: Edge, user_id: int, body: ModelConfigBody, current: ModelConfig | None) -> ModelConfig | None:
    """The config a `modelConfig` names; None when it says only parameters. Raises ApiKeyRequired, ModelNotFound."""
    if body.model_token is not None:
        provider = (body.model_provider or (current.provider if current else "CUSTOM")).upper()
        model = body.model_name or (current.model if current else None)
        if model is None:
            raise ValidationFailed(problems=(Problem("modelConfig.modelName", "is missing"),))
        return await edge.bus.ask(
            KeepInlineConfig(
                user_id=user_id,
                provider=provider,
                base_url=body.model_url or (current.base_url if current and current.is_hidden else None),
                model=model,
                api_key=body.model_token,
                protocol=body.model_protocol or "openai",
                auth=body.model_auth or "bearer",
            )
        )
    if body.model_url is not None:
        raise ApiKeyRequired
    if body.model_name is None:
        return None
    try:
        return await edge.configs.get(user_id, name=body.model_name)
    except ModelNotFound:
        raise ApiKeyRequired from None


async def session_json(edge: Edge, session: Session) -> dict[str, Any]:
    config = await edge.configs.get(session.user_id, id=session.model_config_id)
    params = session.params
    running = session.running_turn
    return {
        "id": session.id,
        "name": session.title,
        "systemPrompt": session.system_prompt,
        "userId": session.user_id,
        "modelConfigId": session.model_config_id,
        "modelProvider": config.provider,
        "modelName": config.model if config.is_hidden else config.name,
        "modelUrl": config.base_url if config.owner_id is not None else None,
        "modelTokenHint": config.key_hint if config.owner_id is not None else None,
        "temperature": params.temperature,
        "maxTokens": params.max_tokens,
        "topP": params.top_p,
        "topK": params.top_k,
        "frequencyPenalty": params.frequency_penalty,
        "presencePenalty": params.presence_penalty,
        "shareAble": session.is_shareable,
        "shareToken": session.share_token,
        "sessionType": session.session_type,
        "documentId": session.document_id,
        "productCode": session.product_code,
        "activeTurn": running
        and {
            "turnId": running.turn_id,
            "messageId": running.message_id,
            "userMessageId": running.user_message_id,
        },
        "createdAt": instant(session.created_at),
        "updatedAt": instant(session.updated_at),
    }


def message_json(message: ChatMessage) -> dict[str, Any]:
    return {
        "id": message.id,
        "role": message.role.upper(),
        "content": message.answer.text,
        "status": message.status.upper(),
        "images": [],
        "sessionId": message.session_id,
        "userId": message.user_id,
        "tokenCount": message.usage.output_tokens if message.usage else None,
        "finishReason": message.finish_reason,
        "model": message.model,
        "turnId": message.turn_id,
        "createdAt": instant(message.created_at),
        "updatedAt": instant(message.updated_at),
    }


@user_router.post("", status_code=201)
async def create(body: SessionBody, caller: Caller, edge: TheEdge) -> Response:
    params = Params()
    config_id = body.model_config_id
    if body.llm is not None:
        params = Params(**{name: getattr(body.llm, name) for name in PARAM_NAMES})
        config = await chosen_config(edge, caller.user_id, body.llm, None)
        config_id = config.id if config else config_id
    elif config_id is not None:
        await edge.configs.get(caller.user_id, id=body_id(config_id, "modelConfigId"))
    session = await edge.bus.ask(
        CreateSession(
            user_id=caller.user_id,
            title=_text(body.name, "name"),
            system_prompt=_text(body.system_prompt, "systemPrompt"),
            model_config_id=config_id,
            params=params,
            is_shareable=body.share_able,
            session_type=_text(body.session_type, "sessionType"),
            document_id=_text(body.document_id, "documentId"),
            product_code=_text(body.product_code, "productCode"),
        )
    )
    return json_response({"success": True, "data": await session_json(edge, session)}, status=201)


@user_router.get("")
async def list_sessions(
    caller: Caller,
    edge: TheEdge,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    search: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    page = await edge.bus.ask(ListSessions(user_id=caller.user_id, limit=limit, offset=offset, search=_text(search, "search")))
    data = [await session_json(edge, session) for session in page.sessions]
    return json_response({"success": True, "data": data, "meta": {"total": page.total, "limit": limit, "offset": offset}})


@user_router.get("/{sessionId:id}")
async def get(
    session_id: SessionPath,
    caller: Caller,
    edge: TheEdge,
    messages_limit: Annotated[int, Query(alias="messagesLimit", ge=1, le=500)] = 100,
    messages_before: Annotated[str | None, Query(alias="messagesBefore", pattern="^[0-9a-z]{26}$")] = None,
) -> Response:
    session = await edge.bus.ask(GetSession(user_id=caller.user_id, session_id=session_id))
    page = await edge.bus.ask(
        ListMessages(user_id=caller.user_id, session_id=session.id, limit=messages_limit, before=messages_before)
    )
    data = await session_json(edge, session)
    data["messages"] = [message_json(message) for message in page.messages]
    data["hasMoreMessages"] = page.has_more
    return json_response({"success": True, "data": data})


@user_router.patch("/{sessionId:id}")
async def change(session_id: SessionPath, body: SessionBody, caller: Caller, edge: TheEdge) -> Response:
    session = await edge.bus.ask(GetSession(user_id=caller.user_id, session_id=session_id))
    changes = await _changes(edge, session, body)
    changed = await edge.bus.ask(UpdateSession(user_id=caller.user_id, session_id=session.id, changes=changes))
    return json_response({"success": True, "data": await session_json(edge, changed)})


async def _changes(edge: Edge, session: Session, body: SessionBody) -> SessionChanges:
    """What the body names; a field it does not name stays as it is."""
    named: dict[str, Any] = {}
    spelling = {
        "name": "title",
        "system_prompt": "system_prompt",
        "session_type": "session_type",
        "document_id": "document_id",
        "product_code": "product_code",
    }
    for ours, theirs in spelling.items():
        if ours in body.model_fields_set:
            named[theirs] = _text(getattr(body, ours), ours)
    if "share_able" in body.model_fields_set:
        named["is_shareable"] = body.share_able
    if "model_config_id" in body.model_fields_set:
        if body.model_config_id is not None:
            await edge.configs.get(session.user_id, id=body_id(body.model_config_id, "modelConfigId"))
        named["model_config_id"] = body.model_config_id
    if "llm" in body.model_fields_set:
        if body.llm is None:
            named |= dict.fromkeys(PARAM_NAMES) | {"model_config_id": None}
        else:
            named |= {name: getattr(body.llm, name) for name in PARAM_NAMES if name in body.llm.model_fields_set}
            current = await edge.configs.get(session.user_id, id=session.model_config_id)
            if config := await chosen_config(edge, session.user_id, body.llm, current):
                named["model_config_id"] = config.id
    return SessionChanges(**named)


@user_router.delete("/{sessionId:id}")
async def delete(session_id: SessionPath, caller: Caller, edge: TheEdge) -> Response:
    deleted = await edge.bus.ask(DeleteSessions(user_id=caller.user_id, session_ids=(session_id,)), timeout_s=10.0)
    if not deleted:
        raise SessionNotFound
    return json_response({"success": True, "data": {"id": deleted[0]}})


@open_router.get("/shared/{share_token:share}")
async def shared(share_token: str, edge: TheEdge) -> Response:
    session = await edge.bus.ask(GetSharedSession(share_token=share_token))
    messages: list[dict[str, Any]] = [
        {
            "role": message.role.upper(),
            "content": message.answer.text,
            "images": [],
            "createdAt": instant(message.created_at),
        }
        for message in session.messages
    ]
    data = {"name": session.title, "createdAt": instant(session.created_at), "messages": messages}
    return json_response({"success": True, "data": data})


def _text(value: str | None, field: str) -> str | None:
    return None if value is None else no_nul(value, field)


router = APIRouter(tags=["sessions"])
router.include_router(user_router)
router.include_router(open_router)
