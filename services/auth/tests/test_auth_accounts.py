"""Registering and logging in: who gets an account, who becomes ADMIN, and what a refusal tells."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from parley_auth.passwords import Passwords
from parley_contracts.accounts import GetUser, GetUsers, LogIn, Tokens
from parley_contracts.errors import (
    EmailTaken,
    InvalidCredentials,
    InvalidEmail,
    ParleyError,
    PasswordPolicy,
    RegistrationClosed,
    UserNotFound,
    ValidationFailed,
)
from parley_runtime.database import Database

PASSWORD = "correct horse 1"


async def all_of(*asked: Any) -> list[Any]:
    return await asyncio.gather(*asked, return_exceptions=True)


async def test_who_registers_is_logged_in_and_the_first_id_is_1(auth: Any) -> None:
    tokens = await auth.register(" Ann@Example.ORG ", username=" Ann ")
    assert auth.principal(tokens).user_id == 1
    user = await auth.tell(auth.users.get_user, GetUser(user_id=1))
    assert (user.id, user.username, user.email, user.role) == (1, "Ann", "ann@example.org", "ADMIN")
    assert user.created_at == auth.clock.now()


async def test_20_parallel_first_registrations_make_exactly_one_admin(auth: Any) -> None:
    tokens = await asyncio.gather(*(auth.register(f"u{n}@example.org") for n in range(20)))
    principals = [auth.principal(pair) for pair in tokens]
    assert Counter(p.role for p in principals) == {"ADMIN": 1, "USER": 19}
    assert len({p.user_id for p in principals}) == 20


async def test_no_admin_is_made_by_registration_when_bootstrap_is_off(make_auth: Callable[..., Any]) -> None:
    off = make_auth(bootstrap_admin=False)
    assert off.principal(await off.register()).role == "USER"
    later = make_auth(bootstrap_admin=True)
    assert later.principal(await later.register("second@example.org")).role == "USER"


async def test_a_failed_first_registration_leaves_the_admin_to_the_next(auth: Any, database: Database) -> None:
    async with database.transaction() as tx:
        await tx.session.execute(
            text("INSERT INTO auth.users (email, username, role, password_hash, created_at, last_login_at)"
                 " VALUES ('imported@example.org', 'I', 'USER', 'x', now(), now())")
        )  # fmt: skip
    with pytest.raises(EmailTaken):
        await auth.register("imported@example.org")
    assert auth.principal(await auth.register()).role == "ADMIN"


async def test_in_single_mode_only_one_of_10_parallel_registrations_succeeds(make_auth: Callable[..., Any]) -> None:
    single = make_auth(auth_mode="single")
    answers = await all_of(*(single.register(f"u{n}@example.org") for n in range(10)))
    assert Counter(type(answer) for answer in answers) == {Tokens: 1, RegistrationClosed: 9}


@pytest.mark.parametrize("again", ["ann@example.org", "ANN@example.org", "Ann@Example.Org"])
async def test_an_email_is_registered_once_in_any_case(auth: Any, again: str) -> None:
    await auth.register("ann@example.org")
    with pytest.raises(EmailTaken):
        await auth.register(again)


async def test_10_parallel_registrations_of_one_email_make_one_account(auth: Any, database: Database) -> None:
    emails = ["ann@example.org", "ANN@EXAMPLE.ORG"] * 5
    answers = await all_of(*(auth.register(email) for email in emails))
    assert Counter(type(answer) for answer in answers) == {Tokens: 1, EmailTaken: 9}
    async with database.transaction() as tx:
        assert (await tx.session.execute(text("SELECT count(*) FROM auth.users"))).scalar_one() == 1


NO_EMAILS = [
    "", "ann", "@example.org", "ann@", "a@b@example.org", "ann@example", "ann@.org", "ann@example.", "a b@example.org",
    "ann@exa mple.org", "ann\n@example.org", "ann@example.org\x00", "ann\u200b@example.org", "a" * 243 + "@example.org",
]  # fmt: skip


@pytest.mark.parametrize("email", NO_EMAILS)
async def test_what_is_no_email_is_refused(auth: Any, email: str) -> None:
    with pytest.raises(InvalidEmail):
        await auth.register(email)


@pytest.mark.parametrize("email", ["a@localhost", "ann+x@sub.example.org", "a" * 242 + "@example.org", "user@例え.jp"])
async def test_unusual_emails_are_emails(auth: Any, email: str) -> None:
    await auth.register(email)
    assert (await auth.log_in(email=email, password=PASSWORD)).refresh_token


@pytest.mark.parametrize("username", ["", "   ", "a" * 51, "a\x00b", "a\nb"])
async def test_a_bad_username_is_named_in_the_problems(auth: Any, username: str) -> None:
    with pytest.raises(ValidationFailed) as refusal:
        await auth.register(username=username)
    assert [problem.field for problem in refusal.value.problems] == ["username"]


@pytest.mark.parametrize(
    ("password", "reason"),
    [("abc4567", "is too short"), ("a1" * 65, "is too long"), ("12345678", "has no letter"), ("abcdefgh", "has no digit")],
)
async def test_a_weak_password_is_refused_with_its_reason(auth: Any, password: str, reason: str) -> None:
    with pytest.raises(PasswordPolicy, match=reason):
        await auth.register(password=password)


@pytest.mark.parametrize("password", ["abcd5678", "a1" * 64, "пароль12", "密码密码密码密1"])
async def test_a_password_within_the_policy_logs_in(auth: Any, password: str) -> None:
    await auth.register(password=password)
    assert auth.principal(await auth.log_in(email="ANN@example.org", password=password)).user_id == 1


async def test_a_login_is_noted_and_begins_a_family_of_its_own(auth: Any, clock: Any, database: Database) -> None:
    first = auth.principal(await auth.register())
    clock.advance(60)
    second = auth.principal(await auth.log_in(email="ann@example.org", password=PASSWORD))
    assert first.family != second.family
    assert (second.user_id, second.role, second.permissions) == (first.user_id, "ADMIN", first.permissions)
    async with database.transaction() as tx:
        noted = (await tx.session.execute(text("SELECT last_login_at FROM auth.users"))).scalar_one()
    assert noted == clock.now()


UNKNOWN = ["nobody@example.org", "nonsense", "", "a\x00@example.org"]


@pytest.mark.parametrize("email", UNKNOWN)
async def test_an_unknown_email_gets_the_same_body_and_the_same_work_as_a_wrong_password(
    auth: Any, email: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await auth.register()
    verified: list[str] = []
    real, real_hash = auth.passwords._hasher.verify_and_update, auth.passwords._hasher.hash

    def counted(password: str, stored: str) -> Any:
        verified.append(stored.rpartition("$")[0].rpartition("$")[0])  # kind and cost, without salt and digest
        return real(password, stored)

    def counted_hash(password: str) -> str:
        verified.append("hashed anew")
        return real_hash(password)

    monkeypatch.setattr(auth.passwords._hasher, "verify_and_update", counted)
    monkeypatch.setattr(auth.passwords._hasher, "hash", counted_hash)
    bodies = []
    for tried in ("ann@example.org", email):
        with pytest.raises(InvalidCredentials) as refusal:
            await auth.log_in(email=tried, password="wrong password 1")
        bodies.append(msgspec.json.encode(refusal.value.body()))
    assert bodies[0] == bodies[1]
    assert len(verified) == 2
    assert verified[0] == verified[1]


async def test_a_password_hash_is_renewed_at_login_when_its_cost_changed(
    auth: Any, make_auth: Callable[..., Any], database: Database
) -> None:
    await auth.register()
    stronger = Passwords(memory_kib=64, time_cost=2)
    await stronger.open()
    upgraded = make_auth(hashing=stronger)
    await upgraded.log_in()
    async with database.transaction() as tx:
        stored = (await tx.session.execute(text("SELECT password_hash FROM auth.users"))).scalar_one()
    assert stored.startswith("$argon2id$v=19$m=64,t=2,")
    await upgraded.log_in()
    await stronger.close()


async def test_users_are_found_by_id_and_missing_ones_left_out(auth: Any, database: Database) -> None:
    for n in range(3):
        await auth.register(f"u{n}@example.org")
    async with database.transaction() as tx:
        found = await auth.users.get_users(GetUsers(user_ids=(3, 1, 99, 0, -5, 2**70, 1)), tx)
        assert {user.id: user.email for user in found} == {1: "u0@example.org", 3: "u2@example.org"}
        assert await auth.users.get_users(GetUsers(user_ids=()), tx) == ()


@pytest.mark.parametrize("user_id", [0, -1, 99, 2**31, 2**80])
async def test_a_user_that_cannot_exist_is_not_found(auth: Any, database: Database, user_id: int) -> None:
    with pytest.raises(UserNotFound):
        async with database.transaction() as tx:
            await auth.users.get_user(GetUser(user_id=user_id), tx)


INJECTIONS = ["'", "' OR '1'='1", "%", "_", '"; DROP TABLE auth.users; --', "x" * 100_000]


@pytest.mark.parametrize("text_", INJECTIONS)
async def test_sql_in_a_field_is_text(auth: Any, database: Database, text_: str) -> None:
    await auth.register()
    for asked in (LogIn(email=text_, password=text_), LogIn(email=text_ + "@example.org", password=PASSWORD)):
        with pytest.raises(ParleyError):
            await auth.accounts.log_in(asked)
    async with database.transaction() as tx:
        assert (await tx.session.execute(text("SELECT count(*) FROM auth.users"))).scalar_one() == 1
