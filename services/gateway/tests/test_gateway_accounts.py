"""One's own account at the edge: both spellings, cookies, and what is refused."""

from datetime import UTC, datetime
from typing import Any

import pytest

from parley_contracts.accounts import (
    ChangeEmail,
    ChangePassword,
    ChangePasswordKnowingOld,
    ChangeUsername,
    GetUser,
    LogIn,
    LogOut,
    RefreshTokens,
    Register,
    Tokens,
    User,
)
from parley_contracts.errors import EmailTaken, InvalidCredentials, PasswordPolicy, TokenRevoked, WrongPassword

USER = User(id=7, username="Ada", email="ada@example.org", role="USER", created_at=datetime(2026, 1, 31, tzinfo=UTC))
TOKENS = Tokens(access_token="an-access-token", refresh_token="rt-new", expires_in_s=900, user=USER)
S2_TOKENS = {"access_token": "an-access-token", "refresh_token": "rt-new", "token_type": "bearer", "expires_in": 900}
ME = {"id": 7, "username": "Ada", "email": "ada@example.org", "user_group": "user"}
API_USER = {
    "id": 7,
    "username": "Ada",
    "email": "ada@example.org",
    "role": "USER",
    "status": "active",
    "createdAt": "2026-01-31T00:00:00.000Z",
    "lastLoginAt": None,
}
API_AUTH = {"token": "an-access-token", "refreshToken": "rt-new", "expiresIn": 900, "user": API_USER}
REFRESH = {"Authorization": "Bearer rt-old"}


async def test_whoever_gets_tokens_gets_the_cookie_for_event_sources_too(at_the_edge: Any) -> None:
    edge = at_the_edge
    edge.others.says |= dict.fromkeys((Register, LogIn, RefreshTokens, ChangePassword, ChangePasswordKnowingOld), TOKENS)
    account = {"email": "ada@example.org", "password": "correct horse 1"}
    for method, path, body, headers in (
        ("POST", "/user/register", {**account, "username": "Ada"}, {}),
        ("POST", "/user/login", account, {}),
        ("POST", "/user/refresh", None, REFRESH),
        ("POST", "/user/me/password", {"new_password": "correct horse 2"}, REFRESH),
        ("POST", "/api/auth/register", account, {}),
        ("POST", "/api/auth/login", account, {}),
        ("PUT", "/api/auth/password", {"currentPassword": "a", "newPassword": "b"}, edge.signed_in()),
    ):
        answer = await edge.client.request(method, path, json=body, headers=headers)
        assert answer.status_code == (201 if path.endswith("register") else 200), answer.text
        cookie = answer.headers["set-cookie"]
        assert cookie == "parley_access=an-access-token; HttpOnly; Max-Age=900; Path=/; SameSite=lax"
        if path.startswith("/user/"):
            assert answer.json() == S2_TOKENS
        else:
            assert answer.json() == {"success": True, "data": API_AUTH, "error": None}


async def test_a_cookie_is_secure_on_https(at_the_edge: Any) -> None:
    at_the_edge.others.says[RefreshTokens] = TOKENS
    answer = await at_the_edge.client.post("/user/refresh", headers={**REFRESH, "X-Forwarded-Proto": "https"})
    assert answer.headers["set-cookie"].endswith("; Secure")


async def test_clients_that_know_no_refresh_get_long_tokens_and_the_others_short_ones(at_the_edge: Any) -> None:
    edge = at_the_edge
    edge.others.says |= {Register: TOKENS, LogIn: TOKENS, ChangePasswordKnowingOld: TOKENS}
    account = {"email": "ada@example.org", "password": "correct horse 1"}
    await edge.client.post("/api/auth/login", json=account)
    assert edge.others.last(LogIn).is_long_lived
    await edge.client.post("/api/auth/register", json=account)
    assert edge.others.last(Register).is_long_lived
    assert edge.others.last(Register).username is None
    await edge.client.post("/user/login", json=account)
    assert not edge.others.last(LogIn).is_long_lived
    await edge.client.put("/auth/password", json={"currentPassword": "a", "newPassword": "b"}, headers=edge.signed_in(9))
    assert edge.others.last(ChangePasswordKnowingOld) == ChangePasswordKnowingOld(
        user_id=9, current_password="a", new_password="b"
    )


async def test_logging_out_ends_the_login_and_clears_the_cookie(at_the_edge: Any) -> None:
    at_the_edge.others.says[LogOut] = None
    answer = await at_the_edge.client.post("/user/logout", headers=REFRESH)
    assert (answer.status_code, answer.json()) == (200, {"success": True})
    assert at_the_edge.others.last(LogOut).refresh_token == "rt-old"
    assert 'parley_access=""' in answer.headers["set-cookie"]
    assert "Max-Age=0" in answer.headers["set-cookie"]


async def test_one_changes_ones_own_name_and_email_only(at_the_edge: Any) -> None:
    edge = at_the_edge
    edge.others.says |= {ChangeUsername: USER, ChangeEmail: USER, GetUser: USER}
    headers = edge.signed_in(7)
    for path, body, asked in (
        ("/user/me/username", {"username": "Ada"}, ChangeUsername(user_id=7, username="Ada")),
        ("/user/me/email", {"email": "ada@example.org"}, ChangeEmail(user_id=7, email="ada@example.org")),
    ):
        answer = await edge.client.post(path, json=body, headers=headers)
        assert (answer.status_code, answer.json()) == (200, ME)
        assert edge.others.last(type(asked)) == asked
        for smuggled in ("role", "id", "user_id", "permissions", "user_group"):
            refused = await edge.client.post(path, json={**body, smuggled: 1}, headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (422, "validation_failed")
    answer = await edge.client.get("/api/auth/me", headers=headers)
    rights = {"permissions": ["models:create"], "limits": answer.json()["data"]["limits"]}
    assert answer.json() == {"success": True, "data": {**API_USER, **rights}, "error": None}
    assert "turnsPerMinute" in rights["limits"]


@pytest.mark.parametrize(
    ("path", "kind", "error", "status"),
    [
        ("/user/register", Register, EmailTaken(), 409),
        ("/api/auth/register", Register, PasswordPolicy(reason="is too short"), 422),
        ("/user/login", LogIn, InvalidCredentials(), 401),
        ("/api/auth/login", LogIn, InvalidCredentials(), 401),
        ("/user/refresh", RefreshTokens, TokenRevoked(), 401),
        ("/user/me/password", ChangePassword, WrongPassword(), 422),
        ("/user/logout", LogOut, TokenRevoked(), 401),
    ],
)
async def test_what_auth_refuses_is_told_in_the_common_shape(
    at_the_edge: Any, path: str, kind: type, error: Exception, status: int
) -> None:
    body: dict[str, str] = {"email": "ada@example.org", "password": "x"}
    if path == "/user/register":
        body["username"] = "Ada"
    if path == "/user/me/password":
        body = {"new_password": "x"}
    at_the_edge.others.says[kind] = error
    answer = await at_the_edge.client.post(path, json=body, headers=REFRESH)
    assert answer.status_code == status
    assert answer.json() == {"success": False, "error": str(error), "code": error.code, "data": None}  # type: ignore[attr-defined]
    assert "set-cookie" not in answer.headers


async def test_an_access_token_opens_no_refresh_route_without_auth_and_the_reverse(at_the_edge: Any) -> None:
    for method, path in (("GET", "/user/me"), ("GET", "/api/auth/me"), ("POST", "/user/me/username")):
        answer = await at_the_edge.client.request(method, path, json={"username": "x"}, headers=REFRESH)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    for path in ("/user/me/password", "/user/logout", "/user/refresh"):
        answer = await at_the_edge.client.post(path, json={"new_password": "x"})
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


async def test_the_public_keys_are_public(at_the_edge: Any) -> None:
    answer = await at_the_edge.client.get("/.well-known/jwks.json")
    [key] = answer.json()["keys"]
    assert (key["kid"], key["kty"], key["crv"], key["alg"]) == ("a-key", "OKP", "Ed25519", "EdDSA")
    assert "d" not in key


async def test_whoever_tries_one_nonsense_token_after_another_is_told_to_wait(at_the_edge: Any) -> None:
    answers = []
    for number in range(300):  # sixty at once, then one a second: a slow machine needs more of them
        headers = {"Authorization": f"Bearer nonsense-{number}"}
        answers.append(await at_the_edge.client.get("/v1/models", headers=headers))
        if answers[-1].status_code == 429:
            break
    assert [answer.status_code for answer in answers[:50]] == [401] * 50
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["retry-after"]) >= 1
    signed_in = await at_the_edge.client.get("/user/me", headers=at_the_edge.signed_in())
    assert signed_in.status_code != 429
