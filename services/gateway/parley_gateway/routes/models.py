"""OpenAI's surface: chat completions and models, at `/v1` and at `/chat/v1` (S0-13, requirements §9)."""

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from parley_contracts.errors import EmptyMessages, ImageRefused, Problem, UnsupportedParameter, ValidationFailed
from parley_contracts.model_configs import ListModelConfigs, ModelConfig
from parley_contracts.parts import ToolCall
from parley_contracts.prompts import (
    Content,
    ImageContent,
    Params,
    PromptMessage,
    ResponseFormat,
    Role,
    TextContent,
    Tool,
    ToolChoice,
)
from parley_gateway.api_keys import check_model, may_name
from parley_gateway.asking import Ask, ask_stateless
from parley_gateway.dialects import DIALECTS
from parley_gateway.dialects.openai import completion
from parley_gateway.edge import Caller, SnakeBody, TheEdge, UserRoute, body_hash, idempotency
from parley_gateway.responses import TurnResponse, gathered
from parley_gateway.responses import json_response as respond

router = APIRouter(tags=["openai"], route_class=UserRoute)

_DATA_URL_BYTES = 4 * 1024 * 1024
_DATA_TYPES = ("data:image/jpeg;base64,", "data:image/png;base64,", "data:image/webp;base64,", "data:image/gif;base64,")


class FunctionBody(SnakeBody):
    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(SnakeBody):
    type: Literal["function"] = "function"
    function: FunctionBody


class NamedFunction(SnakeBody):
    name: str


class NamedTool(SnakeBody):
    type: Literal["function"]
    function: NamedFunction


class CalledFunction(SnakeBody):
    name: str
    arguments: str


class CalledTool(SnakeBody):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ImageUrlBody(SnakeBody):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class PartBody(SnakeBody):
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrlBody | None = None


class MessageBody(SnakeBody):
    role: Role
    content: str | list[PartBody] | None = None
    name: str | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None


class ResponseFormatBody(SnakeBody):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class StreamOptions(SnakeBody):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class OpenAIBody(SnakeBody):
    """What the OpenAI surface accepts; anything else is `unsupported_parameter`."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    messages: list[MessageBody]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: int | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    seed: int | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    metadata: dict[str, str] | None = None
    tools: list[ToolBody] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormatBody | None = None
    reasoning_effort: Annotated[str, Field(max_length=20)] | None = None
    store: bool | None = None
    service_tier: str | None = None


def as_params(body: OpenAIBody, limit: int) -> Params:
    """Raises UnsupportedParameter (`n` above 1) and ValidationFailed (more tokens than may be asked for)."""
    if body.n not in {None, 1}:
        raise UnsupportedParameter(param="n", reason=" above 1")
    max_tokens = body.max_completion_tokens or body.max_tokens
    if max_tokens is not None and max_tokens > limit:
        raise ValidationFailed(problems=(Problem("max_tokens", f"is {max_tokens}; at most {limit} are allowed"),))
    return Params(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        max_tokens=max_tokens,
        stop=None if body.stop is None else (body.stop,) if isinstance(body.stop, str) else tuple(body.stop),
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=_raw(body.logit_bias),
        logprobs=body.logprobs,
        top_logprobs=body.top_logprobs,
        seed=body.seed,
        user=body.user,
        metadata=_raw(body.metadata),
        tools=tuple(_tool(tool) for tool in body.tools) if body.tools else None,
        tool_choice=_tool_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_response_format(body.response_format),
        reasoning_effort=body.reasoning_effort,
    )


def _response_format(wanted: ResponseFormatBody | None) -> ResponseFormat | None:
    return None if wanted is None else ResponseFormat(kind=wanted.type, json_schema=_raw(wanted.json_schema))


def _raw(value: Any) -> msgspec.Raw | None:
    return None if value is None else msgspec.Raw(msgspec.json.encode(value))


def _tool(tool: ToolBody) -> Tool:
    function = tool.function
    return Tool(
        name=function.name,
        description=function.description,
        parameters=_raw(function.parameters),
        strict=function.strict,
    )


def _tool_choice(choice: Literal["none", "auto", "required"] | NamedTool | None) -> ToolChoice | None:
    if choice is None:
        return None
    if isinstance(choice, NamedTool):
        return ToolChoice(mode="named", name=choice.function.name)
    return ToolChoice(mode=choice)


def as_prompt(messages: list[MessageBody]) -> tuple[PromptMessage, ...]:
    if not messages:
        raise EmptyMessages
    return tuple(_message(message, index) for index, message in enumerate(messages))


def _message(message: MessageBody, index: int) -> PromptMessage:
    calls = tuple(
        ToolCall(index=at, id=call.id, name=call.function.name, arguments=call.function.arguments)
        for at, call in enumerate(message.tool_calls or [])
    )
    if message.content is None and not calls:
        raise ValidationFailed(problems=(Problem(f"messages.{index}.content", "is missing"),))
    content: str | tuple[Content, ...] | None
    if isinstance(message.content, list):
        content = tuple(_part(part, f"messages.{index}.content.{at}") for at, part in enumerate(message.content))
    else:
        content = message.content
    return PromptMessage(
        role=message.role, content=content, name=message.name, tool_calls=calls, tool_call_id=message.tool_call_id
    )


def _part(part: PartBody, field: str) -> Content:
    if part.type == "text":
        if part.text is None:
            raise ValidationFailed(problems=(Problem(f"{field}.text", "is missing"),))
        return TextContent(part.text)
    if part.image_url is None:
        raise ValidationFailed(problems=(Problem(f"{field}.image_url", "is missing"),))
    url = part.image_url.url
    if url.startswith("data:"):
        if not url.startswith(_DATA_TYPES):
            raise ImageRefused(reason="a data: URL holds jpeg, png, webp or gif in base64")
        if len(url) > _DATA_URL_BYTES:
            raise ImageRefused(reason="it is larger than 4 MiB")
    elif not url.startswith("https://"):
        raise ImageRefused(reason="only https: and data: URLs are passed on")
    return ImageContent(url, part.image_url.detail)


@router.post("/v1/chat/completions")
@router.post("/chat/v1/chat/completions")
async def complete(body: OpenAIBody, request: Request, caller: Caller, edge: TheEdge) -> Response:
    prompt = as_prompt(body.messages)
    check_model(caller, body.model)
    ask = Ask(
        user_id=caller.user_id,
        dialect="openai",
        model=body.model,
        params=as_params(body, edge.settings.max_output_tokens),
        request_hash=idempotency(request),
        body_hash=await body_hash(request),
        can_reset=not body.stream,
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
    )
    live = await ask_stateless(edge, ask, prompt)
    if body.stream:
        return TurnResponse(live, DIALECTS["openai"], edge.connections)
    try:
        async with edge.connections.held(caller.user_id):
            ended, logprobs = await gathered(live, request.receive)
        whole = completion(live.ticket, ended, logprobs)
    finally:
        await live.__aexit__(None, None, None)
    return Response(whole, media_type="application/json", headers={"X-Turn-Id": live.ticket.turn_id})


def model_json(config: ModelConfig) -> dict[str, Any]:
    return {"id": config.name, "object": "model", "created": 0, "owned_by": config.provider.lower()}


@router.get("/v1/models")
@router.get("/chat/v1/models")
async def list_models(caller: Caller, edge: TheEdge) -> Response:
    configs = await edge.bus.ask(ListModelConfigs(user_id=caller.user_id))
    return respond({"object": "list", "data": [model_json(config) for config in configs if may_name(caller, config.name)]})


@router.get("/v1/models/{model:path}")
@router.get("/chat/v1/models/{model:path}")
async def get_model(model: str, caller: Caller, edge: TheEdge) -> Response:
    check_model(caller, model)
    return respond(model_json(await edge.configs.get(caller.user_id, name=model)))
