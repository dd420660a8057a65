"""Messages: subjects hold checked ids only, and contracts can grow."""

from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec
import pytest

from parley_contracts.errors import InvalidId
from parley_contracts.ids import new_id
from parley_contracts.message import Durable, Event, Message, Question
from parley_contracts.parts import Text
from parley_contracts.streams import Stream
from parley_contracts.turns import (
    FindTurn,
    Generate,
    StartTurn,
    StopGeneration,
    TurnClaim,
    TurnCommitted,
    TurnDelta,
    TurnFinal,
    TurnResult,
    TurnStatus,
    decode_log_entry,
)

BAD = ("*", ">", "a.b", "a b", "", "a\r\nb", "x" * 5000, "turn.*")


def every(kind: type[Message]) -> list[type[Message]]:
    return [kind, *(deeper for sub in kind.__subclasses__() for deeper in every(sub))]


KINDS = sorted((kind for kind in every(Message) if "subject" in kind.__dict__), key=lambda kind: kind.__name__)


def test_a_subject_is_filled_in_with_the_turn_s_id() -> None:
    turn_id = new_id()
    assert StopGeneration(turn_id=turn_id).route() == f"turn.{turn_id}.stop"
    assert StopGeneration.pattern() == "turn.*.stop"
    assert StopGeneration.subject_for(turn_id=turn_id) == f"turn.{turn_id}.stop"
    assert FindTurn(turn_id="no matter").route() == FindTurn.pattern() == "chat.find_turn"


@pytest.mark.parametrize("bad", BAD)
def test_nothing_but_an_id_gets_into_a_subject(bad: str) -> None:
    with pytest.raises(InvalidId):
        StopGeneration(turn_id=bad).route()
    with pytest.raises(InvalidId):
        StopGeneration.subject_for(turn_id=bad)
    for other in (True, 1.5, None, ["a"]):
        untyped: Any = other
        with pytest.raises((InvalidId, TypeError)):
            StopGeneration(turn_id=untyped).route()


@pytest.mark.parametrize("bad", BAD)
def test_what_arrives_with_a_wrong_id_is_refused(bad: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        StopGeneration.decode(msgspec.json.encode({"turn_id": bad}))


def test_a_user_s_number_may_stand_in_a_subject() -> None:
    class Reported(Event, frozen=True, kw_only=True):
        subject: ClassVar[str] = "test.reported.{user_id}"
        user_id: int

    assert Reported(user_id=42).route() == "test.reported.42"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_subject_names_only_fields_its_message_has(kind: type[Message]) -> None:
    fields = {field.name for field in msgspec.structs.fields(kind)}
    assert set(kind.pattern().replace("*", "x").split(".")) <= {*kind.subject.split("."), "x"}
    for part in kind.subject.split("."):
        assert not part.startswith("{") or part.strip("{}") in fields


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_subjects_are_shaped_as_their_kind_demands(kind: type[Message]) -> None:
    tokens = kind.subject.split(".")
    if issubclass(kind, Question) and tokens[0] != "turn":
        assert len(tokens) == 2, "questions are <service>.<name>"
        assert kind.reply_type() is not None
    if issubclass(kind, Event) and tokens[0] not in {"turn", "test"}:
        assert tokens[1] == "event"
        assert len(tokens) == 3, "events are <service>.event.<name>: `auth.*` must not cover them"


def test_only_the_turn_log_shares_a_subject() -> None:
    subjects = [kind.subject for kind in KINDS]
    assert {subject for subject in subjects if subjects.count(subject) > 1} <= {"turn.{turn_id}.control"}


def test_a_question_knows_what_answers_it() -> None:
    assert StopGeneration.decode_reply(StopGeneration.encode_reply(True)) is True  # noqa: FBT003 - the reply is a bool
    assert StopGeneration.service() == "turn"
    assert StartTurn.service() == "chat"
    with pytest.raises(msgspec.ValidationError):
        StopGeneration.decode_reply(b'"yes"')


def test_an_older_and_a_newer_version_read_each_other() -> None:
    turn_id, session_id = new_id(), new_id()
    newer = {"turn_id": turn_id, "session_id": session_id, "status": "done", "mood": "cheerful"}
    read = TurnCommitted.decode(msgspec.json.encode(newer))
    assert read == TurnCommitted(turn_id=turn_id, session_id=session_id, status=TurnStatus.DONE)


def test_log_entries_are_told_apart_by_their_tag() -> None:
    delta = TurnDelta(turn_id=new_id(), attempt=1, n=0, parts=(Text("你好"),))
    claim = TurnClaim(turn_id=new_id(), attempt=1, run=1, nonce="n", provider="p", model="m", claimed_at=datetime.now(UTC))
    assert decode_log_entry(delta.encode()) == delta
    assert decode_log_entry(claim.encode()) == claim
    with pytest.raises(msgspec.ValidationError):
        decode_log_entry(b'{"type":"image"}')
    assert TurnClaim.subject == TurnFinal.subject


def test_a_command_sent_again_has_another_id_and_a_result_always_the_same() -> None:
    turn_id = new_id()
    command = Generate(
        turn_id=turn_id,
        user_id=1,
        prompt=(),
        model_config_id=new_id(),
        model="m",
        provider="p",
        max_output_tokens=1,
        accepted_at=datetime.now(UTC),
        deadline_at=datetime.now(UTC),
        store=True,
        restart_after_text=True,
    )
    assert command.dedup_id() == turn_id
    assert msgspec.structs.replace(command, dispatch=2).dedup_id() == f"{turn_id}:r2"
    assert (Generate.stream, TurnResult.stream) == (Stream.COMMANDS, Stream.RESULTS)


def test_a_durable_message_without_an_id_is_a_mistake() -> None:
    class Nameless(Durable, frozen=True, kw_only=True):
        subject: ClassVar[str] = "test.nameless"
        stream: ClassVar[Stream] = Stream.RESULTS

    with pytest.raises(TypeError, match="Nameless has no dedup id"):
        Nameless().dedup_id()
