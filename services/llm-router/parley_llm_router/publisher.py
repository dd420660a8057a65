"""The publisher: says the parts of all running turns, without timers and without waiting.

A turn that gets parts puts itself on the dirty list; one drain, scheduled for the loop's next round, says each dirty turn's
pending parts as one message. An idle router says each part at once; under load parts of one turn merge by themselves.
"""

import asyncio
from collections import deque
from collections.abc import Iterator

from parley_contracts.parts import MAX_PART_CHARACTERS, Part, Reasoning, Text, ToolCall
from parley_contracts.turns import TurnDelta
from parley_runtime.bus import TurnLog

MAX_PARTS = 200
MAX_BYTES = 64 * 1024
_SAID_AT_ONCE = 256  # then others get the loop: nothing leaves before the connection's flusher runs (N17)
_FRAME_BYTES = 48


class Speaker:
    """One attempt's voice: all of its parts, and how many of them were said."""

    __slots__ = ("_is_dirty", "_now", "_publisher", "_said", "attempt", "parts", "spoke_at", "turn_id")

    def __init__(self, publisher: "Publisher", turn_id: str, attempt: int) -> None:
        self.turn_id = turn_id
        self.attempt = attempt
        self.parts: list[Part] = []
        self._now = asyncio.get_running_loop().time
        self.spoke_at = self._now()
        self._publisher = publisher
        self._said = 0
        self._is_dirty = False

    def add(self, part: Part) -> None:
        self.parts.append(part)
        if not self._is_dirty:
            self._is_dirty = True
            self._publisher.wake(self)

    def say_again(self) -> None:
        """Everything from part 0: readers drop what they know."""
        self._said = 0
        if self.parts and not self._is_dirty:
            self._is_dirty = True
            self._publisher.wake(self)

    def beat(self) -> None:
        """An empty delta: proves life, and reveals a lost tail."""
        if not self._is_dirty:
            self._say(())

    def flush(self) -> None:
        """Say all that is pending now; a final published next, on the same connection, covers it."""
        while self._said < len(self.parts):
            self._say_next()
        self._is_dirty = False

    def drain(self) -> bool:
        """Say one message's worth; whether more is pending."""
        if self._said < len(self.parts):
            self._say_next()
        self._is_dirty = self._said < len(self.parts)
        return self._is_dirty

    def _say_next(self) -> None:
        start, count = self._said, len(self.parts) - self._said
        if count > 1:
            count = _fitting(self.parts, start, min(count, MAX_PARTS))
        self._say(tuple(self.parts[start : start + count]))

    def _say(self, parts: tuple[Part, ...]) -> None:
        self._publisher.turns.say(TurnDelta(turn_id=self.turn_id, attempt=self.attempt, n=self._said, parts=parts))
        self._said += len(parts)
        self.spoke_at = self._now()


class Publisher:
    """The dirty list of one router."""

    def __init__(self, turns: TurnLog) -> None:
        self.turns = turns
        self._dirty: deque[Speaker] = deque()
        self._is_scheduled = False

    def wake(self, speaker: Speaker) -> None:
        self._dirty.append(speaker)
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._drain)

    def _drain(self) -> None:
        self._is_scheduled = False
        for _ in range(min(len(self._dirty), _SAID_AT_ONCE)):
            speaker = self._dirty.popleft()
            if speaker.drain():
                self._dirty.append(speaker)
        if self._dirty:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._drain)


def _fitting(parts: list[Part], start: int, count: int) -> int:
    size = 0
    for taken in range(count):
        size += _FRAME_BYTES + _bytes_of(parts[start + taken])
        if size > MAX_BYTES and taken:
            return taken
    return count


def _bytes_of(part: Part) -> int:
    match part:
        case Text(text, logprobs):
            return len(text.encode()) + (len(bytes(logprobs)) if logprobs is not None else 0)
        case Reasoning(text):
            return len(text.encode())
        case ToolCall():
            return len(part.id) + len(part.name) + len(part.arguments.encode())


def split(part: Part) -> Iterator[Part]:
    """`part` in pieces of at most `MAX_PART_CHARACTERS`: a part is the unit a client resumes at."""
    match part:
        case Text(text, logprobs):
            yield Text(text[:MAX_PART_CHARACTERS], logprobs)
            for piece in _rest(text):
                yield Text(piece)
        case Reasoning(text):
            yield Reasoning(text[:MAX_PART_CHARACTERS])
            for piece in _rest(text):
                yield Reasoning(piece)
        case ToolCall(index, call_id, name, arguments):
            yield ToolCall(index, call_id, name, arguments[:MAX_PART_CHARACTERS])
            for piece in _rest(arguments):
                yield ToolCall(index, arguments=piece)


def _rest(text: str) -> Iterator[str]:
    for start in range(MAX_PART_CHARACTERS, len(text), MAX_PART_CHARACTERS):
        yield text[start : start + MAX_PART_CHARACTERS]
