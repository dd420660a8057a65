"""Audit: each act of an administrator leaves one row that says who, what, before and after, and no secret."""

from typing import Any

import pytest
from structlog.contextvars import bound_contextvars

from parley_auth.audit import masked
from parley_contracts.errors import Forbidden, InvalidTransition
from parley_contracts.roles import Limits, PutRole
from parley_contracts.settings import PutSystemSettings, SystemSettingsChanges
from parley_contracts.users import CreateUser, DeleteUser, UpdateUser

PASSWORD = "battery staple 2"
ROWS = "SELECT actor_id, act, subject, before, after, request_id, at FROM auth.audit ORDER BY id"


async def acts(auth: Any) -> None:
    await auth.users.create_user(CreateUser(actor_id=1, email="eve@example.org", password=PASSWORD))
    await auth.users.update_user(UpdateUser(actor_id=1, user_id=2, role="ADMIN", password=PASSWORD))
    await auth.tell(auth.roles.put_role, PutRole(actor_id=1, name="EDITOR", permissions=("models:create",), limits=Limits()))
    changes = SystemSettingsChanges(app_name="Chat")
    await auth.tell(auth.settings.put_system_settings, PutSystemSettings(actor_id=1, changes=changes))
    await auth.users.delete_user(DeleteUser(actor_id=None, user_id=2))


async def test_each_act_leaves_one_row_with_who_what_before_after_and_request(auth: Any) -> None:
    await auth.register()
    with bound_contextvars(request_id="req-1"):
        await acts(auth)
    rows = await auth.rows(ROWS)
    assert [(row.actor_id, row.act, row.subject) for row in rows] == [
        (1, "create_user", "user 2"),
        (1, "update_user", "user 2"),
        (1, "put_role", "role EDITOR"),
        (1, "put_system_settings", "system settings"),
        (None, "delete_user", "user 2"),
    ]
    assert {(row.request_id, row.at) for row in rows} == {("req-1", auth.clock.now())}
    made, changed, role, settings, gone = rows
    assert (made.before, made.after["email"]) == (None, "eve@example.org")
    assert (changed.before["role"], changed.after["role"]) == ("USER", "ADMIN")
    assert (role.before, role.after["permissions"]) == (None, ["models:create"])
    assert (settings.before["app_name"], settings.after["app_name"]) == ("Parley", "Chat")
    assert (gone.before["id"], gone.after) == (2, None)


async def test_a_row_says_that_a_password_changed_and_not_to_what(auth: Any) -> None:
    await auth.register()
    await acts(auth)
    rows = await auth.rows(ROWS)
    assert rows[1].after["password"] == "[hidden]"
    text = str(rows)
    assert PASSWORD not in text
    assert "$argon2" not in text


async def test_an_act_outside_a_request_has_no_request_id(auth: Any) -> None:
    await auth.users.create_user(CreateUser(actor_id=None, email="eve@example.org", password=PASSWORD, role="ADMIN"))
    assert [(row.actor_id, row.request_id) for row in await auth.rows(ROWS)] == [(None, None)]


async def test_an_act_that_was_refused_leaves_no_row(auth: Any) -> None:
    await auth.register()
    with pytest.raises(InvalidTransition):
        await auth.users.delete_user(DeleteUser(actor_id=1, user_id=1))
    with pytest.raises(Forbidden):
        await auth.users.delete_user(DeleteUser(actor_id=9, user_id=1))
    assert await auth.rows(ROWS) == []


def test_secrets_are_masked_by_name_and_by_look() -> None:
    said = {
        "password": "x",
        "nested": {"api_key": "x", "access_token": None},
        "words": ["sk-abcdefgh12345678", "pk-" + "a" * 40, "plain"],
        "text": "use rt-abcdefghijkl please",
    }
    assert masked(said) == {
        "password": "[hidden]",
        "nested": {"api_key": "[hidden]", "access_token": None},
        "words": ["[hidden]", "[hidden]", "plain"],
        "text": "use [hidden] please",
    }
