"""The reader rule, as conversations and over generated logs: whatever happens on the way, what is shown is what stands."""

import random
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parley_contracts.ids import new_id
from parley_contracts.parts import Answer, FinishReason, Part, Reasoning, Text, ToolCall
from parley_contracts.reader import (
    GAP,
    Ended,
    Gap,
    Position,
    Reading,
    Reset,
    Shown,
    Snapshot,
    Started,
    StreamEvent,
    read,
    step,
    unseen,
)
from parley_contracts.turns import LogEntry, TurnClaim, TurnDelta, TurnFinal

TURN = new_id()
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def claim(attempt: int, nonce: str = "") -> TurnClaim:
    return TurnClaim(turn_id=TURN, attempt=attempt, run=1, nonce=nonce or str(attempt), provider="p", model="m", claimed_at=NOW)


def delta(attempt: int, n: int, *parts: str | Part) -> TurnDelta:
    return TurnDelta(
        turn_id=TURN, attempt=attempt, n=n, parts=tuple(Text(part) if isinstance(part, str) else part for part in parts)
    )


def final(attempt: int, n: int, answer: str | Answer, reason: FinishReason = FinishReason.STOP) -> TurnFinal:
    whole = Answer(text=answer) if isinstance(answer, str) else answer
    return TurnFinal(turn_id=TURN, attempt=attempt, n=n, answer=whole, finish_reason=reason, ended_at=NOW)


def ended(text: str) -> Ended:
    return Ended(FinishReason.STOP, Answer(text=text))


# --- conversations --------------------------------------------------------------------------------------------------


def test_shown_text_is_reset_when_a_second_attempt_claims() -> None:
    log = [claim(1), delta(1, 0, "Hel"), claim(2), delta(1, 1, "lo"), delta(2, 0, "Hello"), final(2, 1, "Hello")]
    assert read(log) == [Started(1), Shown(1, 0, Text("Hel")), Reset(2), Shown(2, 0, Text("Hello")), ended("Hello")]


def test_nothing_is_reset_when_the_first_attempt_had_shown_nothing() -> None:
    log = [claim(1), delta(1, 0), claim(2), delta(2, 0, "Hi"), final(2, 1, "Hi")]
    assert read(log) == [Started(1), Shown(2, 0, Text("Hi")), ended("Hi")]


def test_parts_said_again_are_shown_once() -> None:
    log = [claim(1), delta(1, 0, "a", "b"), delta(1, 1, "b", "c"), delta(1, 0, "a"), delta(1, 3, "d"), final(1, 4, "abcd")]
    assert [event.part for event in read(log) if isinstance(event, Shown)] == [Text("a"), Text("b"), Text("c"), Text("d")]


def test_parts_after_a_hole_are_held_back_until_the_hole_is_filled() -> None:
    log = [claim(1), delta(1, 0, "a"), delta(1, 2, "c"), delta(1, 1, "b", "c"), final(1, 3, "abc")]
    assert [event.part for event in read(log) if isinstance(event, Shown)] == [Text("a"), Text("b"), Text("c")]


def test_a_hole_that_stays_is_repaired_by_the_final() -> None:
    log = [claim(1), delta(1, 0, "a"), delta(1, 2, "c"), final(1, 3, "abc")]
    assert read(log) == [Started(1), Shown(1, 0, Text("a")), Shown(1, 2, Text("bc")), ended("abc")]


def test_a_final_that_says_otherwise_replaces_what_was_shown() -> None:
    log = [claim(1), delta(1, 0, "Hxl"), final(1, 1, "Hello")]
    assert read(log) == [
        Started(1),
        Shown(1, 0, Text("Hxl")),
        Snapshot(1, 0, Answer(text="Hello")),
        ended("Hello"),
    ]


def test_a_final_whose_claim_was_lost_replaces_what_was_shown() -> None:
    log = [claim(1), delta(1, 0, "Hel"), final(2, 1, "Hello")]
    assert Snapshot(2, 0, Answer(text="Hello")) in read(log)


def test_reasoning_and_tool_calls_missing_in_what_was_shown_come_with_a_snapshot() -> None:
    call = ToolCall(0, "call_1", "weather", "{}")
    whole = Answer(text="Hi", reasoning="Hm.", tool_calls=(call,))
    log = [claim(1), delta(1, 0, Reasoning("Hm."), "Hi"), final(1, 3, whole)]
    assert Snapshot(1, 2, whole) in read(log)
    complete = [claim(1), delta(1, 0, Reasoning("Hm."), "Hi", call), final(1, 3, whole)]
    assert not any(isinstance(event, Snapshot) for event in read(complete))


def test_nothing_is_shown_after_the_end() -> None:
    log = [claim(1), delta(1, 0, "a"), final(1, 1, "a"), claim(2), delta(2, 0, "b"), final(2, 1, "b")]
    assert read(log)[-1] == ended("a")


def test_a_turn_that_nobody_claimed_can_end() -> None:
    assert read([final(0, 0, "", FinishReason.CANCELED)]) == [Ended(FinishReason.CANCELED, Answer())]


@pytest.mark.parametrize("entry", [claim(1), claim(2), final(1, 1, "a"), final(2, 1, "a")])
def test_control_that_was_only_heard_is_never_believed(entry: LogEntry) -> None:
    started = step(Reading(), claim(1, "mine"), stored=True)
    assert not isinstance(started, Gap)
    assert step(started[0], entry, stored=False) is GAP


def test_a_delta_heard_before_its_claim_asks_for_the_log() -> None:
    assert step(Reading(), delta(1, 0, "a"), stored=False) is GAP
    assert step(Reading(1, "1"), delta(1, 1, "b"), stored=False) is GAP
    assert step(Reading(2, "2"), delta(1, 5, "stale"), stored=False) == (Reading(2, "2"), [])


def test_an_earlier_reading_can_be_gone_on_from_as_if_nothing_had_followed() -> None:
    before = Reading(1, "1").show([Text("a")])
    one, other = before.show([Text("b")]), before.show([Text("c")])
    assert (before.answer().text, one.answer().text, other.answer().text) == ("a", "ab", "ac")


def test_ten_thousand_parts_are_read_without_recursion() -> None:
    log: list[LogEntry] = [claim(1), *(delta(1, n, "x") for n in range(10_000)), final(1, 10_000, "x" * 10_000)]
    assert len(read(log)) == 10_002


# --- resuming -------------------------------------------------------------------------------------------------------


LOG: list[LogEntry] = [
    claim(1),
    delta(1, 0, "a", "b"),
    claim(2),
    delta(2, 0, "A", "B"),
    delta(2, 2, "C"),
    final(2, 3, "ABC"),
]


def test_a_client_that_saw_some_of_the_attempt_gets_the_rest() -> None:
    assert unseen(read(LOG), Position(2, 0))[0] == [Shown(2, 1, Text("B")), Shown(2, 2, Text("C")), ended("ABC")]


def test_a_client_that_saw_an_older_attempt_is_reset_first() -> None:
    events, seen = unseen(read(LOG), Position(1, 1))
    assert events == [Reset(2), Shown(2, 0, Text("A")), Shown(2, 1, Text("B")), Shown(2, 2, Text("C")), ended("ABC")]
    assert seen == Position(2, 2)


def test_a_client_that_saw_everything_gets_the_end() -> None:
    assert unseen(read(LOG), Position(2, 2))[0] == [ended("ABC")]


def test_events_may_be_given_in_batches() -> None:
    seen, left = Position(1, 0), list[StreamEvent]()
    for event in read(LOG):
        more, seen = unseen([event], seen)
        left += more
    assert left == unseen(read(LOG), Position(1, 0))[0]


def test_a_client_that_heard_what_the_log_lost_ends_with_what_stands() -> None:
    log = [claim(1), delta(1, 0, "a"), final(1, 3, "abc")]
    assert show("ab", unseen(read(log), Position(1, 1))[0]) == "abc"
    cut = [claim(1), delta(1, 0, "a"), final(1, 1, "a", FinishReason.CANCELED)]
    assert show("ab", unseen(read(cut), Position(1, 1))[0]) == "a"
    failed = [claim(1), claim(2), final(2, 0, "", FinishReason.ERROR)]
    assert show("ab", unseen(read(failed), Position(1, 1))[0]) == ""


@pytest.mark.parametrize(
    ("text", "position"),
    [("1.0", Position(1, 0)), ("12.345", Position(12, 345)), ("0.0", Position(0, 0))]
    + [(bad, None) for bad in ("", ".", "1", "1.", ".1", "a.b", "-1.2", "1.-2", "1.2.3", "1 .2", "٣.4", "²." + "1", "9" * 30)],
)
def test_a_position_is_two_numbers_or_none(text: str, position: Position | None) -> None:
    assert Position.parse(text) == position
    if position is not None:
        assert str(position) == text


# --- generated logs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """One message of a turn: whether the stream has it, and whether live readers got it."""

    entry: LogEntry
    is_stored: bool
    is_heard: bool


def show(text: str, events: list[StreamEvent]) -> str:
    """The client's screen, by the grammar of stream events."""
    for event in events:
        match event:
            case Shown(part=Text(text=more)):
                text += more
            case Reset():
                text = ""
            case Snapshot(answer=answer):
                text = answer.text
            case _:
                pass
    return text


def invent(dice: random.Random) -> list[Said]:
    """A turn of up to four attempts, with all that may go wrong; the last message is its stored final."""
    lose_store, lose_live = dice.choice([0.0, 0.0, 0.2, 0.6]), dice.choice([0.0, 0.25, 0.9])

    def say(entry: LogEntry) -> Said:
        return Said(entry, is_stored=dice.random() >= lose_store, is_heard=dice.random() >= lose_live)

    said: list[Said] = []
    older: list[TurnDelta] = []
    words: list[str] = []
    attempts = dice.randint(1, 4)
    for attempt in range(1, attempts + 1):
        said.append(Said(claim(attempt), is_stored=True, is_heard=dice.random() >= lose_live))
        words = [f"{attempt}.{i} " for i in range(dice.randint(0, 6))]
        n = 0
        while n < len(words):
            size = dice.randint(1, 3)
            said.append(say(delta(attempt, n, *words[n : n + size])))
            n = min(n + size, len(words))
            if dice.random() < 0.3:  # said again, overlapping, after a reconnect
                first = dice.randint(0, n)
                said.append(say(delta(attempt, first, *words[first : dice.randint(first, len(words))])))
            if dice.random() < 0.3 and older:  # a stale router speaks on
                said.append(say(dice.choice(older)))
            if dice.random() < 0.2:  # refused by the stream, heard all the same
                wrong = dice.choice(
                    [claim(attempt, "x"), claim(attempt + 1, "x"), final(attempt, 1, "no"), final(attempt + 1, 9, "no")]
                )
                said.append(Said(wrong, is_stored=False, is_heard=True))
            if dice.random() < 0.1:
                said.append(say(delta(attempt, n)))  # a silent router says that it lives
        older += [delta(attempt, i, word) for i, word in enumerate(words)]
    if dice.random() < 0.2:  # chat stopped it and wrote what the log holds
        reading = Reading()
        for one in said:
            if one.is_stored:
                stepped = step(reading, one.entry, stored=True)
                assert not isinstance(stepped, Gap)
                reading = stepped[0]
        end = final(reading.attempt, reading.next, reading.answer(), FinishReason.CANCELED)
    else:
        end = final(attempts, len(words), "".join(words))
    said.append(Said(end, is_stored=True, is_heard=dice.random() >= lose_live))
    return said


def follow(said: list[Said], dice: random.Random) -> list[StreamEvent]:
    """What `follow.py` does, without waiting: live from some moment on, the log for each gap, as far as it has come."""
    begin = dice.randint(0, len(said))
    reading, events = Reading(), list[StreamEvent]()

    def look(upto: int) -> None:
        nonlocal reading
        for one in said[:upto]:
            if one.is_stored:
                stepped = step(reading, one.entry, stored=True)
                assert not isinstance(stepped, Gap)
                reading, more = stepped
                events.extend(more)

    look(begin)
    order = list(range(begin, len(said)))
    if dice.random() < 0.5:  # live messages of different speakers overtake each other; what one speaker says does not
        speakers = {at: getattr(said[at].entry, "attempt", 0) for at in order}
        queues = {speaker: [at for at in order if speakers[at] == speaker] for speaker in set(speakers.values())}
        order = []
        while queues:
            speaker = dice.choice(sorted(queues))
            order.append(queues[speaker].pop(0))
            if not queues[speaker]:
                del queues[speaker]
    for at in order:
        if said[at].is_heard:
            stepped = step(reading, said[at].entry, stored=False)
            if isinstance(stepped, Gap):
                look(dice.randint(begin, len(said)))  # the capture may lag, or be ahead by far
                stepped = step(reading, said[at].entry, stored=False)
            if not isinstance(stepped, Gap):
                reading, more = stepped
                events += more
    look(len(said))  # silence is a reason to look
    return events


def position_after(events: list[StreamEvent], seen: Position | None) -> Position | None:
    """The last id that a client was sent."""
    for event in events:
        if isinstance(event, Shown | Snapshot):
            seen = Position(event.attempt, event.n)
    return seen


def check(seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 - the same log for the same seed
    said = invent(dice)
    answer = said[-1].entry.answer.text if isinstance(said[-1].entry, TurnFinal) else ""
    text, seen = "", None
    for _ in range(dice.randint(0, 3)):  # cut, and resumed elsewhere
        events = follow(said, dice)
        if seen is None:
            text = ""
        else:
            events = unseen(events, seen)[0]
        events = events[: dice.randint(0, len(events))]
        text, seen = show(text, events), position_after(events, seen)
    events = follow(said, dice)
    if seen is None:
        text = ""
    else:
        events = unseen(events, seen)[0]
    assert isinstance(events[-1], Ended)
    assert sum(isinstance(event, Ended) for event in events) == 1
    assert show(text, events) == answer


@settings(max_examples=2000, deadline=None)
@given(st.integers(min_value=0, max_value=2**48))
def test_what_is_shown_is_the_final_s_text_whatever_was_lost_and_wherever_it_was_resumed(seed: int) -> None:
    check(seed)
