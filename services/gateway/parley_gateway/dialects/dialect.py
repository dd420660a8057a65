"""Dialects: how clients speak to us. Each is pure: a request's JSON in, stream events out as bytes.

`encode` is given all that is pending at once and returns one bytes object, so text that arrived together may share an
event. What a `Reset` or `Snapshot` means is each dialect's own grammar (requirements 2.6).
"""

from datetime import datetime
from typing import Protocol

import msgspec

from parley_contracts.errors import ParleyError
from parley_contracts.ids import MessageId, SessionId, TurnId
from parley_contracts.reader import StreamEvent


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """What an encoder needs to know of the turn it encodes."""

    turn_id: TurnId
    session_id: SessionId | None = None
    user_message_id: MessageId | None = None
    message_id: MessageId | None = None
    model: str
    provider: str = ""
    created_at: datetime
    include_usage: bool = False


class Encoder(Protocol):
    """One client's stream. Stateful: it knows what it has sent."""

    def start(self) -> bytes:
        """What is sent as soon as the turn is accepted."""
        ...

    def encode(self, events: list[StreamEvent]) -> bytes:
        """What is sent for these events; the terminal event of the dialect is part of `Ended`."""
        ...

    def ping(self) -> bytes: ...

    def fail(self, error: ParleyError) -> bytes:
        """What is sent when Parley itself cannot go on; the stream closes after it."""
        ...


class Dialect(Protocol):
    """A wire format.

    `opens_at_once`: 200 is sent when the turn is accepted; else at the first part, so that early failures are HTTP
    answers (requirements 2.5.4).
    """

    name: str
    opens_at_once: bool

    def encoder(self, ticket: Ticket) -> Encoder: ...
    def encode_error(self, error: ParleyError) -> bytes: ...
