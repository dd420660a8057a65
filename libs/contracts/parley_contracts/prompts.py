"""Prompts: what a model is asked, whatever the dialect it came in and the protocol it goes out by."""

from typing import Literal, TypeAlias

import msgspec

from parley_contracts.parts import RawJson, ToolCall

Role: TypeAlias = Literal["developer", "system", "user", "assistant", "tool"]


class TextContent(msgspec.Struct, frozen=True, tag="text"):
    text: str


class ImageContent(msgspec.Struct, frozen=True, tag="image"):
    """An image by `https:` or `data:` URL. Parley never fetches it; the provider may."""

    url: str
    detail: str | None = None


Content: TypeAlias = TextContent | ImageContent


class PromptMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message of a prompt. `content` is None for an assistant message of tool calls only."""

    role: Role
    content: str | tuple[Content, ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A function the model may call. `parameters` is its JSON Schema, passed through untouched."""

    name: str
    description: str | None = None
    parameters: RawJson = None
    strict: bool | None = None


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether the model must call a tool; `name` binds it to one."""

    mode: Literal["none", "auto", "required", "named"]
    name: str | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`json_schema` holds OpenAI's object of that name (name, schema, strict), untouched."""

    kind: Literal["text", "json_object", "json_schema"]
    json_schema: RawJson = None


class Params(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a model is to answer. None means: not said, the provider's default; 0 is a value (trap T6)."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: tuple[str, ...] | None = None
    seed: int | None = None
    user: str | None = None
    logit_bias: RawJson = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    metadata: RawJson = None
    reasoning_effort: str | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    def over(self, fallback: "Params") -> "Params":
        """These parameters, and where they say nothing, those of `fallback` (request over session over config)."""
        said = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}
        return msgspec.structs.replace(fallback, **said)
