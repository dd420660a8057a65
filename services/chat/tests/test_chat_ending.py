from datetime import UTC, datetime, timedelta
from typing import Any

from parley_chat.ending import final_of
from parley_contracts.errors import DeadlinePassed
from parley_contracts.ids import new_id
from parley_contracts.parts import Answer, FinishReason, Part, Reasoning, Text, ToolCall
from parley_contracts.reader import Ended, Started, read
from parley_contracts.turns import LogEntry, TurnClaim, TurnDelta, TurnFinal

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TURN = new_id()


def claim(attempt: int, nonce: str = "", **fields: Any) -> TurnClaim:
    return TurnClaim(
        turn_id=TURN, attempt=attempt, run=1, nonce=nonce or f"n{attempt}", provider="p", model=f"m{attempt}",
        claimed_at=NOW - timedelta(seconds=attempt), **fields,
    )  # fmt: skip


def delta(attempt: int, n: int, *parts: Part | str) -> TurnDelta:
    return TurnDelta(turn_id=TURN, attempt=attempt, n=n, parts=tuple(Text(p) if isinstance(p, str) else p for p in parts))


def final(
    log: list[LogEntry], last: TurnClaim | None, reason: FinishReason = FinishReason.CANCELED, **fields: Any
) -> TurnFinal:
    return final_of(TURN, log, last, reason=reason, **{"error": None, "input_tokens": 10, "now": NOW, **fields})


def test_a_turn_that_nobody_claimed_ends_with_nothing() -> None:
    ended = final([], None)
    assert (ended.attempt, ended.n, ended.answer, ended.attempts, ended.usage) == (0, 0, Answer(), (), None)


def test_the_text_is_the_last_attempts_by_the_reader_rule() -> None:
    last = claim(2)
    log = [
        claim(1), delta(1, 0, "Hel"), last, delta(1, 1, "lo"), delta(2, 0, "A", "B"), delta(2, 1, "B", "C"),
        delta(2, 5, "lost"), delta(2, 3, "D"),
    ]  # fmt: skip
    ended = final(log, last)
    assert (ended.attempt, ended.n, ended.answer.text) == (2, 4, "ABCD")
    assert read([*log, ended])[-1] == Ended(FinishReason.CANCELED, ended.answer, ended.usage)
    assert not [event for event in read([last, *log[3:], ended]) if isinstance(event, Started)][1:]


def test_every_attempt_is_counted_and_the_named_one_is_billed() -> None:
    last = claim(3)
    log = [
        claim(1),
        claim(2),
        delta(2, 0, "x" * 40),
        last,
        delta(3, 0, Reasoning("y" * 8), "问问", ToolCall(0, "c", "name", "args")),
    ]
    ended = final(log, last)
    assert [(a.attempt, a.model, a.is_billable, a.usage.output_tokens) for a in ended.attempts] == [
        (1, "m1", False, 0), (2, "m2", False, 10), (3, "m3", True, 2 + 2 + 1 + 1),
    ]  # fmt: skip
    assert [a.error_code for a in ended.attempts] == ["upstream_interrupted", "upstream_interrupted", None]
    assert [a.is_success for a in ended.attempts] == [False, False, True]
    assert {(a.is_estimated, a.method, a.usage.input_tokens) for a in ended.attempts} == {(True, "heuristic", 10)}
    assert [a.duration_ms for a in ended.attempts] == [1000, 2000, 3000]
    assert ended.attempts[2].usage.reasoning_tokens == 2
    assert ended.usage == ended.attempts[2].usage


def test_nobody_pays_for_a_turn_that_ended_in_error() -> None:
    last = claim(1)
    ended = final([last, delta(1, 0, "Half")], last, FinishReason.ERROR, error=DeadlinePassed().body())
    assert [(a.is_billable, a.is_success, a.error_code) for a in ended.attempts] == [(False, False, "timeout")]
    assert ended.answer.text == "Half"


def test_a_claim_that_the_log_does_not_show_yet_is_named_and_counted() -> None:
    last = claim(2)
    ended = final([claim(1), delta(1, 0, "Old")], last)
    assert (ended.attempt, ended.n, ended.answer) == (2, 0, Answer())
    assert [(a.attempt, a.is_billable) for a in ended.attempts] == [(1, False), (2, False)]


def test_an_attempt_number_used_again_begins_anew() -> None:
    last = claim(1, "second")
    ended = final([claim(1, "first"), delta(1, 0, "Lost"), last, delta(1, 0, "Kept")], last)
    assert ended.answer.text == "Kept"
    assert len(ended.attempts) == 1
