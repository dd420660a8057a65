"""The bus: how services talk. One protocol, two implementations: NATS, and one in memory shipped for tests.

- `ask(question)` / `answer(Kind, handler)`: request/reply to a queue group. The typed error reaches the asker;
  nobody there is `ServiceUnavailable`.
- `publish(event)` / `on(Kind, handler)`: core NATS, at most once. What a handler raises is logged and forgotten.
- `publish(durable)` / `take(Kind, handler)`: JetStream, at least once; after the last try a dead letter.
- `turns`, and `follow.py` on it: the turn log, live and history as one sequence. A gap is read again.

Handlers are registered before `start`; constructors do no I/O, so `parley flow` can wire every service onto a recording bus.
"""

from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any, Protocol, TypeAlias, TypeVar

import msgspec

from parley_contracts.message import Durable, Event, Message, Question
from parley_contracts.turns import Control, Generate, LogEntry, TurnCommitted, TurnDelta, TurnResult

R = TypeVar("R")
M_co = TypeVar("M_co", covariant=True)
E = TypeVar("E", bound=Event)
D = TypeVar("D", bound=Durable)

MAX_PAYLOAD_BYTES = 7 * 1024 * 1024
"""A larger message is refused before it is published (N22); the server takes 8 MiB."""


class Asks(Protocol[M_co, R]):
    """A question's class, seen as what makes, reads and answers it: ties a handler to its message *and* its reply."""

    def __call__(self, *args: Any, **kwargs: Any) -> M_co: ...
    def decode(self, data: bytes) -> M_co: ...
    def pattern(self) -> str: ...
    def encode_reply(self, reply: R) -> bytes: ...
    def decode_reply(self, data: bytes) -> R: ...


class Taken(Enum):
    """What becomes of a durable message after its handler returned."""

    DONE = "done"
    """Acknowledged, and the server's confirmation awaited."""
    LEFT = "left"
    """Neither acknowledged nor refused: another replica has it; a fenced router must not touch it (reliability §6)."""
    AGAIN = "again"
    """Refused: delivered again at once, to anyone (drain)."""


class ControlRefused(Exception):
    """Another control message was stored first; read control through the leader to learn which."""


class OutcomeUnknown(Exception):
    """A publish was not acknowledged: it may or may not be stored (N10). Read, recognise your nonce, decide."""


class LogUnreadable(Exception):
    """The turn log could not be read now. Try again."""


class LastControl(msgspec.Struct, frozen=True):
    """The last stored control message of a turn; `seq` is what `append_control` expects, 0 for none."""

    seq: int
    entry: Control | None


class DeadLetter(msgspec.Struct, frozen=True):
    """A command that was delivered too often. It stays in COMMANDS under `seq` until `forget_command(seq)`."""

    seq: int
    command: Generate | None
    """None: it is gone already, or cannot be read."""
    turn_id: str | None


class Closable(Protocol):
    async def close(self) -> None: ...


LiveMessage: TypeAlias = LogEntry | TurnCommitted


class TurnLog(Protocol):
    """The stored log of turns, and its live copies."""

    async def last_control(self, turn_id: str) -> LastControl:
        """The last control message, read through the stream's leader (N23). Raises LogUnreadable."""
        ...

    async def append_control(self, entry: Control, *, expected_seq: int) -> int:
        """Store a control message if `expected_seq` is still the last one's; returns its sequence.

        Carries no Nats-Msg-Id. Raises ControlRefused (error 10071) or OutcomeUnknown (no acknowledgement in 2 s).
        """
        ...

    def say(self, delta: TurnDelta) -> None:
        """Publish a delta plainly; never waits. The stream captures it; a final published later covers it."""
        ...

    async def read(self, turn_id: str) -> list[LogEntry]:
        """Every stored entry of a turn, in order; empty when there is none (any more). Raises LogUnreadable."""
        ...

    async def watch(self, turn_id: str, callback: Callable[[LiveMessage], None]) -> Closable:
        """Live copies of a turn's log and its `TurnCommitted`, from now on; in force when this returns (N11).

        The callback must neither block nor raise; it gets what core NATS delivers, refused publishes included.
        """
        ...

    async def watch_control(self, turn_id: str, callback: Callable[[Control], None]) -> Closable:
        """Live copies of control messages only: a router watching for its successor."""
        ...

    async def find_command(self, turn_id: str) -> bool:
        """Whether a command for this turn still stands in COMMANDS."""
        ...

    async def forget_command(self, seq: int) -> None:
        """Delete a dead command. Harmless when it is gone."""
        ...

    async def find_result(self, turn_id: str) -> TurnResult | None:
        """The stored result of a turn, for 7 days."""
        ...


class Bus(Protocol):
    """One service's connection to all others."""

    service: str
    """Who speaks: `gateway`, `auth`, `chat`, `llm_router`, `usage`, `activity`; queue group and durable names."""
    turns: TurnLog

    # Before start: who hears what.
    def answer(self, kind: Asks[M_co, R], handler: Callable[[M_co], Awaitable[R]]) -> None:
        """Answer questions of a kind, as one of this service's replicas.

        What the handler raises reaches the asker, typed; anything but a ParleyError is logged, and is `internal` there.
        """
        ...

    def on(self, kind: type[E], handler: Callable[[E], Awaitable[None]]) -> None:
        """Hear events; every replica does. What the handler raises is logged."""
        ...

    def take(
        self, kind: type[D], handler: Callable[[D], Awaitable[Taken | None]], *, at_once: int = 16, keep_alive: bool = False
    ) -> None:
        """Take durable messages of a kind from this service's consumer, up to `at_once` side by side.

        None means DONE. A handler that raises: refused with delay 1, 2, 4 … 60 s. `keep_alive`: says "in progress"
        every 1.5 s while the handler runs.
        """
        ...

    def take_dead_letters(self, handler: Callable[[DeadLetter], Awaitable[None]]) -> None:
        """Hear of commands that were delivered too often (chat only)."""
        ...

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Called after each reconnect: live messages may have been missed (N7)."""
        ...

    # Life.
    async def start(self) -> None:
        """Connect (for ever, if need be) and begin to hear. Streams and consumers must be provisioned."""
        ...

    async def stop_taking(self) -> None:
        """Drain, first half: take no more durable messages and answer no more questions; what runs goes on."""
        ...

    async def close(self) -> None:
        """Wait for running handlers within a bounded time, then disconnect. Never raises."""
        ...

    async def check(self, timeout_s: float = 2.0) -> float:
        """Round trip to the server in seconds (N5). Raises `TimeoutError` or ConnectionError."""
        ...

    # Say.
    async def ask(self, question: Question[R], *, timeout_s: float = 5.0) -> R:
        """Raises the ParleyError the other side raised; ServiceUnavailable: nobody there, or no answer in time."""
        ...

    async def publish(self, message: Event | Durable) -> None:
        """An event: sent, at most once. A durable: stored when this returns, repeated under one id until acknowledged (N9).

        Raises Overloaded (stream full), PayloadTooLarge, ServiceUnavailable (not stored within 10 s).
        """
        ...

    async def answer_one(self, question: type[Question[R]], turn_id: str, handler: Callable[[], Awaitable[R]]) -> Closable:
        """Answer one turn's question (`StopGeneration`) while this process runs the turn. In force on return."""
        ...


Announce: TypeAlias = Callable[[Message], None]
