from typing import Any

import pytest

from parley_chat.window import Said, build_prompt, with_prompt
from parley_contracts.errors import MessagesTooLong
from parley_contracts.ids import new_id
from parley_contracts.prompts import Params, PromptMessage, Tool
from parley_contracts.sessions import MessageStatus
from parley_contracts.tokens import estimate_prompt_tokens
from parley_contracts.turns import Generate
from parley_runtime.bus import MAX_PAYLOAD_BYTES
from parley_runtime.clock import SystemClock

SENT, SENDING, ERROR, CANCELED = MessageStatus.SENT, MessageStatus.SENDING, MessageStatus.ERROR, MessageStatus.CANCELED


def user(text: str) -> Said:
    return Said(id=new_id(), role="user", text=text, status=SENT)


def assistant(text: str, status: MessageStatus = SENT) -> Said:
    return Said(id=new_id(), role="assistant", text=text, status=status)


def prompt(history: list[Said], content: str = "New", **limits: Any) -> list[str]:
    limits = {"system_prompt": None, "max_messages": 50, "max_tokens": None, "max_bytes": MAX_PAYLOAD_BYTES, **limits}
    return [f"{said.role}: {said.content}" for said in build_prompt(history=history, content=content, **limits)]


def test_the_prompt_is_the_system_prompt_the_history_and_the_new_message() -> None:
    said = prompt([user("One?"), assistant("One.")], system_prompt="Be kind.")
    assert said == ["system: Be kind.", "user: One?", "assistant: One.", "user: New"]


@pytest.mark.parametrize("system_prompt", [None, ""])
def test_no_system_prompt_is_no_message(system_prompt: str | None) -> None:
    assert prompt([], system_prompt=system_prompt) == ["user: New"]


def test_answers_that_say_nothing_are_left_out() -> None:
    history = [
        user("a"), assistant("", ERROR), user("b"), assistant("half", ERROR), user("c"), assistant("", CANCELED),
        user("d"), assistant("cut", CANCELED), user("e"), assistant("not yet", SENDING),
    ]  # fmt: skip
    said = ["user: a", "user: b", "assistant: half", "user: c", "user: d", "assistant: cut", "user: e", "user: New"]
    assert prompt(history) == said


def test_the_last_messages_count_the_new_one_among_them() -> None:
    history = [user(str(number)) for number in range(60)]
    assert prompt(history) == [*(f"user: {number}" for number in range(11, 60)), "user: New"]
    assert prompt(history, max_messages=2) == ["user: 59", "user: New"]
    assert prompt(history, max_messages=1) == ["user: New"]


def test_the_oldest_are_dropped_until_the_tokens_fit_exactly() -> None:
    history = [user("x" * 40), assistant("y" * 40), user("z" * 40)]
    head = (PromptMessage(role="system", content="s" * 8), PromptMessage(role="user", content="New"))
    one = estimate_prompt_tokens((PromptMessage(role="user", content="z" * 40),))
    for fitting in range(4):
        limit = estimate_prompt_tokens(head) + fitting * one
        assert len(prompt(history, system_prompt="s" * 8, max_tokens=limit)) == 2 + fitting
        assert len(prompt(history, system_prompt="s" * 8, max_tokens=limit + one - 1)) == 2 + min(fitting, 3)


def test_an_old_message_that_would_fit_does_not_jump_over_one_that_does_not() -> None:
    assert prompt([user("a"), assistant("y" * 400), user("b")], max_tokens=40) == ["user: b", "user: New"]


def test_a_new_message_that_alone_does_not_fit_is_refused() -> None:
    with pytest.raises(MessagesTooLong):
        prompt([], "x" * 400, max_tokens=100)
    with pytest.raises(MessagesTooLong):
        prompt([], "x" * 40, system_prompt="y" * 400, max_tokens=100)
    with pytest.raises(MessagesTooLong):
        prompt([], "x", max_tokens=-1)


def test_chinese_is_counted_by_its_characters() -> None:
    assert len(prompt([user("问" * 50)], max_tokens=60)) == 2
    assert len(prompt([user("问" * 60)], max_tokens=60)) == 1


@pytest.mark.parametrize("text", ["x", "问", "\u0000", '"'])
def test_a_command_never_outgrows_the_bus(text: str) -> None:
    now = SystemClock().now()
    tools = (Tool(name="f", description="d" * 500_000),)
    command = Generate(
        turn_id=new_id(), user_id=1, prompt=(), model_config_id=new_id(), model="m", provider="p", max_output_tokens=1,
        params=Params(tools=tools), accepted_at=now, deadline_at=now, store=True, restart_after_text=True,
    )  # fmt: skip
    history = [assistant(text * 300_000) for _ in range(49)]
    built = with_prompt(command, system_prompt="s", history=history, content="New", max_messages=50, max_tokens=None)
    size = len(built.encode())
    assert size <= MAX_PAYLOAD_BYTES
    assert size > MAX_PAYLOAD_BYTES - 300_000 * 6 - 5_000, "no more is dropped than must be"
    assert built.prompt[-1].content == "New"


def test_a_message_larger_than_the_bus_is_refused() -> None:
    with pytest.raises(MessagesTooLong):
        prompt([], "x" * 2_000, max_bytes=1_000)
