"""Roles: what an administrator may define, and when those who have one notice."""

from typing import Any

import pytest

from parley_contracts.accounts import RightsChanged
from parley_contracts.errors import Forbidden, InvalidTransition, ValidationFailed
from parley_contracts.roles import Limits, ListRoles, PutRole, Role
from parley_contracts.users import UpdateUser


async def put(auth: Any, name: str = "EDITOR", *permissions: str, actor_id: int | None = 1, **limits: int | None) -> Role:
    command = PutRole(actor_id=actor_id, name=name, permissions=permissions, limits=Limits(**limits))
    role: Role = await auth.tell(auth.roles.put_role, command)
    return role


async def roles(auth: Any) -> dict[str, Role]:
    return {role.name: role for role in await auth.tell(auth.roles.list_roles, ListRoles())}


async def test_two_roles_are_built_in(auth: Any) -> None:
    found = await roles(auth)
    assert list(found) == ["ADMIN", "USER"]
    assert len(found["ADMIN"].permissions) == 8
    assert found["USER"] == Role(name="USER", permissions=("models:create",), limits=Limits(model_configs=20), is_built_in=True)


async def test_a_role_is_made_and_replaced_and_read_in_any_case(auth: Any) -> None:
    await auth.register()
    made = await put(auth, " editor ", "usage:read_all", "models:create", "Models:Create", turns_per_minute=5)
    assert made == Role(name="EDITOR", permissions=("models:create", "usage:read_all"), limits=Limits(turns_per_minute=5))
    await put(auth, "Editor", "models:system", connections=2, concurrent_turns=0)
    found = await roles(auth)
    assert list(found) == ["ADMIN", "USER", "EDITOR"]
    assert found["EDITOR"] == Role(
        name="EDITOR", permissions=("models:system",), limits=Limits(connections=2, concurrent_turns=0)
    )


async def test_user_can_be_changed_and_stays_built_in(auth: Any) -> None:
    await auth.register()
    await put(auth, "user", model_configs=3)
    assert (await roles(auth))["USER"] == Role(name="USER", permissions=(), limits=Limits(model_configs=3), is_built_in=True)
    assert auth.principal(await auth.register("bob@example.org")).limits == Limits(model_configs=3)


@pytest.mark.parametrize("name", ["ADMIN", "admin", " Admin "])
async def test_admin_cannot_be_changed_not_even_by_the_operator(auth: Any, name: str) -> None:
    for actor_id in (None, (await auth.register(f"{name.strip()}@example.org")).user.id):
        with pytest.raises(InvalidTransition):
            await put(auth, name, actor_id=actor_id)


@pytest.mark.parametrize("name", ["", "1st", "a b", "a.b", "ä", "x" * 33, "A\x00", "*", "A\n"])
async def test_a_name_that_is_none_is_refused(auth: Any, name: str) -> None:
    await auth.register()
    if name == "A\n":  # blanks around a name are taken off
        assert (await put(auth, name)).name == "A"
        return
    with pytest.raises(ValidationFailed):
        await put(auth, name)


async def test_a_permission_there_is_not_and_a_limit_that_cannot_be_are_refused(auth: Any) -> None:
    await auth.register()
    for attempt in (put(auth, "R", "world:rule"), put(auth, "R", model_configs=-1), put(auth, "R", connections=2**70)):
        with pytest.raises(ValidationFailed):
            await attempt
    assert list(await roles(auth)) == ["ADMIN", "USER"]


async def test_a_changed_role_reaches_those_who_have_it_at_their_next_refresh(auth: Any) -> None:
    await auth.register()
    bob = await auth.register("bob@example.org")
    await put(auth, "EDITOR", "models:create")
    await auth.users.update_user(UpdateUser(actor_id=1, user_id=2, role="editor"))
    bob = await auth.refresh(bob)
    assert auth.principal(bob).permissions == ("models:create",)
    await put(auth, "EDITOR", "models:create", "usage:read_all", turns_per_minute=7)
    said = auth.bus.heard(RightsChanged)[-1]
    assert (said.role, said.user_id, said.must_log_in) == ("EDITOR", None, False)
    assert auth.principal(bob).issued_at < said.before
    newer = auth.principal(await auth.refresh(bob))
    assert (newer.permissions, newer.limits.turns_per_minute) == (("models:create", "usage:read_all"), 7)
    assert newer.issued_at >= said.before


async def test_a_role_that_stays_the_same_or_is_new_refuses_no_token(auth: Any) -> None:
    await auth.register()
    await put(auth, "EDITOR", "models:create")
    await put(auth, "EDITOR", "models:create")
    assert auth.bus.heard(RightsChanged) == []


async def test_nobody_gives_a_permission_they_lack(auth: Any) -> None:
    await auth.register()
    await auth.register("bob@example.org")
    with pytest.raises(Forbidden):
        await put(auth, "EDITOR", actor_id=2)
    await put(auth, "MANAGER", "users:manage", "models:create")
    await put(auth, "STRONG", "usage:read_all")
    await auth.users.update_user(UpdateUser(actor_id=1, user_id=2, role="MANAGER"))
    for name, permissions in (("MANAGER", ("users:manage", "models:system")), ("NEW", ("flows:manage",)), ("STRONG", ())):
        with pytest.raises(Forbidden):
            await put(auth, name, *permissions, actor_id=2)
    assert await put(auth, "NEW", "models:create", actor_id=2)
