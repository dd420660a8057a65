"""S0: our own flat SSE events, `start`, `content`, `done`. Every `data:` line is JSON, whole, and at most 8 KiB.

The client this was made for parses each line that begins with `data: ` without a catch and decodes each network chunk
alone (S0-15): so there is no `[DONE]`, and no event is split over writes. Reasoning and tool calls are not shown.
"""

import msgspec

from parley_contracts.errors import ParleyError, error_from
from parley_contracts.parts import FinishReason, Text, TokenUsage
from parley_contracts.reader import Ended, Reset, Shown, Snapshot, Started, StreamEvent
from parley_gateway.dialects.dialect import Encoder, Ticket
from parley_gateway.dialects.errors import common_error

_json = msgspec.json.encode
_CHARACTERS = 600
"""Of one event: six bytes each at worst, in `content` and in `delta`, stay below 8 KiB."""


class S0Encoder:
    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket

    def start(self) -> bytes:
        ticket = self._ticket
        return _data(
            {
                "type": "start",
                "message": "Stream started",
                "turnId": ticket.turn_id,
                "sessionId": ticket.session_id,
                "userMessageId": ticket.user_message_id,
                "messageId": ticket.message_id,
            }
        )

    def encode(self, events: list[StreamEvent]) -> bytes:
        out: list[bytes] = []
        text, last = "", None
        for event in events:
            if isinstance(event, Shown):
                if isinstance(event.part, Text):
                    if last is not None and len(text) + len(event.part.text) > _CHARACTERS:
                        out.append(_content(text, last.attempt, last.n))
                        text = ""
                    text, last = text + event.part.text, event
                continue
            if last is not None:
                out.append(_content(text, last.attempt, last.n))
                text, last = "", None
            match event:
                case Started():
                    pass
                case Reset():
                    out.append(_data({"type": "reset", "message": "Stream restarted", "attempt": event.attempt}))
                case Snapshot():
                    out.append(_snapshot(event))
                case Ended():
                    out.append(self._end(event))
        if last is not None:
            out.append(_content(text, last.attempt, last.n))
        return b"".join(out)

    def ping(self) -> bytes:
        return b": ping\n\n"

    def fail(self, error: ParleyError) -> bytes:
        return _data({"type": "error", "message": error.message, "code": error.code, "messageId": self._ticket.message_id})

    def _end(self, ended: Ended) -> bytes:
        if ended.reason is FinishReason.ERROR:
            return self.fail(error_from(ended.error) if ended.error else ParleyError())
        return _data(
            {
                "type": "done",
                "message": "Stream completed",
                "usage": usage_json(ended.usage),
                "finishReason": ended.reason,
                "messageId": self._ticket.message_id,
            }
        )


class S0Dialect:
    name = "s0"
    opens_at_once = True

    def encoder(self, ticket: Ticket) -> Encoder:
        return S0Encoder(ticket)

    def encode_error(self, error: ParleyError) -> bytes:
        return common_error(error)


def usage_json(usage: TokenUsage | None) -> dict[str, int]:
    """OpenAI's three numbers; nothing was used where nothing is known."""
    if usage is None:
        return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    return {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens, "total_tokens": usage.total}


def _data(body: dict[str, object]) -> bytes:
    return b"data: " + _json(body) + b"\n\n"


def _content(text: str, attempt: int, n: int) -> bytes:
    if len(text) <= _CHARACTERS:
        piece = _json(text)
        return b'id: %d.%d\ndata: {"type":"content","content":%b,"delta":%b}\n\n' % (attempt, n, piece, piece)
    # Parts are shorter than this, so only the repair of a damaged log comes here; its last piece bears the id.
    pieces = [_json(text[at : at + _CHARACTERS]) for at in range(0, len(text), _CHARACTERS)]
    plain = b"".join(b'data: {"type":"content","content":%b,"delta":%b}\n\n' % (piece, piece) for piece in pieces[:-1])
    last = b'id: %d.%d\ndata: {"type":"content","content":%b,"delta":%b}\n\n' % (attempt, n, pieces[-1], pieces[-1])
    return plain + last


def _snapshot(event: Snapshot) -> bytes:
    text = event.answer.text
    head, rest = text[:_CHARACTERS], text[_CHARACTERS:]
    first = _data({"type": "snapshot", "message": "Stream corrected", "content": head})
    if rest:
        return first + _content(rest, event.attempt, event.n)
    return b"id: %d.%d\n" % (event.attempt, event.n) + first
