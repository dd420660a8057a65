"""A message is one class: its subject is written there and nowhere else, and its name says what it is."""

import ast
import re
from collections import defaultdict

from parley.flow import data_flow, messages
from parley_contracts.errors import ERRORS, ParleyError
from parley_contracts.message import Command, Query, Question
from parley_contracts.streams import CONSUMERS, STREAMS
from parley_contracts.turns import TurnClaim, TurnFinal
from tests.architecture.house import named, shipped, tree

SUBJECT = re.compile(r"^turn\.[{*%]|^\w+\.event\.\w+$|^(?:llm_router\.generate|activity\.reported)\.")
QUESTIONS = ("Get", "List", "Find")
VAGUE = ("Event", "DTO", "Dto", "Manager", "Helper", "Message", "Command", "Query")


def test_no_two_messages_share_a_subject() -> None:
    by_subject = defaultdict(list)
    for kind in messages():
        by_subject[kind.pattern()].append(kind)
    # Claim and final are told apart by their tag: one subject is what compare-and-set decides on (reliability 3).
    shared = [kinds for kinds in by_subject.values() if len(kinds) > 1 and set(kinds) != {TurnClaim, TurnFinal}]
    assert shared == []


def test_no_subject_is_written_outside_the_contracts() -> None:
    ours = {text for kind in messages() for text in (kind.subject, kind.pattern())}
    written = {
        f"{named(path)}:{node.lineno}": node.value
        for path in shipped()
        if "parley_contracts" not in path.parts
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and (node.value in ours or SUBJECT.match(node.value) or node.value == "turn.")
    }
    assert written == {}


def test_a_subject_begins_with_its_owner() -> None:
    owners = {"gateway", "auth", "chat", "llm_router", "usage", "activity", "turn"}
    assert {kind.__name__ for kind in messages() if kind.subject.partition(".")[0] not in owners} == set()


def test_a_name_says_what_kind_of_message_it_is() -> None:
    for kind in messages():
        name = kind.__name__
        assert not name.endswith(VAGUE), name
        if issubclass(kind, Query):
            assert name.startswith(QUESTIONS), f"{name} asks, so it begins with one of {QUESTIONS}"
        if issubclass(kind, Command):
            assert not name.startswith(QUESTIONS), f"{name} is a command, but reads like a question"
        if not issubclass(kind, Question):
            assert kind.__doc__ or name == "PresenceChanged", f"{name} does not say what it tells"


def test_every_consumer_takes_from_a_stream_that_exists() -> None:
    assert {consumer.stream for consumer in CONSUMERS} <= {spec.name for spec in STREAMS}


def test_whatever_is_asked_or_stored_has_somebody_who_hears_it() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in data_flow().splitlines() if line.startswith("| `")]
    # An event is for whoever listens, and that may be nobody yet.
    unheard = {name for name, kind, *_, said_by, heard_by, _ in rows if kind != "event" and said_by != "–" and heard_by == "–"}
    assert unheard == set()


def test_every_error_has_a_code_of_its_own_and_says_what_to_do() -> None:
    kinds = [kind for kind in ERRORS.values() if kind is not ParleyError]
    assert len({kind.code for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert (kind.__dict__.get("__doc__") or "").strip(), f"{kind.__name__} has no text"
        assert re.fullmatch(r"[a-z][a-z0-9_]*", kind.code), kind.code
        assert 400 <= kind.status < 600, kind.code
