"""Accounts through the public API: one's own, logins that end, keys, users, roles, settings."""

import asyncio
import secrets
import time
from typing import Any

import httpx
import pytest

from parley_contracts.ids import new_id
from tests.e2e.answers import bearer, data, refused
from tests.e2e.harness import PASSWORD, Person, RunningParley, eventually


def an_email() -> str:
    return f"{secrets.token_hex(6)}@example.org"


async def until_refused(person: Person, code: str, *, gateway: int = 0) -> float:
    """Seconds until the person's access token is refused."""
    began = time.monotonic()

    async def is_refused() -> bool:
        answer = await client.get("/chat/sessions")
        return answer.status_code == 401 and answer.json()["code"] == code

    async with person.on(gateway) as client:
        await eventually(is_refused, within_s=5)
    return time.monotonic() - began


async def admin_of(parley: RunningParley) -> httpx.AsyncClient:
    """The administrator, with a fresh token."""
    assert parley.admin is not None
    answer = await parley.admin.client.post("/user/login", json={"email": parley.admin.email, "password": PASSWORD})
    parley.admin.client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
    return parley.admin.client


# --- one's own account ----------------------------------------------------------------------------------------------


async def test_one_changes_ones_name_and_email_and_logs_in_with_the_new_one(parley: RunningParley, person: Person) -> None:
    email = an_email()
    me = (await person.client.post("/user/me/username", json={"username": "Ada"})).json()
    assert me == {"id": person.id, "username": "Ada", "email": person.email, "user_group": "user"}
    me = (await person.client.post("/user/me/email", json={"email": email})).json()
    assert me["email"] == email
    assert (await person.client.get("/user/me")).json() == me
    assert (await person.client.post("/user/login", json={"email": email, "password": PASSWORD})).status_code == 200
    refused(
        await person.client.post("/user/login", json={"email": person.email, "password": PASSWORD}), 401, "invalid_credentials"
    )
    assert parley.admin is not None
    refused(await person.client.post("/user/me/email", json={"email": parley.admin.email}), 409, "email_taken")
    refused(await person.client.post("/user/me/email", json={"email": "nonsense"}), 422, "invalid_email")
    refused(await person.client.post("/user/me/username", json={"username": ""}), 422, "validation_failed")


async def test_day_long_tokens_come_in_the_envelope_with_their_user(parley: RunningParley) -> None:
    email = an_email()
    async with httpx.AsyncClient(base_url=parley.gateways[0], timeout=60, trust_env=False) as client:
        made = data(await client.post("/api/auth/register", json={"email": email, "password": PASSWORD}), 201)
        assert made["user"]["username"] == email.partition("@")[0]
        assert (made["user"]["role"], made["user"]["status"], made["expiresIn"]) == ("USER", "active", 86_400)
        auth = data(await client.post("/api/auth/login", json={"email": email, "password": PASSWORD}))
        me = data(await client.get("/api/auth/me", headers=bearer(auth["token"])))
        assert me["permissions"] == ["models:create"]
        assert me["limits"]["modelConfigs"] == 20
        passwords = {"currentPassword": "wrong", "newPassword": "correct horse 2"}
        refused(await client.put("/api/auth/password", json=passwords, headers=bearer(auth["token"])), 422, "wrong_password")
        passwords = {"currentPassword": PASSWORD, "newPassword": "short"}
        refused(await client.put("/api/auth/password", json=passwords, headers=bearer(auth["token"])), 422, "password_policy")
        passwords = {"currentPassword": PASSWORD, "newPassword": "correct horse 2"}
        changed = data(await client.put("/api/auth/password", json=passwords, headers=bearer(auth["token"])))
        assert (await client.get("/api/auth/me", headers=bearer(changed["token"]))).status_code == 200
        refused(await client.post("/user/refresh", headers=bearer(auth["refreshToken"])), 401, "token_revoked")
        refused(await client.post("/api/auth/register", json={"email": email, "password": PASSWORD}), 409, "email_taken")


async def test_nobody_smuggles_a_role_in(parley: RunningParley, person: Person) -> None:
    account = {"email": an_email(), "password": PASSWORD}
    for name in ("role", "is_admin", "group", "id", "permissions", "status", "user_group"):
        for path in ("/user/register", "/api/auth/register"):
            named = {"username": "x"} if path.startswith("/user") else {}
            refused(await person.client.post(path, json={**account, **named, name: "ADMIN"}), 422, "validation_failed")
        for path, body in (("/user/me/username", {"username": "x"}), ("/user/me/email", {"email": an_email()})):
            refused(await person.client.post(path, json={**body, name: "ADMIN"}), 422, "validation_failed")
        answer = await person.client.put("/api/settings/personal", json={"theme": "dark", name: "ADMIN"})
        refused(answer, 422, "validation_failed")
    me = data(await person.client.get("/api/auth/me"))
    assert (me["role"], me["username"], me["email"]) == ("USER", "Someone", person.email)
    listed = await (await admin_of(parley)).get("/api/users", params={"q": account["email"]})
    assert listed.json()["meta"]["total"] == 0


# --- logins and their ends --------------------------------------------------------------------------------------------


async def test_twenty_parallel_refreshes_on_two_gateways_give_one_successor(person: Person) -> None:
    headers = bearer(person.tokens["refresh_token"])
    async with person.on(1) as other:
        asked = [client.post("/user/refresh", headers=headers) for client in (person.client, other) for _ in range(10)]
        answers = await asyncio.gather(*asked)
    assert {answer.status_code for answer in answers} == {200}
    [successor] = {answer.json()["refresh_token"] for answer in answers}
    assert successor != person.tokens["refresh_token"]
    assert (await person.client.post("/user/refresh", headers=bearer(successor))).status_code == 200


@pytest.mark.parametrize("how", ["log out", "change the password", "be disabled"])
async def test_a_login_that_ends_is_refused_on_both_gateways_and_its_stream_closes_within_five_seconds(
    parley: RunningParley, person: Person, how: str
) -> None:
    session = await person.session()
    headers = bearer(person.tokens["refresh_token"])
    admin = await admin_of(parley)
    async with person.asks(session, "[sim tokens=400 delay_ms=50]", gateway=1) as stream:
        await stream.reads_words(3)
        match how:
            case "log out":
                assert (await person.client.post("/user/logout", headers=headers)).json() == {"success": True}
                assert (await person.client.post("/user/logout", headers=headers)).json() == {"success": True}
            case "change the password":
                await asyncio.sleep(1)  # tokens made in the second of the change are good
                body = {"new_password": "correct horse 2"}
                answer = await person.client.post("/user/me/password", json=body, headers=headers)
                assert answer.status_code == 200, answer.text
                assert (await person.client.get("/user/me", headers=bearer(answer.json()["access_token"]))).status_code == 200
            case _:
                assert data(await admin.put(f"/api/users/{person.id}", json={"status": "disabled"}))["status"] == "disabled"
        async with asyncio.timeout(5):
            reader = await stream.reads_to_the_end()
    assert reader.ended is None  # cut, not ended
    assert await until_refused(person, "token_revoked") < 5
    assert await until_refused(person, "token_revoked", gateway=1) < 5
    refused(await person.client.post("/user/refresh", headers=headers), 401, "token_revoked")
    if how == "be disabled":
        login = {"email": person.email, "password": PASSWORD}
        refused(await person.client.post("/user/login", json=login), 401, "invalid_credentials")


# --- API keys ---------------------------------------------------------------------------------------------------------


async def test_a_key_asks_models_and_opens_nothing_else_until_it_is_deleted(person: Person) -> None:
    made = data(await person.client.post("/api/keys", json={"name": "A program"}), 201)
    assert made["key"].startswith("pk-")
    assert (made["scopes"], made["models"], made["lastUsedAt"]) == (["openai"], None, None)
    [listed] = data(await person.client.get("/api/keys"))
    assert listed == {name: value for name, value in made.items() if name != "key"}
    headers = bearer(made["key"])
    body = {"model": "simulator", "messages": [{"role": "user", "content": "[sim tokens=3]"}]}
    answer = await person.client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.json()["choices"][0]["message"]["content"] == "word1 word2 word3 "
    for method, path in (
        ("GET", "/chat/sessions"),
        ("GET", "/user/me"),
        ("GET", "/api/keys"),
        ("GET", "/api/users"),
        ("GET", "/api/usage/budget"),
        ("GET", "/api/settings/personal"),
    ):
        refused(await person.client.request(method, path, headers=headers), 403, "forbidden")
    assert data(await person.client.delete(f"/api/keys/{made['id']}")) == {"id": made["id"]}
    refused(await person.client.delete(f"/api/keys/{made['id']}"), 404, "key_not_found")

    async def is_refused() -> bool:
        return (await person.client.get("/v1/models", headers=headers)).status_code == 401

    await eventually(is_refused, within_s=5)


async def test_a_key_with_scopes_and_models_is_held_to_them(person: Person) -> None:
    wanted = {"name": "Narrow", "scopes": ["openai", "chat", "usage"], "models": ["simulator"]}
    headers = bearer(data(await person.client.post("/api/keys", json=wanted), 201)["key"])
    assert (await person.client.get("/chat/sessions", headers=headers)).status_code == 200
    assert (await person.client.get("/api/usage/budget", headers=headers)).status_code == 200
    refused(await person.client.get("/activity/status/all", headers=headers), 403, "forbidden")
    models = (await person.client.get("/v1/models", headers=headers)).json()["data"]
    assert [model["id"] for model in models] == ["simulator"]
    body = {"model": "simulator/slow", "messages": [{"role": "user", "content": "Hello"}]}
    answer = await person.client.post("/v1/chat/completions", json=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    wrong: dict[str, Any]
    for wrong in (
        {"scopes": []},
        {"scopes": ["admin"]},
        {"name": ""},
        {"budget": -1},
        {"userId": 1},
        {"expiresAt": "2020-01-01"},
    ):
        refused(await person.client.post("/api/keys", json={"name": "x", **wrong}), 422, "validation_failed")


async def test_a_foreign_key_is_answered_like_a_missing_one(parley: RunningParley, person: Person) -> None:
    stranger = await parley.register()
    made = data(await person.client.post("/api/keys", json={"name": "Mine"}), 201)
    foreign = await stranger.client.delete(f"/api/keys/{made['id']}")
    missing = await stranger.client.delete(f"/api/keys/{new_id()}")
    refused(foreign, 404, "key_not_found")
    assert foreign.json() == missing.json()
    assert data(await stranger.client.get("/api/keys")) == []
    await stranger.close()


# --- users, roles, settings -------------------------------------------------------------------------------------------

ADMIN_ROUTES: tuple[tuple[str, str, dict[str, Any] | None], ...] = (
    ("GET", "/api/users", None),
    ("POST", "/api/users", {"email": "x@example.org", "password": PASSWORD}),
    ("GET", "/api/users/1", None),
    ("PUT", "/api/users/1", {"username": "x"}),
    ("DELETE", "/api/users/1", None),
    ("GET", "/api/roles", None),
    ("PUT", "/api/roles/EDITOR", {"permissions": [], "limits": {}}),
    ("GET", "/api/settings/system", None),
    ("PUT", "/api/settings/system", {"appName": "Mine"}),
    ("GET", "/api/usage/budgets/1", None),
    ("PUT", "/api/usage/budgets/1", {"limit": 1}),
)


@pytest.mark.parametrize(("method", "path", "body"), ADMIN_ROUTES, ids=[f"{method} {path}" for method, path, _ in ADMIN_ROUTES])
async def test_an_administrators_route_is_shut_to_everyone_else(
    parley: RunningParley, person: Person, method: str, path: str, body: dict[str, Any] | None
) -> None:
    async with httpx.AsyncClient(base_url=parley.gateways[0], trust_env=False) as anonymous:
        refused(await anonymous.request(method, path, json=body), 401, "unauthenticated")
    refused(await person.client.request(method, path, json=body), 403, "forbidden")
    if method == "GET":
        assert (await (await admin_of(parley)).get(path)).status_code == 200


async def test_an_administrator_makes_finds_changes_and_deletes_a_user(parley: RunningParley) -> None:
    admin = await admin_of(parley)
    email = an_email()
    made = data(await admin.post("/api/users", json={"email": email, "password": PASSWORD, "role": "user"}), 201)
    assert (made["email"], made["role"], made["lastLoginAt"]) == (email, "USER", None)
    listed = (await admin.get("/api/users", params={"q": email.upper(), "role": "user", "status": "active"})).json()
    assert (listed["data"], listed["meta"]) == ([made], {"total": 1, "page": 1, "limit": 50})
    changed = data(await admin.put(f"/api/users/{made['id']}", json={"username": "Bob", "status": "DISABLED"}))
    assert (changed["username"], changed["status"]) == ("Bob", "disabled")
    refused(await admin.put(f"/api/users/{made['id']}", json={"role": "NO_SUCH_ROLE"}), 404, "role_not_found")
    refused(await admin.put(f"/api/users/{made['id']}", json={"id": 1}), 422, "validation_failed")
    refused(await admin.post("/api/users", json={"email": email, "password": PASSWORD}), 409, "email_taken")
    refused(await admin.get("/api/users", params={"limit": 0}), 422, "validation_failed")
    assert data(await admin.delete(f"/api/users/{made['id']}")) == {"id": made["id"]}
    refused(await admin.get(f"/api/users/{made['id']}"), 404, "user_not_found")
    assert (await admin.get("/api/users/abc")).status_code == 404


async def test_the_last_administrator_stays(parley: RunningParley) -> None:
    admin = await admin_of(parley)
    assert parley.admin is not None
    for body in ({"role": "USER"}, {"status": "disabled"}):
        refused(await admin.put(f"/api/users/{parley.admin.id}", json=body), 409, "invalid_transition")
    refused(await admin.delete(f"/api/users/{parley.admin.id}"), 409, "invalid_transition")
    refused(await admin.put("/api/roles/admin", json={"permissions": [], "limits": {}}), 409, "invalid_transition")


async def test_a_role_gives_its_permissions_and_takes_them_within_five_seconds(parley: RunningParley, person: Person) -> None:
    admin = await admin_of(parley)
    name = f"R{secrets.token_hex(4)}".upper()
    role = {"permissions": ["users:manage"], "limits": {"turnsPerMinute": 7}}
    made = data(await admin.put(f"/api/roles/{name}", json=role))
    assert (made["name"], made["permissions"], made["builtIn"]) == (name, ["users:manage"], False)
    assert made["limits"]["turnsPerMinute"] == 7
    assert name in [each["name"] for each in data(await admin.get("/api/roles"))]
    data(await admin.put(f"/api/users/{person.id}", json={"role": name}))
    assert await until_refused(person, "token_expired") < 5
    tokens = (await person.client.post("/user/refresh", headers=bearer(person.tokens["refresh_token"]))).json()
    person.client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
    assert (await person.client.get("/api/users")).status_code == 200
    refused(await person.client.get("/api/settings/system"), 403, "forbidden")
    assert (await person.client.get("/user/me")).json()["user_group"] == name.lower()
    answer = await person.client.put(f"/api/users/{person.id}", json={"role": "ADMIN"})
    refused(answer, 403, "forbidden")
    data(await admin.put(f"/api/users/{person.id}", json={"role": "USER"}))
    await asyncio.sleep(1)
    assert await until_refused(person, "token_expired") < 5


async def test_settings_are_changed_in_part_and_refused_where_they_are_wrong(parley: RunningParley, person: Person) -> None:
    admin = await admin_of(parley)
    before = data(await admin.get("/api/settings/system"))
    changed = data(await admin.put("/api/settings/system", json={"appName": "House", "monthlyBudgetDefault": 2.5}))
    assert changed == {**before, "appName": "House", "monthlyBudgetDefault": 2.5}
    assert data(await person.client.get("/api/settings/info"))["appName"] == "House"
    data(await admin.put("/api/settings/system", json={"appName": "Parley", "monthlyBudgetDefault": None}))
    assert data(await admin.get("/api/settings/system")) == before
    for wrong in ({"appName": None}, {"activityRetentionDays": 0}, {"contentFilter": {"action": "burn"}}, {"jwtSecret": "x"}):
        refused(await admin.put("/api/settings/system", json=wrong), 422, "validation_failed")
    own = data(await person.client.get("/api/settings/personal"))
    assert (own["language"], own["theme"]) == ("en", "system")
    changed = data(await person.client.put("/api/settings/personal", json={"language": "zh-CN", "theme": "dark"}))
    assert changed == {**own, "language": "zh-CN", "theme": "dark"}
    refused(await person.client.put("/api/settings/personal", json={"theme": "pink"}), 422, "validation_failed")


async def test_anyone_may_know_what_this_is_and_whether_it_works(parley: RunningParley) -> None:
    async with httpx.AsyncClient(base_url=parley.gateways[0], timeout=60, trust_env=False) as anonymous:
        info = data(await anonymous.get("/api/settings/info"))
        assert (info["name"], info["authMode"], info["registrationEnabled"]) == ("Parley", "multi", True)
        health = data(await anonymous.get("/api/settings/health"))
        assert health["status"] == "ok", health
        assert set(health["services"]) == {"gateway", "auth", "chat", "llm-router", "usage", "activity"}


async def test_while_auth_is_away_those_signed_in_go_on_chatting_and_nobody_logs_in(
    parley: RunningParley, person: Person
) -> None:
    session = await person.session()
    login = {"email": person.email, "password": PASSWORD}
    assert (await person.client.get("/chat/sessions")).status_code == 200
    parley.kill_all("auth")
    answer = await person.client.post("/user/login", json=login)
    async with person.asks(session, "[sim tokens=3]") as stream:
        assert (await stream.reads_to_the_end()).text == "word1 word2 word3 "
    refused(answer, 503, "service_unavailable")
    assert answer.headers["retry-after"]

    async def is_back() -> bool:
        return (await person.client.post("/user/login", json=login)).status_code == 200

    await eventually(is_back, within_s=20)
