"""Messages: what may be said on the bus. A class each, the only place where its subject is written.

`Query` and `Command` are asked and answered, an `Event` may be missed, a `Durable` is delivered at least once.
Contracts only grow: a new field has a default, no field is renamed, unknown fields are ignored.
"""

import re
from typing import Any, ClassVar, Generic, Self, TypeVar, get_args, get_origin

import msgspec

from parley_contracts.ids import checked
from parley_contracts.streams import Stream

R = TypeVar("R")

_FIELD = re.compile(r"\{(\w+)\}")
_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {}
_ENCODER = msgspec.json.Encoder()


def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    found = _DECODERS.get(kind)
    if found is None:
        found = _DECODERS[kind] = msgspec.json.Decoder(kind)
    return found


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Anything said on the bus. `subject` may hold `{field}`; `route()` fills it in with checked ids."""

    subject: ClassVar[str]

    def route(self) -> str:
        """The subject to publish to. Raises `InvalidId` when a field that belongs there is no id."""
        return _FIELD.sub(lambda name: _token(getattr(self, name.group(1))), self.subject)

    @classmethod
    def pattern(cls) -> str:
        """The subject to subscribe to for all messages of this kind."""
        return _FIELD.sub("*", cls.subject)

    @classmethod
    def subject_for(cls, **ids: str | int) -> str:
        """The subject of the messages about one thing, e.g. one turn."""
        return _FIELD.sub(lambda name: _token(ids[name.group(1)]), cls.subject)

    def encode(self) -> bytes:
        return _ENCODER.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises `msgspec.DecodeError` (or its `ValidationError`) when `data` is not such a message."""
        decoded: Self = _decoder(cls).decode(data)
        return decoded


def _token(value: Any) -> str:
    # Users are integers made by the database; everything else must look like one of our ids.
    return str(value) if type(value) is int else checked(value)


class Question(Message, Generic[R], frozen=True, kw_only=True):
    """Asked by one, answered by one replica of the service named first in its subject."""

    @classmethod
    def reply_type(cls) -> Any:
        for base in getattr(cls, "__orig_bases__", ()):
            if isinstance(get_origin(base), type) and issubclass(get_origin(base), Question):
                return get_args(base)[0]
        raise TypeError(f"{cls.__name__} does not say what answers it")

    @classmethod
    def encode_reply(cls, reply: R) -> bytes:
        return _ENCODER.encode(reply)

    @classmethod
    def decode_reply(cls, data: bytes) -> R:
        reply: R = _decoder(cls.reply_type()).decode(data)
        return reply

    @classmethod
    def service(cls) -> str:
        return cls.subject.partition(".")[0]


class Query(Question[R], Generic[R], frozen=True, kw_only=True):
    """Asks what is."""


class Command(Question[R], Generic[R], frozen=True, kw_only=True):
    """Asks for something to be done."""


class Event(Message, frozen=True, kw_only=True):
    """Something happened. Core NATS, at most once: for what may be missed."""


class Durable(Message, frozen=True, kw_only=True):
    """Stored on a JetStream stream, delivered at least once; handlers are idempotent."""

    stream: ClassVar[Stream]

    def dedup_id(self) -> str:
        """`Nats-Msg-Id`: two publishes with one id within the stream's window are one message."""
        raise TypeError(f"{type(self).__name__} has no dedup id")
