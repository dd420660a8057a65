"""Users as an administrator makes and changes them: what reaches their logins, and that an administrator remains."""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from parley_auth.roles import PERMISSIONS
from parley_contracts.accounts import RightsChanged, User, UserDeleted
from parley_contracts.api_keys import CreateApiKey
from parley_contracts.errors import (
    EmailTaken,
    Forbidden,
    InvalidCredentials,
    InvalidEmail,
    InvalidTransition,
    PasswordPolicy,
    RegistrationClosed,
    RoleNotFound,
    TokenRevoked,
    UserNotFound,
    ValidationFailed,
)
from parley_contracts.roles import Limits, PutRole
from parley_contracts.settings import PersonalSettingsChanges, PutPersonalSettings
from parley_contracts.users import CreateUser, DeleteUser, ListUsers, UpdateUser

PASSWORD = "correct horse 1"
ADMIN_ID, USER_ID = 1, 2


async def both(auth: Any) -> tuple[Any, Any]:
    """An ADMIN (1) and a USER (2), logged in."""
    return await auth.register(), await auth.register("bob@example.org", username="Bob")


async def create(auth: Any, email: str = "eve@example.org", *, actor_id: int | None = ADMIN_ID, **more: Any) -> User:
    created: User = await auth.users.create_user(CreateUser(actor_id=actor_id, email=email, password=PASSWORD, **more))
    return created


async def update(auth: Any, user_id: int = USER_ID, *, actor_id: int | None = ADMIN_ID, **changes: Any) -> User:
    updated: User = await auth.users.update_user(UpdateUser(actor_id=actor_id, user_id=user_id, **changes))
    return updated


async def delete(auth: Any, user_id: int = USER_ID, *, actor_id: int | None = ADMIN_ID) -> None:
    await auth.users.delete_user(DeleteUser(actor_id=actor_id, user_id=user_id))


# --- making ---


async def test_a_user_an_administrator_made_logs_in_and_was_never_seen_before(auth: Any) -> None:
    await both(auth)
    user = await create(auth, " Eve@Example.org ", role="user")
    assert (user.id, user.email, user.username, user.role) == (3, "eve@example.org", "eve", "USER")
    assert (user.status, user.last_login_at) == ("active", None)
    assert (await auth.log_in("eve@example.org")).user.last_login_at == auth.clock.now()


async def test_the_operator_makes_an_administrator_and_the_first_registration_is_then_none(auth: Any) -> None:
    assert (await create(auth, actor_id=None, role="ADMIN")).role == "ADMIN"
    assert (await auth.register()).user.role == "USER"


async def test_after_the_operator_made_an_account_a_single_user_installation_is_closed(make_auth: Callable[..., Any]) -> None:
    single = make_auth(auth_mode="single")
    await create(single, actor_id=None, role="ADMIN")
    with pytest.raises(RegistrationClosed):
        await single.register()
    assert await create(single, "second@example.org", actor_id=None)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"email": "bob@example.org"}, EmailTaken),
        ({"email": "nonsense"}, InvalidEmail),
        ({"password": "short1"}, PasswordPolicy),
        ({"username": ""}, ValidationFailed),
        ({"role": "WIZARD"}, RoleNotFound),
        ({"role": "\x00"}, RoleNotFound),
        ({"actor_id": USER_ID}, Forbidden),
        ({"actor_id": 99}, Forbidden),
    ],
)
async def test_a_user_that_cannot_be_made_is_not(auth: Any, changes: dict[str, Any], error: type[Exception]) -> None:
    await both(auth)
    asked = {"actor_id": ADMIN_ID, "email": "eve@example.org", "password": PASSWORD, **changes}
    with pytest.raises(error):
        await auth.users.create_user(CreateUser(**asked))
    assert await auth.value("SELECT count(*) FROM auth.users") == 2
    assert await auth.value("SELECT count(*) FROM auth.audit") == 0


# --- listing ---


async def listed(auth: Any, **asked: Any) -> list[int]:
    page = await auth.tell(auth.users.list_users, ListUsers(**asked))
    return [user.id for user in page.users]


async def test_users_are_listed_newest_first_page_by_page(auth: Any) -> None:
    for n in range(5):
        await auth.register(f"u{n}@example.org")
    page = await auth.tell(auth.users.list_users, ListUsers(page=2, limit=2))
    assert ([user.id for user in page.users], page.total) == ([3, 2], 5)
    assert await listed(auth, page=9) == []


async def test_users_are_found_by_part_of_name_or_email_role_and_status(auth: Any) -> None:
    await both(auth)
    await auth.register("under_score@example.org", username="100% Zoë")
    await update(auth, status="disabled")
    assert await listed(auth, q="BOB") == [2]
    assert await listed(auth, q="zoë") == [3]
    assert await listed(auth, q="%") == [3]
    assert await listed(auth, q="_") == [3]
    assert await listed(auth, q="' OR '1'='1") == []
    assert await listed(auth, q="\x00") == []
    assert await listed(auth, role="admin") == [1]
    assert await listed(auth, status="disabled") == [2]
    assert await listed(auth, status="active", role="USER") == [3]


@pytest.mark.parametrize("asked", [{"page": 0}, {"page": 2**70}, {"limit": 0}, {"limit": 10**6}, {"page": -1}])
async def test_a_page_that_cannot_be_is_refused(auth: Any, asked: dict[str, int]) -> None:
    with pytest.raises(ValidationFailed):
        await listed(auth, **asked)


# --- changing ---


async def test_what_an_administrator_names_changes_and_the_rest_stays(auth: Any) -> None:
    await both(auth)
    user = await update(auth, username="Robert", email="Robert@example.org")
    assert (user.username, user.email, user.role, user.status) == ("Robert", "robert@example.org", "USER", "active")
    assert (await update(auth)).email == "robert@example.org"
    with pytest.raises(EmailTaken):
        await update(auth, email="ann@example.org")
    assert auth.bus.heard(RightsChanged) == []


async def test_a_new_role_is_in_the_next_token_and_older_ones_are_refused(auth: Any) -> None:
    _, bob = await both(auth)
    before = auth.principal(bob)
    await update(auth, role="admin")
    (said,) = auth.bus.heard(RightsChanged)
    assert (said.user_id, said.must_log_in) == (USER_ID, False)
    assert before.issued_at < said.before <= auth.clock.now() + timedelta(seconds=1)
    after = auth.principal(await auth.refresh(bob))
    assert (after.role, len(after.permissions)) == ("ADMIN", 8)
    assert after.issued_at >= said.before


async def test_a_token_of_the_very_second_of_the_change_is_refused_and_the_next_is_not(auth: Any, clock: Any) -> None:
    clock.advance(0.2)
    _, bob = await both(auth)
    clock.advance(0.3)
    await update(auth, role="ADMIN")
    between = await auth.refresh(bob)
    await update(auth, role="USER")
    first, second = auth.bus.heard(RightsChanged)
    after = await auth.refresh(between)
    assert auth.principal(bob).issued_at < first.before
    assert first.before <= auth.principal(between).issued_at < second.before
    assert second.before <= auth.principal(after).issued_at


async def test_disabling_ends_every_login_at_once_and_enabling_lets_log_in_again(auth: Any) -> None:
    _, bob = await both(auth)
    second = await auth.log_in("bob@example.org")
    await update(auth, status="disabled")
    for tokens in (bob, second):
        with pytest.raises(TokenRevoked):
            await auth.refresh(tokens)
    with pytest.raises(InvalidCredentials):
        await auth.log_in("bob@example.org")
    assert [(said.user_id, said.must_log_in) for said in auth.bus.heard(RightsChanged)] == [(USER_ID, True)]
    assert (await update(auth, status="active")).status == "active"
    with pytest.raises(TokenRevoked):
        await auth.refresh(bob)
    assert await auth.log_in("bob@example.org")


async def test_a_password_an_administrator_sets_ends_every_login(auth: Any) -> None:
    _, bob = await both(auth)
    await update(auth, password="battery staple 2")
    with pytest.raises(TokenRevoked):
        await auth.refresh(bob)
    assert await auth.log_in("bob@example.org", "battery staple 2")


@pytest.mark.parametrize("user_id", [99, 0, -1, 2**80])
async def test_a_user_that_is_not_there_is_neither_changed_nor_deleted(auth: Any, user_id: int) -> None:
    await both(auth)
    with pytest.raises(UserNotFound):
        await update(auth, user_id, username="X")
    with pytest.raises(UserNotFound):
        await delete(auth, user_id)


# --- who may ---


async def test_a_user_without_the_permission_changes_nobody(auth: Any) -> None:
    await both(auth)
    for attempt in (update(auth, ADMIN_ID, actor_id=USER_ID, role="USER"), update(auth, actor_id=USER_ID, role="ADMIN")):
        with pytest.raises(Forbidden):
            await attempt
    with pytest.raises(Forbidden):
        await delete(auth, ADMIN_ID, actor_id=USER_ID)


async def test_a_right_that_was_taken_away_acts_no_more_whatever_a_token_says(auth: Any) -> None:
    await both(auth)
    await update(auth, role="ADMIN")
    await update(auth, ADMIN_ID, actor_id=USER_ID, role="USER")
    with pytest.raises(Forbidden):
        await update(auth, actor_id=ADMIN_ID, username="X")
    await update(auth, ADMIN_ID, actor_id=USER_ID, role="ADMIN")
    await update(auth, status="disabled")
    with pytest.raises(Forbidden):
        await update(auth, ADMIN_ID, actor_id=USER_ID, username="X")


async def test_who_manages_users_makes_no_administrator_and_touches_none(auth: Any) -> None:
    await both(auth)
    manager = PutRole(actor_id=ADMIN_ID, name="MANAGER", permissions=("users:manage", "models:create"), limits=Limits())
    everything = PutRole(actor_id=ADMIN_ID, name="ALL", permissions=(*manager.permissions, "usage:read_all"), limits=Limits())
    for command in (manager, everything):
        await auth.tell(auth.roles.put_role, command)
    await update(auth, role="MANAGER")
    eve = await create(auth, actor_id=USER_ID)
    assert (await update(auth, eve.id, actor_id=USER_ID, role="manager")).role == "MANAGER"
    for role in ("ADMIN", "ALL"):
        with pytest.raises(Forbidden):
            await update(auth, eve.id, actor_id=USER_ID, role=role)
        with pytest.raises(Forbidden):
            await create(auth, "new@example.org", actor_id=USER_ID, role=role)
    for attempt in (update(auth, ADMIN_ID, actor_id=USER_ID, password="battery staple 2"), delete(auth, 1, actor_id=USER_ID)):
        with pytest.raises(Forbidden):
            await attempt


async def test_whoever_has_every_permission_is_no_administrator_yet_and_makes_none(auth: Any) -> None:
    await both(auth)
    every = PutRole(actor_id=ADMIN_ID, name="ALMOST", permissions=PERMISSIONS, limits=Limits())
    await auth.tell(auth.roles.put_role, every)
    await update(auth, role="ALMOST")
    for attempt in (
        update(auth, actor_id=USER_ID, role="ADMIN"),
        create(auth, actor_id=USER_ID, role="ADMIN"),
        update(auth, ADMIN_ID, actor_id=USER_ID, password="battery staple 2"),
    ):
        with pytest.raises(Forbidden):
            await attempt


# --- an administrator remains ---


@pytest.mark.parametrize("change", [{"role": "USER"}, {"status": "disabled"}])
async def test_the_last_active_administrator_is_neither_demoted_nor_disabled_nor_deleted(
    auth: Any, change: dict[str, str]
) -> None:
    await both(auth)
    with pytest.raises(InvalidTransition):
        await update(auth, ADMIN_ID, **change)
    with pytest.raises(InvalidTransition):
        await delete(auth, ADMIN_ID)
    await update(auth, role="ADMIN", status="disabled")
    with pytest.raises(InvalidTransition):
        await update(auth, ADMIN_ID, **change)
    await update(auth, status="active")
    assert await update(auth, ADMIN_ID, **change)
    with pytest.raises(InvalidTransition):
        await update(auth, actor_id=None, **change)


async def test_20_parallel_demotions_of_two_administrators_leave_one(auth: Any) -> None:
    await both(auth)
    await update(auth, role="ADMIN")
    attempts = [update(auth, 1 + n % 2, actor_id=None, role="USER") for n in range(20)]
    answers = await asyncio.gather(*attempts, return_exceptions=True)
    assert await auth.value("SELECT count(*) FROM auth.users WHERE role = 'ADMIN' AND status = 'active'") == 1
    assert Counter(type(answer).__name__ for answer in answers) == {"User": 10, "InvalidTransition": 10}


async def test_administrators_who_demote_disable_and_delete_each_other_at_once_leave_one(auth: Any) -> None:
    await both(auth)
    await update(auth, role="ADMIN")
    attempts: list[Any] = []
    for n in range(7):
        other, self_ = 1 + n % 2, 2 - n % 2
        attempts += [update(auth, other, actor_id=self_, role="USER"), update(auth, other, actor_id=self_, status="disabled")]
        attempts += [delete(auth, other, actor_id=self_)]
    answers = await asyncio.gather(*attempts, return_exceptions=True)
    allowed = {"User", "NoneType", "InvalidTransition", "Forbidden", "UserNotFound"}
    assert {type(answer).__name__ for answer in answers} <= allowed
    assert await auth.value("SELECT count(*) FROM auth.users WHERE role = 'ADMIN' AND status = 'active'") == 1


# --- deleting ---


async def test_a_deleted_user_is_gone_with_logins_keys_and_settings_and_the_others_are_told(auth: Any) -> None:
    _, bob = await both(auth)
    await auth.tell(auth.api_keys.create_api_key, CreateApiKey(user_id=USER_ID, name="k"))
    changes = PersonalSettingsChanges(theme="dark")
    await auth.tell(auth.settings.put_personal_settings, PutPersonalSettings(user_id=USER_ID, changes=changes))
    await delete(auth)
    with pytest.raises(TokenRevoked):
        await auth.refresh(bob)
    with pytest.raises(InvalidCredentials):
        await auth.log_in("bob@example.org")
    for table in ("refresh_tokens", "api_keys", "personal_settings"):
        assert await auth.value(f"SELECT count(*) FROM auth.{table} WHERE user_id = 2") == 0  # noqa: S608 - our own names
    assert auth.bus.heard(UserDeleted) == [UserDeleted(user_id=USER_ID)]
    assert auth.bus.heard(RightsChanged)[-1].must_log_in


async def test_the_email_of_a_deleted_user_is_free_and_their_id_is_not(auth: Any) -> None:
    await both(auth)
    await delete(auth)
    assert (await auth.register("bob@example.org")).user.id == 3


async def test_refreshes_beside_a_deletion_end_as_revoked_and_in_no_other_way(auth: Any) -> None:
    await both(auth)
    logins = [await auth.log_in("bob@example.org") for _ in range(8)]
    refreshes = [auth.refresh(tokens) for tokens in logins]
    answers = await asyncio.gather(*refreshes[:4], delete(auth), *refreshes[4:], return_exceptions=True)
    assert {type(answer).__name__ for answer in answers} <= {"Tokens", "NoneType", "TokenRevoked"}
    assert await auth.value("SELECT count(*) FROM auth.refresh_tokens WHERE user_id = 2") == 0
