"""Parts: what a provider says, whatever its protocol. The small vocabulary in the middle.

A provider's decoder yields `ProviderEvent`s; the parts among them travel in `TurnDelta`s; an `Answer` is what they add up to.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

import msgspec

if TYPE_CHECKING:
    RawJson: TypeAlias = msgspec.Raw | None
else:
    # msgspec 0.22 decodes no value into `Raw | None` ("expected null"). Absent is None all the same: that is the default.
    # Null would be read as Raw(b"null"), so whatever holds such a field omits its defaults.
    RawJson = msgspec.Raw | msgspec.UnsetType


MAX_PART_CHARACTERS = 512
"""A router splits longer texts: a part is the unit a client resumes at, so it must fit one event of every dialect."""


class FinishReason(StrEnum):
    """Why a turn ended (requirements 2.6)."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    CANCELED = "canceled"
    BUDGET_EXHAUSTED = "budget_exhausted"
    ERROR = "error"


class Text(msgspec.Struct, frozen=True, tag="text", omit_defaults=True):
    """A piece of the answer. `logprobs` is the provider's own JSON for this piece, passed through untouched."""

    text: str
    logprobs: RawJson = None


class Reasoning(msgspec.Struct, frozen=True, tag="reasoning"):
    """A piece of the model's reasoning; no part of the answer."""

    text: str


class ToolCall(msgspec.Struct, frozen=True, tag="tool_call"):
    """A tool call, or a fragment of one: fragments of one `index` join their names and arguments; the first id counts."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


Part: TypeAlias = Text | Reasoning | ToolCall


class TokenUsage(msgspec.Struct, frozen=True, kw_only=True, tag="usage"):
    """Tokens of one provider call. `input_tokens` includes `cached_tokens`.

    `total_tokens` is the provider's own figure where it gave one: xAI's is larger than the sum, since its reasoning is not
    part of `output_tokens`. None in `cached_tokens` and `reasoning_tokens`: the provider did not say.
    """

    input_tokens: int
    output_tokens: int
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    total_tokens: int | None = None

    @property
    def total(self) -> int:
        return self.input_tokens + self.output_tokens if self.total_tokens is None else self.total_tokens


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The provider's own word that the answer is complete. A stream without it did not end well."""

    reason: FinishReason


class ProviderSaidError(msgspec.Struct, frozen=True, kw_only=True, tag="error"):
    """An error the provider stated: as an HTTP answer, or inside a 200 stream (`status` then as far as it said one).

    `message` is for the log only, after scrubbing; clients get our own texts.
    """

    status: int
    code: str | None = None
    kind: str | None = None
    message: str = ""
    retry_after_s: float | None = None


ProviderEvent: TypeAlias = Text | Reasoning | ToolCall | TokenUsage | Finished | ProviderSaidError


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the parts of one attempt add up to."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    @classmethod
    def of(cls, parts: Iterable[Part]) -> "Answer":
        texts: list[str] = []
        thoughts: list[str] = []
        calls: dict[int, ToolCall] = {}
        for part in parts:
            match part:
                case Text():
                    texts.append(part.text)
                case Reasoning():
                    thoughts.append(part.text)
                case ToolCall():
                    known = calls.get(part.index)
                    calls[part.index] = part if known is None else _join(known, part)
        return cls(text="".join(texts), reasoning="".join(thoughts), tool_calls=tuple(calls[i] for i in sorted(calls)))


def _join(known: ToolCall, more: ToolCall) -> ToolCall:
    return ToolCall(
        index=known.index,
        id=known.id or more.id,
        name=known.name + more.name,
        arguments=known.arguments + more.arguments,
    )
