"""Logging in: what a token lives and says, hashes from elsewhere, and what a refusal gives away."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import bcrypt
import pytest
import pytest_asyncio

from parley_auth.passwords import Passwords
from parley_contracts.accounts import LogIn, Register, User
from parley_contracts.errors import EmailNotFound, InvalidCredentials, ParleyError, PasswordIncorrect, RegistrationClosed
from parley_contracts.roles import Limits
from parley_contracts.settings import PutSystemSettings, SystemSettingsChanges

TRIES = 200


async def test_tokens_come_with_their_user(auth: Any) -> None:
    tokens = await auth.register()
    assert tokens.user == User(
        id=1,
        username="Ann",
        email="ann@example.org",
        role="ADMIN",
        created_at=auth.clock.now(),
        last_login_at=auth.clock.now(),
    )
    assert (await auth.log_in()).user == tokens.user
    assert (await auth.refresh(tokens)).user == tokens.user


async def test_who_names_no_username_is_called_what_stands_before_the_at(auth: Any) -> None:
    assert (await auth.accounts.register(Register(email="Bob.B@example.org", password="abcd5678"))).user.username == "bob.b"
    long = await auth.accounts.register(Register(email="x" * 60 + "@example.org", password="abcd5678"))
    assert long.user.username == "x" * 50


async def test_clients_that_do_not_refresh_get_a_day_and_others_a_quarter_hour(auth: Any) -> None:
    short, long = await auth.register(), await auth.log_in(is_long_lived=True)
    registered = await auth.register("bob@example.org", is_long_lived=True)
    assert [tokens.expires_in_s for tokens in (short, long, registered)] == [900, 86_400, 86_400]
    assert (auth.principal(long).expires_at - auth.clock.now()).total_seconds() == 86_400
    assert (await auth.refresh(long)).expires_in_s == 900


async def test_a_token_bears_the_limits_of_its_role(auth: Any) -> None:
    assert auth.principal(await auth.register()).limits == Limits()
    assert auth.principal(await auth.register("bob@example.org")).limits == Limits(model_configs=20)


async def test_registration_ends_when_the_setting_says_so_and_begins_again(auth: Any) -> None:
    await auth.register()
    for is_enabled in (False, True):
        changes = SystemSettingsChanges(registration_enabled=is_enabled)
        await auth.tell(auth.settings.put_system_settings, PutSystemSettings(actor_id=1, changes=changes))
        if is_enabled:
            assert await auth.register("bob@example.org")
        else:
            with pytest.raises(RegistrationClosed):
                await auth.register("bob@example.org")


async def test_login_errors_are_distinct_only_where_the_setting_says_so(make_auth: Callable[..., Any]) -> None:
    distinct = make_auth(auth_distinct_login_errors=True)
    await distinct.register()
    with pytest.raises(EmailNotFound):
        await distinct.log_in("nobody@example.org")
    with pytest.raises(PasswordIncorrect):
        await distinct.log_in(password="wrong password 1")
    await distinct.rows("UPDATE auth.users SET status = 'disabled'")
    with pytest.raises(InvalidCredentials):
        await distinct.log_in()


async def test_a_disabled_user_is_refused_like_a_wrong_password(auth: Any) -> None:
    await auth.register()
    await auth.rows("UPDATE auth.users SET status = 'disabled'")
    bodies = []
    for password in ("correct horse 1", "wrong password 1"):
        with pytest.raises(InvalidCredentials) as refusal:
            await auth.log_in(password=password)
        bodies.append(refusal.value.body())
    assert bodies[0] == bodies[1]


# --- hashes from elsewhere ---


async def imported(auth: Any, stored: str) -> None:
    await auth.register()
    await auth.rows("UPDATE auth.users SET password_hash = :stored", stored=stored)


@pytest.mark.parametrize("prefix", [b"2a", b"2b"])
async def test_a_bcrypt_hash_logs_in_and_becomes_argon2id(auth: Any, prefix: bytes) -> None:
    await imported(auth, bcrypt.hashpw(b"Imported 1", bcrypt.gensalt(4, prefix)).decode())
    with pytest.raises(InvalidCredentials):
        await auth.log_in(password="imported 1")
    assert (await auth.value("SELECT password_hash FROM auth.users")).startswith("$2")
    assert await auth.log_in(password="Imported 1")
    assert (await auth.value("SELECT password_hash FROM auth.users")).startswith("$argon2id$")
    assert await auth.log_in(password="Imported 1")


@pytest.mark.parametrize("kind", ["2a", "2b", "2y"])
async def test_the_first_vector_of_crypt_blowfish_logs_in(auth: Any, kind: str) -> None:
    await imported(auth, f"${kind}$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW")
    assert await auth.log_in(password="U*U")


async def test_a_long_password_that_bcrypt_had_cut_logs_in_and_counts_whole_afterwards(auth: Any) -> None:
    password = "ü1" * 40
    await imported(auth, bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4)).decode())
    assert await auth.log_in(password=password)
    with pytest.raises(InvalidCredentials):
        await auth.log_in(password=password[:-1])


@pytest.mark.parametrize("stored", ["", "x", "!", "$2b$nonsense", "$2b$04$short", "$1$old$md5", "{SSHA}abc"])
async def test_a_hash_nobody_can_read_is_a_wrong_password_and_no_failure(auth: Any, stored: str) -> None:
    await imported(auth, stored)
    with pytest.raises(InvalidCredentials):
        await auth.log_in()


async def test_20_logins_beside_each_other_all_succeed_while_the_hash_is_renewed(auth: Any) -> None:
    await imported(auth, bcrypt.hashpw(b"Imported 1", bcrypt.gensalt(4)).decode())
    answers = await asyncio.gather(*(auth.log_in(password="Imported 1") for _ in range(20)))
    assert {tokens.user.id for tokens in answers} == {1}


# --- what the time of a refusal tells ---


@pytest_asyncio.fixture
async def slower() -> AsyncIterator[Passwords]:
    """As cheap as a difference can still be seen with: a hash takes a few milliseconds."""
    opened = Passwords(memory_kib=4096, time_cost=2)
    await opened.open()
    yield opened
    await opened.close()


async def test_the_time_of_a_refusal_does_not_tell_who_has_an_account(make_auth: Callable[..., Any], slower: Passwords) -> None:
    auth = make_auth(hashing=slower)
    await auth.register()
    took: dict[str, list[float]] = {"ann@example.org": [], "nobody@example.org": []}
    for _ in range(TRIES):
        for email, seconds in took.items():  # by turns, so that a busy machine slows both
            began = time.perf_counter()
            with pytest.raises(ParleyError):
                await auth.accounts.log_in(LogIn(email=email, password="wrong password 1"))
            seconds.append(time.perf_counter() - began)
    known, unknown = (statistics.median(seconds) for seconds in took.values())
    assert abs(known - unknown) / max(known, unknown) < 0.1, f"known {known * 1000:.2f} ms, unknown {unknown * 1000:.2f} ms"


async def test_who_is_disabled_while_their_password_is_verified_is_not_logged_in(
    auth: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await auth.register()
    real = auth.passwords.verify

    async def slowly(password: str, stored: str | None) -> Any:
        verified = await real(password, stored)
        await auth.rows("UPDATE auth.users SET status = 'disabled'")
        return verified

    monkeypatch.setattr(auth.passwords, "verify", slowly)
    with pytest.raises(InvalidCredentials):
        await auth.log_in()
    assert await auth.value("SELECT count(*) FROM auth.refresh_tokens") == 1  # the registration's
