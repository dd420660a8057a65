"""The JSON of OpenAI's chat completions, as OpenAI and all who say they are compatible send it.

An object is decoded into the structs below at once. Where it does not fit them, it is read again field by field and what
has an odd shape is left out: one strange `usage` must not cost the text beside it.
"""

import json
import types
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec

NOTHING = msgspec.Raw(b"null")  # in place of None, which msgspec cannot tell from Raw in a union
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]  # a negative figure would be a credit, a huge one breaks sums


class Details(msgspec.Struct):
    cached_tokens: _Count | None = None
    reasoning_tokens: _Count | None = None


class Usage(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    total_tokens: _Count | None = None
    prompt_tokens_details: Details | None = None
    completion_tokens_details: Details | None = None
    prompt_cache_hit_tokens: _Count | None = None  # DeepSeek
    cached_tokens: _Count | None = None  # Moonshot


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class Fragment(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Said(msgspec.Struct):
    """A `delta`, or the `message` of a whole answer."""

    content: str | list[Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[Fragment] | None = None


class Choice(msgspec.Struct):
    delta: Said | None = None
    message: Said | None = None
    index: int | None = None
    finish_reason: str | None = None
    logprobs: msgspec.Raw = NOTHING
    usage: Usage | None = None  # Moonshot
    error: msgspec.Raw = NOTHING  # OpenRouter


class Groq(msgspec.Struct):
    usage: Usage | None = None


class BaseResp(msgspec.Struct):
    """MiniMax's own verdict, beside HTTP 200."""

    status_code: int = 0
    status_msg: str = ""


class Chunk(msgspec.Struct):
    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: msgspec.Raw = NOTHING
    x_groq: Groq | None = None
    base_resp: BaseResp | None = None


decode = msgspec.json.Decoder(Chunk).decode


class NotJson(Exception):
    """What should be a JSON object is none. `is_broken`: it began as one, so it may have held text."""

    def __init__(self, *, is_broken: bool) -> None:
        super().__init__()
        self.is_broken = is_broken


def parse(data: bytes) -> dict[str, Any]:
    """The object in `data`, also where it holds NaN, broken UTF-8 or half an emoji, which msgspec rightly refuses."""
    text = data.decode("utf-8", "replace").strip()
    try:
        said = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        raise NotJson(is_broken=text.startswith("{")) from None
    if not isinstance(said, dict):
        raise NotJson(is_broken=False)
    return said


def mend(value: Any, kind: Any) -> Any:
    """`value` as `kind`; whatever in it does not fit becomes None."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if not isinstance(value, dict):
            return None
        named = ((field.name, mend(value.get(field.encode_name), field.type)) for field in msgspec.structs.fields(kind))
        return kind(**{name: mended for name, mended in named if mended is not None})
    if value is None:
        return None
    origin = get_origin(kind)
    if origin is Union or origin is types.UnionType:
        return next((mended for arg in get_args(kind) if (mended := mend(value, arg)) is not None), None)
    if origin is list and isinstance(value, list):
        return [mended for item in value if (mended := mend(item, get_args(kind)[0])) is not None]
    if kind is msgspec.Raw:
        return msgspec.Raw(_encode(value))
    if kind is str:
        return _whole_text(value) if isinstance(value, str) else None
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        return None


def _encode(value: Any) -> bytes:
    return _whole_text(json.dumps(value, ensure_ascii=False)).encode()


def _whole_text(text: str) -> str:
    """`text` with U+FFFD in place of halves of characters, which no encoder takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
