"""The reader rule: a turn's log in, what a client is shown out. Pure; used by gateway, chat and tests (reliability §5).

The stored log is the only order of a turn; live messages are early copies of it. A publish that compare-and-set refused
still reaches live subscribers, so claims and finals are believed only when they come out of the log (`stored=True`).
`step` answers GAP when the log has to be read before it can go on.

What was shown is kept as a linked list of parts: appending is constant in the length of the answer, and the value stays
frozen, so a caller may keep any earlier `Reading` and go on from it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, Literal, TypeAlias

from typing_extensions import override

from parley_contracts.errors import ErrorBody
from parley_contracts.parts import Answer, FinishReason, Part, Text, TokenUsage
from parley_contracts.turns import LogEntry, TurnClaim, TurnDelta, TurnFinal

_LONGEST_POSITION = 20


@dataclass(frozen=True, slots=True)
class Position:
    """What a resuming client has seen: everything up to part `n` of `attempt`. From `Last-Event-ID: a.n`."""

    attempt: int
    n: int

    @classmethod
    def parse(cls, text: str) -> "Position | None":
        """None for anything that is not `<int>.<int>`: such a client starts from the beginning."""
        attempt, dot, n = text.partition(".")
        if not (
            dot and attempt.isascii() and n.isascii() and attempt.isdigit() and n.isdigit() and len(text) <= _LONGEST_POSITION
        ):
            return None
        return cls(int(attempt), int(n))

    @override
    def __str__(self) -> str:
        return f"{self.attempt}.{self.n}"


@dataclass(frozen=True, slots=True)
class Started:
    """The first attempt began."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Shown:
    """Part `n` of `attempt`; `attempt.n` is the id a client resumes with.

    `first`: a final repaired several lost parts at once, `first` to `n`.
    """

    attempt: int
    n: int
    part: Part
    first: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Reset:
    """Forget what was shown: another attempt begins."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was shown is not what stands: replace it by `answer`."""

    attempt: int
    n: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class Ended:
    """The turn ended; what was shown equals `answer`. `last`: where a client is that saw all of it."""

    reason: FinishReason
    answer: Answer
    usage: TokenUsage | None = None
    error: ErrorBody | None = None
    last: Position | None = field(default=None, compare=False)


StreamEvent: TypeAlias = Started | Shown | Reset | Snapshot | Ended


class Gap(Enum):
    """The log must be read before the reader can go on."""

    GAP = "gap"


GAP: Final = Gap.GAP
_Shown: TypeAlias = tuple["_Shown", Part] | None


@dataclass(frozen=True, slots=True)
class Reading:
    """How far a reader is. `next` is the number of the next part of `attempt`."""

    attempt: int = 0
    nonce: str = ""
    next: int = 0
    ended: bool = False
    _shown: _Shown = field(default=None, compare=False, repr=False)

    @property
    def has_shown(self) -> bool:
        return self._shown is not None

    def answer(self) -> Answer:
        """What was shown so far of the current attempt, put together."""
        parts: list[Part] = []
        link = self._shown
        while link is not None:
            link, part = link
            parts.append(part)
        return Answer.of(reversed(parts))

    def show(self, parts: Iterable[Part]) -> "Reading":
        link, count = self._shown, 0
        for part in parts:
            link, count = (link, part), count + 1
        return replace(self, next=self.next + count, _shown=link)


def step(r: Reading, entry: LogEntry, *, stored: bool) -> tuple[Reading, list[StreamEvent]] | Literal[Gap.GAP]:
    """Read one entry. `stored`: it came out of the log, in order. GAP: read the log, then go on."""
    if r.ended:
        return r, []
    match entry:
        case TurnClaim(attempt=attempt, nonce=nonce):
            if attempt < r.attempt or nonce == r.nonce:
                return r, []
            if not stored:
                return GAP
            shown: list[StreamEvent] = []
            if r.attempt == 0:
                shown = [Started(attempt)]
            elif r.has_shown:
                shown = [Reset(attempt)]
            return Reading(attempt, nonce), shown
        case TurnDelta():
            if entry.attempt < r.attempt:
                return r, []  # a fenced router, still speaking
            if entry.attempt > r.attempt or entry.n > r.next:
                # Live: its claim, or what stands before it, is not known yet. In the log: lost; the final will repair it.
                return (r, []) if stored else GAP
            fresh = entry.parts[r.next - entry.n :]
            events: list[StreamEvent] = [Shown(r.attempt, r.next + i, part) for i, part in enumerate(fresh)]
            return r.show(fresh), events
        case TurnFinal():
            if entry.attempt < r.attempt:
                return r, []
            if not stored:
                return GAP
            return replace(r, ended=True, next=entry.n), _end(r, entry)


def _end(r: Reading, final: TurnFinal) -> list[StreamEvent]:
    shown, answer = r.answer(), final.answer
    is_current = final.attempt == r.attempt or not r.has_shown
    last = Position(final.attempt, max(final.n, int(answer != Answer())) - 1)
    events: list[StreamEvent] = []
    if shown != answer or not is_current:
        others_agree = shown.reasoning == answer.reasoning and shown.tool_calls == answer.tool_calls
        if others_agree and answer.text.startswith(shown.text) and is_current:
            rest = Text(answer.text[len(shown.text) :])
            events.append(Shown(final.attempt, last.n, rest, first=r.next if final.attempt == r.attempt else 0))
        else:
            events.append(Snapshot(final.attempt, max(last.n, 0), answer))
    events.append(Ended(final.finish_reason, answer, final.usage, final.error, last))
    return events


def read(log: Iterable[LogEntry], reading: Reading | None = None) -> list[StreamEvent]:
    """All that a client is shown of a stored log."""
    r, events = reading or Reading(), list[StreamEvent]()
    for entry in log:
        stepped = step(r, entry, stored=True)
        if not isinstance(stepped, Gap):
            r, more = stepped
            events += more
    return events


def unseen(events: Iterable[StreamEvent], seen: Position) -> tuple[list[StreamEvent], Position]:
    """What of `events` a client that saw up to `seen` must still be shown, and what it has seen then.

    The events begin at the turn's beginning; they may be given in batches, each with the position the last one returned.
    The same attempt goes on with the missing parts, a newer one begins with a reset, a snapshot and the end are shown.
    A client may have heard parts that the log lost with its server; it gets a snapshot at the end.
    """
    left: list[StreamEvent] = []
    for event in events:
        match event:
            case Started():
                pass
            case Reset(attempt):
                if attempt > seen.attempt:
                    left.append(event)
                    seen = Position(attempt, -1)
            case Shown(attempt, n):
                if attempt > seen.attempt:
                    left.append(Reset(attempt))
                    seen = Position(attempt, -1)
                first = n if event.first is None else event.first
                if attempt == seen.attempt and first > seen.n:
                    left.append(event)
                    seen = Position(attempt, n)
            case Snapshot(attempt, n):
                left.append(event)
                seen = Position(attempt, n)
            case Ended(answer=answer, last=last):
                if last is not None and seen != last and max(seen.n, last.n) >= 0:
                    seen = Position(last.attempt, max(last.n, 0))
                    left.append(Snapshot(seen.attempt, seen.n, answer))
                left.append(event)
    return left, seen
