"""OpenAI's chat completions, read: chunks and whole answers become events."""

from typing import Any

import msgspec

from parley_contracts.parts import (
    Finished,
    FinishReason,
    ProviderEvent,
    ProviderSaidError,
    Reasoning,
    Text,
    TokenUsage,
    ToolCall,
)
from parley_llm_router.providers.openai_shapes import (
    NOTHING,
    Choice,
    Chunk,
    Details,
    Fragment,
    Function,
    NotJson,
    Said,
    Usage,
    decode,
    mend,
    parse,
)
from parley_llm_router.providers.provider_errors import error_in_stream
from parley_llm_router.providers.sse import LineTooLong, SseReader

BODY_LIMIT_BYTES = 16 << 20

_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "tool_use": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
    "sensitive": FinishReason.CONTENT_FILTER,
    "refusal": FinishReason.CONTENT_FILTER,
    "safety": FinishReason.CONTENT_FILTER,
    "error": FinishReason.ERROR,
    "network_error": FinishReason.ERROR,
    "abort": FinishReason.ERROR,
    "insufficient_system_resource": FinishReason.ERROR,
}  # another word (eos, end_turn, stop_sequence, …) is still the provider's word that the answer is complete: stop
_MINIMAX_STATUSES = {1002: 429, 1004: 401, 1008: 402, 1039: 400, 2013: 400}
_NOT_SAID = frozenset({None, "", "null"})


class _Reader:
    """What chunks say, as events, with the memory that this needs: calls that began, figures already passed on."""

    def __init__(self, *, is_whole: bool) -> None:
        self._is_whole = is_whole
        self._calls = _Calls()
        self._usage: TokenUsage | None = None
        self._has_standard_usage = False
        self._finished: FinishReason | None = None
        self.is_over = False

    def read(self, data: bytes) -> list[ProviderEvent]:
        try:
            chunk = decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._read_odd(data)
        events: list[ProviderEvent] = []
        self._events(chunk, events)
        if not chunk.choices and not events and chunk.usage is None:
            return self._read_odd(data)
        return events

    def fail(self, *, code: str, message: str = "") -> ProviderSaidError:
        self.is_over = True
        return ProviderSaidError(status=200, code=code, message=message)

    def _read_odd(self, data: bytes) -> list[ProviderEvent]:
        said = parse(data)
        chunk = mend(said, Chunk)
        events: list[ProviderEvent] = []
        self._events(chunk, events)
        if not chunk.choices and not events and (said.get("message") or said.get("detail")):
            events.append(self._error(said))
        return events

    def _events(self, chunk: Chunk, events: list[ProviderEvent]) -> None:
        error = chunk.error
        finish_reason = None
        usage = chunk.usage
        for choice in chunk.choices or ():
            if choice.index:
                continue  # n > 1 is never asked for
            said = choice.message if self._is_whole else choice.delta
            if said is not None:
                self._said(said, choice, events)
            if choice.finish_reason not in _NOT_SAID:
                finish_reason = choice.finish_reason
            if choice.error is not NOTHING:
                error = choice.error
            if choice.usage is not None and usage is None:
                self._count(choice.usage, events, is_standard=False)
        if usage is not None:
            self._count(usage, events, is_standard=True)
        elif chunk.x_groq is not None and chunk.x_groq.usage is not None:
            self._count(chunk.x_groq.usage, events, is_standard=False)
        if error is not NOTHING and (stated := msgspec.json.decode(error)):
            events.append(self._error({"error": stated}))
        elif chunk.base_resp is not None and chunk.base_resp.status_code:
            verdict = chunk.base_resp
            status = _MINIMAX_STATUSES.get(verdict.status_code)
            events.append(self._error({"code": verdict.status_code, "message": verdict.status_msg, "status_code": status}))
        elif finish_reason is not None:
            self._finish(finish_reason, events)

    def _said(self, said: Said, choice: Choice, events: list[ProviderEvent]) -> None:
        if thought := said.reasoning_content or said.reasoning:
            events.append(Reasoning(thought))
        content = said.content
        if choice.logprobs is not NOTHING and bytes(choice.logprobs) != b"null":
            events.append(Text(content if isinstance(content, str) else "", choice.logprobs))
        elif isinstance(content, str):
            if content:
                events.append(Text(content))
        elif content:
            events += _pieces(content)
        if said.refusal:
            events.append(Text(said.refusal))
        if said.tool_calls:
            for position, fragment in enumerate(said.tool_calls):
                call = self._calls.join(fragment, position if self._is_whole else None)
                if call is not None:
                    events.append(call)

    def _count(self, said: Usage, events: list[ProviderEvent], *, is_standard: bool) -> None:
        if said.prompt_tokens is None or said.completion_tokens is None or (self._has_standard_usage and not is_standard):
            return
        details, more = said.prompt_tokens_details or Details(), said.completion_tokens_details or Details()
        figures = (details.cached_tokens, said.cached_tokens, said.prompt_cache_hit_tokens)
        usage = TokenUsage(
            input_tokens=said.prompt_tokens,
            output_tokens=said.completion_tokens,
            cached_tokens=next((figure for figure in figures if figure is not None), None),
            reasoning_tokens=more.reasoning_tokens,
            total_tokens=said.total_tokens,
        )
        self._has_standard_usage = self._has_standard_usage or is_standard
        if usage != self._usage:
            self._usage = usage
            events.append(usage)

    def _finish(self, word: str, events: list[ProviderEvent]) -> None:
        reason = _FINISH_REASONS.get(word.lower(), FinishReason.STOP)
        if reason is FinishReason.ERROR:
            events.append(self._error({"error": {"code": word, "message": f"finish reason {word}"}}))
        elif reason is not self._finished:
            if reason not in {FinishReason.LENGTH, FinishReason.CONTENT_FILTER}:
                events += self._calls.without_arguments()
            self._finished = reason
            events.append(Finished(reason))

    def _error(self, said: Any) -> ProviderSaidError:
        self.is_over = True
        return error_in_stream(said)


class _Calls:
    """The tool calls of one answer. Gives each an index of ours, since some providers give none, or one for all."""

    def __init__(self) -> None:
        self._ours: dict[int, int] = {}
        self._ids: list[str] = []
        self._names: list[str] = []
        self._has_arguments: list[bool] = []

    def join(self, fragment: Fragment, position: int | None) -> ToolCall | None:
        """The fragment in our terms; None where it says nothing new. A repeated id or name is not said twice."""
        function = fragment.function or Function()
        call_id, name, arguments = fragment.id or "", function.name or "", function.arguments or ""
        if not isinstance(arguments, str):
            arguments = msgspec.json.encode(arguments).decode()
        ours = self._find(fragment.index if fragment.index is not None else position, call_id, name)
        if ours == len(self._ids):
            self._ids.append("")
            self._names.append("")
            self._has_arguments.append(False)
        call_id = "" if self._ids[ours] else call_id
        name = "" if name == self._names[ours] else name
        self._ids[ours] += call_id
        self._names[ours] += name
        self._has_arguments[ours] |= bool(arguments)
        return ToolCall(ours, call_id, name, arguments) if call_id or name or arguments else None

    def without_arguments(self) -> list[ToolCall]:
        """`{}` for each call that got no arguments: an empty string is no JSON."""
        empty = [index for index, has_arguments in enumerate(self._has_arguments) if not has_arguments]
        for index in empty:
            self._has_arguments[index] = True
        return [ToolCall(index, arguments="{}") for index in empty]

    def _find(self, theirs: int | None, call_id: str, name: str) -> int:
        new = len(self._ids)
        if theirs is None:
            if call_id:
                return self._ids.index(call_id) if call_id in self._ids else new
            return max(0, new - 1)
        ours = self._ours.get(theirs, new)
        # Another id together with a name is another call, though it bears the index of the first.
        if ours < new and call_id and name and self._ids[ours] not in {"", call_id}:
            ours = new
        self._ours[theirs] = ours
        return ours


class StreamDecoder:
    """A `text/event-stream` answer."""

    def __init__(self) -> None:
        self.bad_lines = 0
        self.is_done = False
        self._sse = SseReader()
        self._reader = _Reader(is_whole=False)

    def feed(self, data: bytes) -> list[ProviderEvent]:
        if self._reader.is_over:
            return []
        try:
            lines = self._sse.feed(data)
        except LineTooLong:
            return [self._reader.fail(code="line_too_long")]
        return self._read(lines)

    def end(self) -> list[ProviderEvent]:
        return [] if self._reader.is_over else self._read(self._sse.end())

    def _read(self, lines: list[bytes]) -> list[ProviderEvent]:
        reader = self._reader
        if len(lines) == 1 and not self.is_done:
            return self._line(lines[0])
        events: list[ProviderEvent] = []
        for line in lines:
            if reader.is_over or self.is_done:
                break
            events += self._line(line)
        return events

    def _line(self, line: bytes) -> list[ProviderEvent]:
        try:
            return self._reader.read(line)
        except NotJson as problem:
            if problem.is_broken:
                return [self._reader.fail(code="bad_json", message="a chunk is no valid JSON")]
            if line.strip() == b"[DONE]":
                self.is_done = True
            else:
                self.bad_lines += 1
            return []


class WholeDecoder:
    """An `application/json` answer: nothing comes out before its end."""

    def __init__(self) -> None:
        self.bad_lines = 0
        self.is_done = False
        self._body = bytearray()
        self._reader = _Reader(is_whole=True)

    def feed(self, data: bytes) -> list[ProviderEvent]:
        if self._reader.is_over:
            return []
        self._body += data
        if len(self._body) > BODY_LIMIT_BYTES:
            self._body.clear()
            return [self._reader.fail(code="body_too_large")]
        return []

    def end(self) -> list[ProviderEvent]:
        if self._reader.is_over or not self._body:
            return []
        self.is_done = True
        try:
            return self._reader.read(bytes(self._body))
        except NotJson:
            return [self._reader.fail(code="bad_json", message="the answer is no JSON object")]


def _pieces(content: list[Any]) -> list[ProviderEvent]:
    """Content as a list of typed pieces, as Mistral's reasoning models send it."""
    events: list[ProviderEvent] = []
    for piece in content:
        if isinstance(piece, str):
            events.append(Text(piece))
        elif isinstance(piece, dict):
            thinking = piece.get("thinking")
            if isinstance(thinking, list):
                thinking = "".join(str(part.get("text") or "") for part in thinking if isinstance(part, dict))
            if isinstance(thinking, str) and thinking:
                events.append(Reasoning(thinking))
            elif isinstance(text := piece.get("text"), str) and text:
                events.append(Text(text))
    return events
