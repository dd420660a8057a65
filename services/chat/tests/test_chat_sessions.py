import asyncio
from typing import Any

import pytest

from parley_contracts.accounts import UserDeleted
from parley_contracts.errors import MessageNotFound, SessionNotFound, ShareNotFound, TurnNotFound
from parley_contracts.ids import new_id
from parley_contracts.parts import Answer, FinishReason, Reasoning, Text
from parley_contracts.prompts import Params
from parley_contracts.sessions import (
    DeleteSessions,
    GetSession,
    GetSharedSession,
    ListMessages,
    ListSessions,
    Session,
    SessionChanges,
    SessionPage,
    UpdateSession,
)
from parley_contracts.turns import TurnStatus

STRANGER = 10**9


async def get(chat: Any, session_id: str) -> Session:
    session: Session = await chat.ask(GetSession(user_id=chat.user_id, session_id=session_id))
    return session


async def change(chat: Any, session_id: str, **changes: Any) -> Session:
    command = UpdateSession(user_id=chat.user_id, session_id=session_id, changes=SessionChanges(**changes))
    session: Session = await chat.ask(command)
    return session


async def listed(chat: Any, **query: Any) -> SessionPage:
    page: SessionPage = await chat.ask(ListSessions(user_id=chat.user_id, **query))
    return page


FIELDS: dict[str, Any] = {
    "title": "旅行 plans",
    "system_prompt": "Be kind.",
    "model_config_id": new_id(),
    "params": Params(temperature=0.0, max_tokens=100, top_p=0.5, top_k=3, frequency_penalty=-1.0, presence_penalty=1.0),
    "session_type": "a",
    "document_id": "b",
    "product_code": "c",
}


async def test_a_session_is_read_as_it_was_made(chat: Any) -> None:
    made = await chat.new_session(**FIELDS)
    assert {name: getattr(made, name) for name in FIELDS} == FIELDS
    assert (made.user_id, made.is_shareable, made.share_token) == (chat.user_id, False, None)
    assert await get(chat, made.id) == made


async def test_a_session_needs_nothing_but_its_owner(chat: Any) -> None:
    made = await chat.new_session()
    assert (made.title, made.system_prompt, made.model_config_id, made.params) == (None, None, None, Params())


CHANGES: list[tuple[str, Any]] = [
    ("title", "New"),
    ("system_prompt", "New"),
    ("model_config_id", new_id()),
    ("session_type", "x"),
    ("document_id", "y"),
    ("product_code", "z"),
    ("temperature", 1.5),
    ("max_tokens", 7),
    ("top_p", 0.0),
    ("top_k", 9),
    ("frequency_penalty", 0.0),
    ("presence_penalty", -0.5),
]


@pytest.mark.parametrize(("field", "value"), [*CHANGES, *((field, None) for field, _ in CHANGES)])
async def test_a_change_of_one_field_keeps_the_rest(chat: Any, field: str, value: Any) -> None:
    made = await chat.new_session(**FIELDS)
    changed = await change(chat, made.id, **{field: value})
    assert await get(chat, made.id) == changed
    before = {**{name: getattr(made, name) for name in FIELDS if name != "params"}, **params_of(made)}
    after = {**{name: getattr(changed, name) for name in FIELDS if name != "params"}, **params_of(changed)}
    assert after == {**before, field: value}
    assert changed.updated_at > made.updated_at
    assert changed.created_at == made.created_at


def params_of(session: Session) -> dict[str, Any]:
    return {name: getattr(session.params, name) for name in session.params.__struct_fields__}


async def test_two_changes_at_once_both_count(chat: Any) -> None:
    made = await chat.new_session(**FIELDS)
    await asyncio.gather(*(change(chat, made.id, **{field: value}) for field, value in CHANGES))
    session = await get(chat, made.id)
    fields = {**{name: getattr(session, name) for name in FIELDS}, **params_of(session)}
    assert {field: fields[field] for field, _ in CHANGES} == dict(CHANGES)


async def test_a_foreign_session_is_answered_like_a_missing_one(chat: Any) -> None:
    made = await chat.new_session()
    for user_id, session_id in ((STRANGER, made.id), (chat.user_id, new_id())):
        for question in (
            GetSession(user_id=user_id, session_id=session_id),
            UpdateSession(user_id=user_id, session_id=session_id, changes=SessionChanges(title="x")),
            ListMessages(user_id=user_id, session_id=session_id),
        ):
            with pytest.raises(SessionNotFound):
                await chat.ask(question)
        assert await chat.ask(DeleteSessions(user_id=user_id, session_ids=(session_id,))) == ()
    assert await get(chat, made.id) == made


async def test_sessions_are_listed_with_the_newest_change_first(chat: Any) -> None:
    first, second, third = [await chat.new_session(title=title) for title in "abc"]
    chat.clock.advance(1)
    await change(chat, first.id, title="a")
    page = await listed(chat)
    assert [session.id for session in page.sessions] == [first.id, third.id, second.id]
    chat.clock.advance(1)
    turn = await chat.start(second.id)
    page = await listed(chat, limit=2)
    assert [session.id for session in page.sessions] == [second.id, first.id]
    assert page.sessions[0].running_turn.turn_id == turn.turn_id
    assert page.total == 3
    page = await listed(chat, limit=2, offset=2)
    assert ([session.id for session in page.sessions], page.total) == ([third.id], 3)
    assert (await listed(chat, offset=3)).total == 3


async def test_an_answer_makes_its_session_the_newest(chat: Any) -> None:
    first = await chat.new_session()
    turn = await chat.start(first.id)
    second = await chat.new_session()
    chat.clock.advance(1)
    await chat.answer(turn.turn_id)
    assert [session.id for session in (await listed(chat)).sessions] == [first.id, second.id]


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("plan", {"Plan 100%", "my_plan", "planB"}),
        ("PLAN", {"Plan 100%", "my_plan", "planB"}),
        ("%", {"Plan 100%"}),
        ("_", {"my_plan"}),
        ("\\", {"back\\slash"}),
        ("/", {"a/b"}),
        ("旅行", {"旅行"}),
        ("\x00", set()),
        ("", {"Plan 100%", "my_plan", "planB", "back\\slash", "a/b", "旅行", None}),
    ],
)
async def test_a_search_finds_what_it_says_and_nothing_else(chat: Any, search: str, found: set[str | None]) -> None:
    for title in ("Plan 100%", "my_plan", "planB", "back\\slash", "a/b", "旅行", None):
        await chat.new_session(title=title)
    page = await listed(chat, search=search)
    assert {session.title for session in page.sessions} == found
    assert page.total == len(found)


async def test_messages_are_read_in_pages_from_the_newest(chat: Any) -> None:
    session = await chat.new_session()
    for number in range(3):
        await chat.exchange(session.id, f"{number}?", f"{number}.")
    said: list[str] = []
    pages, before = 0, None
    while True:
        pages += 1
        page = await chat.ask(ListMessages(user_id=chat.user_id, session_id=session.id, limit=2, before=before))
        said = [message.answer.text for message in page.messages] + said
        before = page.messages[0].id
        if not page.has_more:
            break
    assert (said, pages) == (["0?", "0.", "1?", "1.", "2?", "2."], 3)


async def test_messages_before_one_of_another_session_are_not_found(chat: Any) -> None:
    session, other = await chat.new_session(), await chat.new_session()
    turn = await chat.exchange(other.id)
    for before in (turn.message_id, new_id()):
        with pytest.raises(MessageNotFound):
            await chat.ask(ListMessages(user_id=chat.user_id, session_id=session.id, before=before))


async def test_a_page_holds_no_more_than_one_reply_can_carry(chat: Any) -> None:
    session = await chat.new_session()
    for _ in range(4):
        await chat.exchange(session.id, "?", "问" * 1_000_000)
    page = await chat.ask(ListMessages(user_id=chat.user_id, session_id=session.id))
    assert [len(message.answer.text) for message in page.messages] == [1, 1_000_000]
    assert page.has_more


async def test_a_shared_session_shows_the_conversation_and_nothing_of_its_owner(chat: Any) -> None:
    session = await chat.new_session(title="Ours", system_prompt="Secret.", is_shareable=True)
    turn = await chat.start(session.id, "One?")
    await chat.answer(turn.turn_id, answer=Answer.of((Reasoning("Secret"), Text("One."))))
    failed = await chat.start(session.id, "Two?")
    await chat.answer(failed.turn_id, "", reason=FinishReason.ERROR)
    await chat.start(session.id, "Three?")
    shared = await chat.ask(GetSharedSession(share_token=session.share_token))
    assert shared.title == "Ours"
    assert [(message.role, message.answer.text) for message in shared.messages] == [
        ("user", "One?"), ("assistant", "One."), ("user", "Two?"), ("user", "Three?"),
    ]  # fmt: skip
    for message in shared.messages:
        assert (message.user_id, message.model, message.provider, message.usage, message.turn_id) == (0, None, None, None, None)
        assert message.answer.reasoning == ""


async def test_a_share_link_ends_when_sharing_does_and_never_comes_back(chat: Any) -> None:
    session = await chat.new_session(is_shareable=True)
    first = session.share_token
    assert len(first) == 22
    assert (await change(chat, session.id, title="x")).share_token == first
    assert (await change(chat, session.id, is_shareable=True)).share_token == first
    off = await change(chat, session.id, is_shareable=False)
    assert (off.is_shareable, off.share_token) == (False, None)
    with pytest.raises(ShareNotFound):
        await chat.ask(GetSharedSession(share_token=first))
    second = (await change(chat, session.id, is_shareable=True)).share_token
    assert second not in {None, first}
    with pytest.raises(ShareNotFound):
        await chat.ask(GetSharedSession(share_token=first))
    assert (await chat.ask(GetSharedSession(share_token=second))).messages == ()
    await chat.ask(DeleteSessions(user_id=chat.user_id, session_ids=(session.id,)))
    with pytest.raises(ShareNotFound):
        await chat.ask(GetSharedSession(share_token=second))


async def test_deleted_sessions_are_gone_with_all_that_was_said(chat: Any) -> None:
    first, second, kept = [await chat.new_session() for _ in range(3)]
    turn = await chat.exchange(first.id)
    other = await chat.exchange(kept.id)
    ids = (second.id, first.id, new_id(), first.id)
    assert await chat.ask(DeleteSessions(user_id=chat.user_id, session_ids=ids)) == (second.id, first.id)
    assert await chat.ask(DeleteSessions(user_id=chat.user_id, session_ids=ids)) == ()
    with pytest.raises(SessionNotFound):
        await get(chat, first.id)
    with pytest.raises(TurnNotFound):
        await chat.turn(turn.turn_id)
    assert await chat.sql("SELECT 1 FROM chat.messages WHERE session_id = $1", first.id) == []
    assert (await chat.turn(other.turn_id)).status is TurnStatus.DONE


async def test_a_turn_that_runs_in_a_deleted_session_is_stopped_billed_and_forgotten(chat: Any) -> None:
    session = await chat.new_session()
    turn = await chat.start(session.id)
    await chat.claim(turn.turn_id)
    chat.say(turn.turn_id, "Once ")
    assert await chat.ask(DeleteSessions(user_id=chat.user_id, session_ids=(session.id,))) == (session.id,)

    async def forgotten() -> bool:
        return not await chat.sql("SELECT 1 FROM chat.turns WHERE id = $1", turn.turn_id)

    await chat.eventually(forgotten)
    (result,) = chat.results(turn.turn_id)
    assert (result.status, result.answer.text) == (TurnStatus.CANCELED, "Once ")


async def test_a_deleted_user_leaves_nothing_behind_and_their_running_turns_are_stopped_and_billed(chat: Any) -> None:
    ended, running = await chat.new_session(is_shareable=True), await chat.new_session()
    await chat.exchange(ended.id)
    turn = await chat.start(running.id)
    await chat.claim(turn.turn_id)
    chat.say(turn.turn_id, "Once ")
    user_id, chat.user_id = chat.user_id, chat.user_id + 10**6
    kept = await chat.new_session()
    await chat.exchange(kept.id)
    for _ in range(2):
        await chat.gateway.publish(UserDeleted(user_id=user_id))

        async def erased() -> bool:
            counts = [
                f"(SELECT count(*) FROM chat.{table} WHERE user_id = {user_id})"  # noqa: S608 - a number of our own
                for table in ("sessions", "messages", "turns")
            ]
            return (await chat.sql(f"SELECT {' + '.join(counts)} AS rows"))[0]["rows"] == 0

        await chat.eventually(erased)
    (result,) = chat.results(turn.turn_id)
    assert (result.user_id, result.status, result.answer.text) == (user_id, TurnStatus.CANCELED, "Once ")
    assert len(await chat.messages(kept.id)) == 2
