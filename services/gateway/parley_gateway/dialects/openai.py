"""OpenAI's chat completions: chunks and `[DONE]`, or one whole completion (requirements §9).

The format can only append: where another attempt replaces what was shown, or the end was not good, the stream says so in
an error chunk and closes without `[DONE]`, so that no abnormal end looks like a normal one.
"""

from typing import Any

import msgspec

from parley_contracts.errors import BudgetExhausted, ParleyError, UpstreamInterrupted, error_from
from parley_contracts.parts import Answer, FinishReason, Part, Reasoning, Text, TokenUsage, ToolCall
from parley_contracts.reader import Ended, Reset, Shown, Snapshot, Started, StreamEvent
from parley_gateway.dialects.dialect import Encoder, Ticket
from parley_gateway.dialects.errors import openai_error

_json = msgspec.json.encode


class OpenAIEncoder:
    def __init__(self, ticket: Ticket) -> None:
        self._include_usage = ticket.include_usage
        envelope: dict[str, Any] = {
            "id": f"chatcmpl-{ticket.turn_id}",
            "object": "chat.completion.chunk",
            "created": int(ticket.created_at.timestamp()),
            "model": ticket.model,
            "system_fingerprint": None,
        }
        if ticket.include_usage:
            envelope["usage"] = None
        self._envelope = envelope
        self._head = _json(envelope)[:-1] + b',"choices":[{"index":0,"delta":'
        self._content_head = b"data: " + self._head + b'{"content":'
        self._tail = b',"logprobs":null,"finish_reason":null}]}\n\n'
        self._calls_begun: set[int] = set()
        self._is_closed = False

    def start(self) -> bytes:
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def encode(self, events: list[StreamEvent]) -> bytes:
        out: list[bytes] = []
        text, last = "", None
        for event in events:
            if self._is_closed:
                break
            if isinstance(event, Shown) and isinstance(event.part, Text) and event.part.logprobs is None:
                text, last = text + event.part.text, event
                continue
            if last is not None:
                out.append(self._text(text, last))
                text, last = "", None
            match event:
                case Started():
                    pass
                case Shown():
                    out.append(b"id: %d.%d\n" % (event.attempt, event.n) + self._part(event.part))
                case Reset() | Snapshot():
                    out.append(self.fail(UpstreamInterrupted()))
                case Ended():
                    out.append(self._end(event))
        if last is not None and not self._is_closed:
            out.append(self._text(text, last))
        return b"".join(out)

    def ping(self) -> bytes:
        return b": ping\n\n"

    def fail(self, error: ParleyError) -> bytes:
        self._is_closed = True
        return b"data: " + openai_error(error) + b"\n\n"

    def _text(self, text: str, last: Shown) -> bytes:
        return b"id: %d.%d\n%b%b}%b" % (last.attempt, last.n, self._content_head, _json(text), self._tail)

    def _part(self, part: Part) -> bytes:
        match part:
            case Text():
                return self._chunk({"content": part.text}, logprobs=part.logprobs)
            case Reasoning():
                return self._chunk({"reasoning_content": part.text})
            case ToolCall():
                is_first = part.index not in self._calls_begun
                self._calls_begun.add(part.index)
                call: dict[str, Any] = {"index": part.index}
                if is_first:
                    call |= {"id": part.id, "type": "function"}
                    call["function"] = {"name": part.name, "arguments": part.arguments}
                else:
                    call["function"] = {"arguments": part.arguments} | ({"name": part.name} if part.name else {})
                return self._chunk({"tool_calls": [call]})

    def _chunk(self, delta: dict[str, Any], *, logprobs: msgspec.Raw | None = None, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return b"data: " + _json({**self._envelope, "choices": [choice]}) + b"\n\n"

    def _end(self, ended: Ended) -> bytes:
        self._is_closed = True
        match ended.reason:
            case FinishReason.ERROR:
                return self.fail(error_from(ended.error) if ended.error else ParleyError())
            case FinishReason.BUDGET_EXHAUSTED:
                return self.fail(BudgetExhausted())
            case FinishReason.CANCELED:
                return b""  # the stream closes, without a word that could look like an end
            case FinishReason.STOP | FinishReason.LENGTH | FinishReason.TOOL_CALLS | FinishReason.CONTENT_FILTER:
                chunks = [self._chunk({}, finish=ended.reason)]
                if self._include_usage:
                    usage = {**self._envelope, "choices": [], "usage": openai_usage(ended.usage)}
                    chunks.append(b"data: " + _json(usage) + b"\n\n")
                return b"".join(chunks) + b"data: [DONE]\n\n"


class OpenAIDialect:
    name = "openai"
    opens_at_once = False

    def encoder(self, ticket: Ticket) -> Encoder:
        return OpenAIEncoder(ticket)

    def encode_error(self, error: ParleyError) -> bytes:
        return openai_error(error)


def openai_usage(usage: TokenUsage | None) -> dict[str, Any]:
    known = usage or TokenUsage(input_tokens=0, output_tokens=0)
    return {
        "prompt_tokens": known.input_tokens,
        "completion_tokens": known.output_tokens,
        "total_tokens": known.total,
        "prompt_tokens_details": {"cached_tokens": known.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": known.reasoning_tokens},
    }


def completion(ticket: Ticket, ended: Ended, logprobs: list[msgspec.Raw]) -> bytes:
    """A whole `chat.completion`. Raises the turn's error, BudgetExhausted or UpstreamInterrupted where it did not end well."""
    match ended.reason:
        case FinishReason.ERROR:
            raise error_from(ended.error) if ended.error else ParleyError()
        case FinishReason.BUDGET_EXHAUSTED:
            raise BudgetExhausted
        case FinishReason.CANCELED:
            raise UpstreamInterrupted
        case FinishReason.STOP | FinishReason.LENGTH | FinishReason.TOOL_CALLS | FinishReason.CONTENT_FILTER:
            pass
    return _json(
        {
            "id": f"chatcmpl-{ticket.turn_id}",
            "object": "chat.completion",
            "created": int(ticket.created_at.timestamp()),
            "model": ticket.model,
            "choices": [
                {
                    "index": 0,
                    "message": _message(ended.answer),
                    "finish_reason": ended.reason,
                    "logprobs": _merged(logprobs),
                }
            ],
            "usage": openai_usage(ended.usage),
            "system_fingerprint": None,
        }
    )


def _message(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None, "refusal": None}
    if not answer.tool_calls:
        message["content"] = answer.text
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.tool_calls
        ]
    return message


def _merged(logprobs: list[msgspec.Raw]) -> dict[str, Any] | None:
    if not logprobs:
        return None
    merged: dict[str, list[Any]] = {}
    for raw in logprobs:
        for name, values in msgspec.json.decode(raw, type=dict[str, Any]).items():
            if isinstance(values, list):
                merged.setdefault(name, []).extend(values)
    return merged or None
