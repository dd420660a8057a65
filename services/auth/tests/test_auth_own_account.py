"""One's own account: what one may change, and which logins that ends."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import jwt
import pytest

from parley_contracts.accounts import (
    ChangeEmail,
    ChangePassword,
    ChangePasswordKnowingOld,
    ChangeUsername,
    FamilyRevoked,
    LogOut,
    RightsChanged,
    Tokens,
)
from parley_contracts.errors import (
    EmailTaken,
    InvalidCredentials,
    InvalidEmail,
    PasswordPolicy,
    TokenRevoked,
    Unauthenticated,
    UserNotFound,
    ValidationFailed,
    WrongPassword,
)

NEW_PASSWORD = "battery staple 2"


async def change_password(auth: Any, tokens: Tokens, new: str = NEW_PASSWORD, old: str | None = None) -> Tokens:
    command = ChangePassword(refresh_token=tokens.refresh_token, new_password=new, old_password=old)
    changed: Tokens = await auth.accounts.change_password(command)
    return changed


def family_of(tokens: Tokens) -> str:
    family: str = jwt.decode(tokens.access_token, options={"verify_signature": False})["fam"]
    return family


# --- name and e-mail ---


async def test_a_name_is_changed_and_the_answer_is_the_user(auth: Any) -> None:
    await auth.register()
    user = await auth.tell(auth.accounts.change_username, ChangeUsername(user_id=1, username=" Anna "))
    assert (user.id, user.username, user.email) == (1, "Anna", "ann@example.org")


async def test_names_need_not_be_unique(auth: Any) -> None:
    await auth.register()
    await auth.register("bob@example.org", username="Bob")
    assert (await auth.tell(auth.accounts.change_username, ChangeUsername(user_id=2, username="Ann"))).username == "Ann"


@pytest.mark.parametrize("username", ["", " ", "a" * 51, "a\x00"])
async def test_a_bad_name_is_refused(auth: Any, username: str) -> None:
    await auth.register()
    with pytest.raises(ValidationFailed):
        await auth.tell(auth.accounts.change_username, ChangeUsername(user_id=1, username=username))


async def test_an_email_is_changed_and_logs_in(auth: Any) -> None:
    await auth.register()
    user = await auth.tell(auth.accounts.change_email, ChangeEmail(user_id=1, email=" New@Example.ORG"))
    assert user.email == "new@example.org"
    assert (await auth.log_in("new@example.org")).user.id == 1
    with pytest.raises(InvalidCredentials):
        await auth.log_in("ann@example.org")


async def test_an_email_of_another_account_is_taken_in_any_case(auth: Any) -> None:
    await auth.register()
    await auth.register("bob@example.org")
    with pytest.raises(EmailTaken):
        await auth.tell(auth.accounts.change_email, ChangeEmail(user_id=2, email="ANN@example.org"))
    assert (await auth.tell(auth.accounts.change_email, ChangeEmail(user_id=2, email="BOB@example.org"))).id == 2


async def test_10_parallel_changes_to_one_email_give_it_to_one_account(auth: Any) -> None:
    for n in range(10):
        await auth.register(f"u{n}@example.org")
    asked = [auth.tell(auth.accounts.change_email, ChangeEmail(user_id=n + 1, email="x@example.org")) for n in range(10)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert Counter(type(answer).__name__ for answer in answers) == {"User": 1, "EmailTaken": 9}


async def test_what_is_no_email_is_refused_and_the_old_one_stays(auth: Any) -> None:
    await auth.register()
    with pytest.raises(InvalidEmail):
        await auth.tell(auth.accounts.change_email, ChangeEmail(user_id=1, email="nonsense"))
    assert (await auth.log_in()).user.email == "ann@example.org"


@pytest.mark.parametrize("user_id", [2, 0, -1, 2**80])
async def test_nobody_s_account_is_not_found(auth: Any, user_id: int) -> None:
    await auth.register()
    with pytest.raises(UserNotFound):
        await auth.tell(auth.accounts.change_username, ChangeUsername(user_id=user_id, username="X"))
    with pytest.raises(UserNotFound):
        await auth.tell(auth.accounts.change_email, ChangeEmail(user_id=user_id, email="x@example.org"))
    command = ChangePasswordKnowingOld(user_id=user_id, current_password="x", new_password=NEW_PASSWORD)
    with pytest.raises(UserNotFound):
        await auth.accounts.change_password_knowing_old(command)


# --- password ---


async def test_a_password_change_revokes_every_refresh_token_at_once_and_begins_a_new_login(auth: Any) -> None:
    first = await auth.register()
    others = [await auth.log_in() for _ in range(3)]
    rotated = await auth.refresh(others[0])
    changed = await change_password(auth, first)
    for tokens in (first, *others, rotated):
        with pytest.raises(TokenRevoked):
            await auth.refresh(tokens)
    assert (await auth.refresh(changed)).user.id == 1
    assert (await auth.log_in(password=NEW_PASSWORD)).user.id == 1
    with pytest.raises(InvalidCredentials):
        await auth.log_in()


async def test_a_password_change_refuses_every_older_access_token_and_no_newer_one(auth: Any, clock: Any) -> None:
    clock.advance(0.4)
    before = [auth.principal(await auth.register()), auth.principal(await auth.log_in())]
    tokens = await auth.log_in()
    changed = auth.principal(await change_password(auth, tokens))
    after = auth.principal(await auth.log_in(password=NEW_PASSWORD))
    (said,) = auth.bus.heard(RightsChanged)
    assert (said.user_id, said.must_log_in) == (1, True)
    assert all(principal.issued_at < said.before for principal in before)
    assert changed.issued_at >= said.before
    assert after.issued_at >= said.before


async def test_two_password_changes_in_one_second_refuse_what_came_between(auth: Any) -> None:
    between = await change_password(auth, await auth.register())
    await change_password(auth, between, "another one 3")
    first, second = auth.bus.heard(RightsChanged)
    assert first.before <= auth.principal(between).issued_at < second.before


async def test_a_password_against_the_policy_changes_nothing(auth: Any) -> None:
    tokens = await auth.register()
    with pytest.raises(PasswordPolicy):
        await change_password(auth, tokens, "short1")
    with pytest.raises(PasswordPolicy):
        await auth.accounts.change_password_knowing_old(
            ChangePasswordKnowingOld(user_id=1, current_password="correct horse 1", new_password="nodigits")
        )
    assert await auth.refresh(tokens)


async def test_an_old_password_that_is_given_is_checked(auth: Any) -> None:
    tokens = await auth.register()
    with pytest.raises(WrongPassword):
        await change_password(auth, tokens, old="wrong password 1")
    assert await change_password(auth, tokens, old="correct horse 1")


async def test_the_old_password_is_required_where_the_setting_says_so(make_auth: Callable[..., Any]) -> None:
    strict = make_auth(password_change_requires_old=True)
    tokens = await strict.register()
    with pytest.raises(ValidationFailed) as refusal:
        await change_password(strict, tokens)
    assert [problem.field for problem in refusal.value.problems] == ["old_password"]
    with pytest.raises(WrongPassword):
        await change_password(strict, tokens, old="wrong password 1")
    assert await change_password(strict, tokens, old="correct horse 1")


async def test_a_password_is_changed_by_a_living_refresh_token_only(auth: Any, clock: Any) -> None:
    for nonsense in ("", "nonsense", "eyJhbGciOi.e30.x"):
        with pytest.raises(Unauthenticated):
            await auth.accounts.change_password(ChangePassword(refresh_token=nonsense, new_password=NEW_PASSWORD))
    with pytest.raises(TokenRevoked):
        await auth.accounts.change_password(ChangePassword(refresh_token="rt-" + "a" * 43, new_password=NEW_PASSWORD))
    tokens = await auth.register()
    clock.advance(30 * 86_400)
    with pytest.raises(TokenRevoked):
        await change_password(auth, tokens)


async def test_a_used_up_refresh_token_changes_no_password_after_the_grace_and_ends_its_family(auth: Any, clock: Any) -> None:
    stolen = await auth.register()
    newest = await auth.refresh(stolen)
    clock.advance(11)
    with pytest.raises(TokenRevoked):
        await change_password(auth, stolen)
    with pytest.raises(TokenRevoked):
        await auth.refresh(newest)
    assert await auth.log_in()


async def test_knowing_the_old_password_changes_it_and_ends_all_other_logins(auth: Any) -> None:
    first, second = await auth.register(), await auth.log_in()
    wrong = ChangePasswordKnowingOld(user_id=1, current_password="wrong password 1", new_password=NEW_PASSWORD)
    with pytest.raises(WrongPassword):
        await auth.accounts.change_password_knowing_old(wrong)
    right = ChangePasswordKnowingOld(user_id=1, current_password="correct horse 1", new_password=NEW_PASSWORD)
    changed = await auth.accounts.change_password_knowing_old(right)
    assert changed.expires_in_s == 86_400
    for tokens in (first, second):
        with pytest.raises(TokenRevoked):
            await auth.refresh(tokens)
    assert await auth.refresh(changed)


async def test_of_10_parallel_password_changes_one_login_survives(auth: Any) -> None:
    await auth.register()
    logins = [await auth.log_in() for _ in range(10)]
    asked = [change_password(auth, tokens, f"battery staple {n}") for n, tokens in enumerate(logins)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert Counter(type(answer).__name__ for answer in answers) == {"Tokens": 1, "TokenRevoked": 9}
    living = await auth.value("SELECT count(*) FROM auth.refresh_tokens WHERE revoked_at IS NULL")
    assert living == 1


async def test_logins_beside_a_password_change_are_revoked_or_know_the_new_one(auth: Any) -> None:
    """A login that verified the old password just before the change must not survive it."""
    tokens = await auth.register()
    logins = [auth.log_in() for _ in range(8)]
    answers = await asyncio.gather(*logins[:4], change_password(auth, tokens), *logins[4:], return_exceptions=True)
    changed = answers.pop(4)
    for answer in answers:
        if isinstance(answer, Tokens):
            with pytest.raises(TokenRevoked):
                await auth.refresh(answer)
        else:
            assert isinstance(answer, InvalidCredentials)
    assert await auth.refresh(changed)


# --- logging out ---


async def log_out(auth: Any, tokens: Tokens) -> None:
    await auth.tell(auth.accounts.log_out, LogOut(refresh_token=tokens.refresh_token))


async def test_a_logout_ends_its_own_login_and_is_told_to_the_gateways(auth: Any) -> None:
    first, other = await auth.register(), await auth.log_in()
    newest = await auth.refresh(first)
    await log_out(auth, newest)
    for tokens in (first, newest):
        with pytest.raises(TokenRevoked):
            await auth.refresh(tokens)
    assert await auth.refresh(other)
    assert auth.bus.heard(FamilyRevoked) == [FamilyRevoked(family=auth.principal(first).family, user_id=1)]


async def test_logging_out_again_is_well_and_is_said_once(auth: Any) -> None:
    tokens = await auth.register()
    await asyncio.gather(*(log_out(auth, tokens) for _ in range(5)))
    assert len(auth.bus.heard(FamilyRevoked)) == 1
    await auth.tell(auth.accounts.log_out, LogOut(refresh_token="rt-" + "a" * 43))
    with pytest.raises(Unauthenticated):
        await auth.tell(auth.accounts.log_out, LogOut(refresh_token="nonsense"))


async def test_a_stolen_token_s_end_is_told_to_the_gateways_once(auth: Any, clock: Any) -> None:
    first = await auth.register()
    await auth.refresh(first)
    clock.advance(11)
    await asyncio.gather(*(auth.refresh(first) for _ in range(5)), return_exceptions=True)
    assert [said.family for said in auth.bus.heard(FamilyRevoked)] == [family_of(first)]
