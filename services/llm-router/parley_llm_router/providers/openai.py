"""OpenAI's protocol, chat completions: spoken by OpenAI and by nearly everybody else."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec

from parley_contracts.errors import ProviderAuth, UnsupportedParameter
from parley_contracts.model_configs import ModelConfig
from parley_contracts.parts import ProviderSaidError, ToolCall
from parley_contracts.prompts import Content, ImageContent, Params, PromptMessage, ResponseFormat, TextContent, Tool, ToolChoice
from parley_llm_router.providers.openai_answers import StreamDecoder, WholeDecoder
from parley_llm_router.providers.provider import Decoder, HttpRequest
from parley_llm_router.providers.provider_errors import error_of_answer


class _Difference(msgspec.Struct, frozen=True, kw_only=True):
    """How a provider differs from the rest. A provider that is not listed gets everything and judges for itself."""

    refuses: frozenset[str] = frozenset()
    renames: dict[str, str] = {}
    takes_stream_options: bool = True
    is_openai: bool = False


_OPENAI = _Difference(refuses=frozenset({"top_k"}), is_openai=True)
_REST = _Difference()
# OpenAI refuses unknown arguments, top_k among them. Mistral refuses extra fields with 422, wants `random_seed` and sends
# usage unasked (mistralai/platform-docs-public#7, posit-dev/chatlas#145, and the recording mistral__text-stream).
_DIFFERENCES = {
    "openai": _OPENAI,
    "azure": _OPENAI,
    "azure-openai": _OPENAI,
    "mistral": _Difference(
        refuses=frozenset({"top_k"}),
        renames={"seed": "random_seed"},
        takes_stream_options=False,
    ),
}
_REASONING_MODELS = ("o1", "o3", "o4", "gpt-5")  # OpenAI's models that refuse `max_tokens`

# These stand in a request under their own names, as they are.
_PLAIN = (
    "temperature",
    "top_p",
    "top_k",
    "frequency_penalty",
    "presence_penalty",
    "stop",
    "seed",
    "user",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "metadata",
    "reasoning_effort",
    "parallel_tool_calls",
)


class OpenAI:
    """Requests and answers of `POST …/chat/completions`."""

    def build_request(
        self,
        config: ModelConfig,
        key: str | None,
        prompt: Sequence[PromptMessage],
        params: Params,
        *,
        max_output_tokens: int,
        is_stream: bool,
    ) -> HttpRequest:
        difference = _DIFFERENCES.get(config.provider.lower(), _REST)
        body: dict[str, Any] = {"model": config.model, "messages": [_message(message) for message in prompt]}
        is_reasoning = difference.is_openai and config.model.startswith(_REASONING_MODELS)
        body["max_completion_tokens" if is_reasoning else "max_tokens"] = max_output_tokens
        body["stream"] = is_stream
        if is_stream and difference.takes_stream_options:
            body["stream_options"] = {"include_usage": True}
        for name in _PLAIN:
            value = getattr(params, name)
            if value is None:
                continue
            if name in difference.refuses:
                raise UnsupportedParameter(param=name, reason=f" by {config.provider}")
            body[difference.renames.get(name, name)] = value
        if params.tools:
            body["tools"] = [_tool(tool) for tool in params.tools]
            if params.tool_choice is not None:
                body["tool_choice"] = _tool_choice(params.tool_choice)
        if params.response_format is not None:
            body["response_format"] = _response_format(params.response_format)
        return HttpRequest(
            method="POST",
            url=_url(config.base_url),
            headers=_headers(config, key, is_stream=is_stream),
            body=msgspec.json.encode(body),
        )

    def decoder(self, *, content_type: str) -> Decoder:
        """A provider that names no type, or a wrong one, is taken to stream."""
        kind = content_type.partition(";")[0].strip().lower()
        return WholeDecoder() if kind.endswith(("/json", "+json")) else StreamDecoder()

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderSaidError:
        return error_of_answer(status, headers, body)


def _url(base_url: str) -> str:
    """Where the config points, with the path added unless it is there already; a query (Azure's api-version) stays."""
    parts = urlsplit(base_url)
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _headers(config: ModelConfig, key: str | None, *, is_stream: bool) -> dict[str, str]:
    headers = {
        "content-type": "application/json",
        "accept": "text/event-stream" if is_stream else "application/json",
    }
    if key and config.auth != "none":
        if not (key.isascii() and key.isprintable()):
            raise ProviderAuth
        if config.auth == "bearer":
            headers["authorization"] = f"Bearer {key}"
        else:
            headers[config.auth] = key
    return headers


def _message(message: PromptMessage) -> dict[str, Any]:
    content = message.content
    said: dict[str, Any] = {
        "role": message.role,
        "content": [_content(piece) for piece in content] if isinstance(content, tuple) else content,
    }
    if message.name is not None:
        said["name"] = message.name
    if message.tool_calls:
        said["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        said["tool_call_id"] = message.tool_call_id
    return said


def _content(piece: Content) -> dict[str, Any]:
    match piece:
        case TextContent(text):
            return {"type": "text", "text": text}
        case ImageContent(url, detail):
            return {"type": "image_url", "image_url": {"url": url} if detail is None else {"url": url, "detail": detail}}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    for name in ("description", "parameters", "strict"):
        if (value := getattr(tool, name)) is not None:
            function[name] = value
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice) -> Any:
    return {"type": "function", "function": {"name": choice.name}} if choice.mode == "named" else choice.mode


def _response_format(form: ResponseFormat) -> dict[str, Any]:
    said: dict[str, Any] = {"type": form.kind}
    if form.json_schema is not None:
        said["json_schema"] = form.json_schema
    return said
