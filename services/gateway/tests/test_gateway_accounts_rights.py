"""Rights that end: revoked tokens, open streams, and what API keys open."""

import asyncio
import hashlib
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from parley_contracts.accounts import (
    ApiKeyRevoked,
    FamilyRevoked,
    GetJwks,
    GetUser,
    KeysChanged,
    ListRevoked,
    Principal,
    Revocations,
    RightsChanged,
    User,
)
from parley_contracts.api_keys import CheckApiKey
from parley_contracts.errors import ServiceUnavailable, TokenRevoked, Unauthenticated
from parley_contracts.ids import new_id
from parley_contracts.model_configs import ListModelConfigs, ModelConfig
from parley_contracts.sessions import ListSessions, SessionPage
from parley_contracts.turns import GetTurn, Turn, TurnStatus
from parley_contracts.usage import Budget, GetBudget

NOW = datetime.now(UTC)
ZERO = Decimal(0)
FOREVER = datetime(9999, 12, 31, tzinfo=UTC)
USER = User(id=7, username="Ada", email="ada@example.org", role="USER", created_at=NOW)
KEY = "pk-" + "a" * 40


async def code(edge: Any, path: str, headers: dict[str, str], method: str = "GET") -> tuple[int, str]:
    answer = await edge.client.request(method, path, headers=headers)
    error = answer.json().get("error")
    return answer.status_code, error["code"] if isinstance(error, dict) else answer.json().get("code", "")


async def until_code(edge: Any, expected: str, headers: dict[str, str]) -> None:
    async with asyncio.timeout(5):
        while (await code(edge, "/user/me", headers))[1] != expected:  # noqa: ASYNC110 - it is told over HTTP
            await asyncio.sleep(0.02)


async def test_a_token_of_an_ended_login_is_refused_on_every_route_and_others_are_not(at_the_edge: Any) -> None:
    edge = at_the_edge
    edge.others.says[GetUser] = USER
    headers, other = edge.signed_in(family="one"), edge.signed_in(family="another")
    assert await code(edge, "/user/me", headers) == (200, "")
    await edge.others.bus.publish(FamilyRevoked(family="one", user_id=7))
    await until_code(edge, "token_revoked", headers)
    for method, path in (
        ("GET", "/chat/sessions"),
        ("POST", "/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", f"/chat/turns/{new_id()}/events"),
        ("GET", "/api/usage/budget"),
        ("PUT", "/api/auth/password"),
    ):
        assert await code(edge, path, headers, method) == (401, "token_revoked"), path
    assert await code(edge, "/user/me", other) == (200, "")


async def test_a_revocation_whose_event_was_missed_is_asked_for(at_the_edge: Any) -> None:
    edge = at_the_edge
    edge.others.says[GetUser] = USER
    headers = edge.signed_in(family="one")
    as_of = NOW + timedelta(seconds=1)
    edge.others.says[ListRevoked] = Revocations(as_of=as_of, families=(FamilyRevoked(family="one", user_id=7),))
    assert await code(edge, "/user/me", headers) == (200, "")
    began = time.monotonic()
    await until_code(edge, "token_revoked", headers)
    assert time.monotonic() - began < 5
    await edge.gateway.edge.authenticator._revocations.learn()
    assert edge.others.last(ListRevoked).since == as_of


@pytest.mark.parametrize(("must_log_in", "expected"), [(True, "token_revoked"), (False, "token_expired")])
async def test_tokens_from_before_a_change_of_rights_are_refused_and_later_ones_are_not(
    at_the_edge: Any,
    must_log_in: bool,  # noqa: FBT001 - a parameter of the test
    expected: str,
) -> None:
    edge = at_the_edge
    edge.others.says[GetUser] = USER
    now = int(time.time())
    old, new, foreign = edge.signed_in(iat=now - 5), edge.signed_in(iat=now), edge.signed_in(8, iat=now - 5)
    event = RightsChanged(user_id=7, before=datetime.fromtimestamp(now, UTC), must_log_in=must_log_in)
    await edge.others.bus.publish(event)
    await until_code(edge, expected, old)
    assert await code(edge, "/user/me", new) == (200, "")
    assert await code(edge, "/user/me", foreign) == (200, "")


async def test_a_changed_role_sends_all_who_have_it_to_refresh(at_the_edge: Any) -> None:
    edge = at_the_edge
    edge.others.says[GetUser] = USER
    now = int(time.time())
    await edge.others.bus.publish(RightsChanged(role="EDITOR", before=datetime.fromtimestamp(now, UTC)))
    await until_code(edge, "token_expired", edge.signed_in(role="EDITOR", iat=now - 5))
    assert await code(edge, "/user/me", edge.signed_in(role="USER", iat=now - 5)) == (200, "")


async def test_keys_that_auth_gave_up_verify_nothing_any_more(at_the_edge: Any) -> None:
    edge = at_the_edge
    edge.others.says[GetUser] = USER
    headers = edge.signed_in()
    assert await code(edge, "/user/me", headers) == (200, "")
    await edge.others.bus.publish(KeysChanged(key_ids=("a-key",)))
    assert await code(edge, "/user/me", headers) == (200, "")
    edge.others.says[GetJwks] = ()
    await edge.others.bus.publish(KeysChanged(key_ids=("another-key",)))
    await until_code(edge, "unauthenticated", headers)


async def test_auth_away_leaves_valid_tokens_valid(at_the_edge: Any) -> None:
    edge = at_the_edge
    edge.others.says[GetBudget] = Budget(
        user_id=7, limit_usd=None, spent_usd=ZERO, held_usd=ZERO, period="2026-01", resets_at=NOW
    )
    headers = edge.signed_in()
    assert await code(edge, "/api/usage/budget", headers) == (200, "")
    edge.others.says[ListRevoked] = ServiceUnavailable(service="auth")
    await edge.gateway.edge.authenticator._revocations.learn()
    assert await code(edge, "/api/usage/budget", headers) == (200, "")


def running_turn() -> Turn:
    return Turn(
        turn_id=new_id(),
        session_id=new_id(),
        user_message_id=new_id(),
        message_id=new_id(),
        status=TurnStatus.RUNNING,
        attempt=1,
        model="simulator",
        provider="SIMULATOR",
        dialect="s0",
        created_at=NOW,
    )


@pytest.mark.parametrize(
    "end",
    [
        FamilyRevoked(family="one", user_id=7),
        RightsChanged(user_id=7, before=NOW + timedelta(seconds=600), must_log_in=True),
        RightsChanged(role="USER", before=NOW + timedelta(seconds=600)),
    ],
    ids=["logged-out", "disabled", "demoted"],
)
async def test_open_streams_close_when_their_rights_end(at_the_edge: Any, end: Any) -> None:
    edge = at_the_edge
    turn = running_turn()
    edge.others.says[GetTurn] = turn
    path = f"/chat/turns/{turn.turn_id}/events"
    async with (
        edge.client.stream("GET", path, headers=edge.signed_in(family="one")) as ending,
        edge.client.stream("GET", path, headers=edge.signed_in(8, family="another", role="EDITOR")) as going_on,
    ):
        read, other = ending.aiter_raw(), going_on.aiter_raw()
        assert await anext(read)
        assert await anext(other)
        await edge.others.bus.publish(end)
        async with asyncio.timeout(5):
            assert [chunk async for chunk in read if b"data:" in chunk] == []
        still_open = asyncio.ensure_future(anext(other))
        await asyncio.sleep(0.3)
        assert not still_open.done()
        still_open.cancel()
        await asyncio.gather(still_open, return_exceptions=True)


async def test_an_admin_route_is_shut_to_everyone_else(at_the_edge: Any) -> None:
    edge = at_the_edge
    edge.others.says[GetBudget] = Budget(
        user_id=9, limit_usd=None, spent_usd=ZERO, held_usd=ZERO, period="2026-01", resets_at=NOW
    )
    assert await code(edge, "/api/usage/budgets/9", {}) == (401, "unauthenticated")
    assert await code(edge, "/api/usage/budgets/9", edge.signed_in(7)) == (403, "forbidden")
    assert await code(edge, "/api/usage/budgets/9", edge.signed_in(7, role="ADMIN")) == (200, "")
    changed = await edge.client.put("/api/usage/budgets/9", json={"limit": 5}, headers=edge.signed_in(7))
    assert (changed.status_code, changed.json()["code"]) == (403, "forbidden")


# --- API keys -------------------------------------------------------------------------------------------------------


def key_of(*scopes: str, models: tuple[str, ...] | None = None, role: str = "USER", key_id: str | None = None) -> Principal:
    return Principal(
        user_id=7,
        role=role,
        permissions=("users:manage",),
        family="",
        expires_at=FOREVER,
        issued_at=datetime.now(UTC),
        key_id=key_id or new_id(),
        scopes=scopes,
        models=models,
    )


async def test_a_key_opens_the_routes_of_its_scopes_and_no_others(at_the_edge: Any) -> None:
    edge = at_the_edge
    budget = Budget(user_id=7, limit_usd=None, spent_usd=ZERO, held_usd=ZERO, period="2026-01", resets_at=NOW)
    edge.others.says |= {ListModelConfigs: (), ListSessions: SessionPage(sessions=(), total=0), GetBudget: budget}
    routes = {"openai": "/v1/models", "chat": "/chat/sessions", "usage": "/api/usage/budget"}
    for number, scope in enumerate(routes):
        edge.others.says[CheckApiKey] = key_of(scope, role="ADMIN")
        headers = {"Authorization": f"Bearer pk-{number}" + "b" * 39}
        for needed, path in routes.items():
            assert await code(edge, path, headers) == ((200, "") if needed == scope else (403, "forbidden")), (scope, path)
        for method, path in (
            ("GET", "/user/me"),
            ("POST", "/user/me/email"),
            ("GET", "/api/auth/me"),
            ("PUT", "/api/auth/password"),
            ("GET", "/api/usage/budgets/7"),
            ("PUT", "/api/usage/budgets/7"),
        ):
            assert await code(edge, path, headers, method) in {(403, "forbidden"), (422, "validation_failed")}
        assert await code(edge, "/user/me", headers) == (403, "forbidden")


async def test_only_the_hash_of_a_key_travels_and_it_is_asked_for_once_in_thirty_seconds(at_the_edge: Any) -> None:
    edge = at_the_edge
    edge.others.says |= {ListModelConfigs: (), CheckApiKey: key_of("openai")}
    for _ in range(3):
        assert await code(edge, "/v1/models", {"Authorization": f"Bearer {KEY}"}) == (200, "")
    asked = [message for message in edge.others.heard if isinstance(message, CheckApiKey)]
    assert asked == [CheckApiKey(hash=hashlib.sha256(KEY.encode()).hexdigest())]


async def test_a_deleted_key_is_refused_at_its_event_and_its_streams_close(at_the_edge: Any) -> None:
    edge = at_the_edge
    key = key_of("openai", "chat")
    turn = running_turn()
    edge.others.says |= {ListModelConfigs: (), CheckApiKey: key, GetTurn: turn}
    headers = {"Authorization": f"Bearer {KEY}"}
    async with edge.client.stream("GET", f"/chat/turns/{turn.turn_id}/events", headers=headers) as stream:
        read = stream.aiter_raw()
        assert await anext(read)
        edge.others.says[CheckApiKey] = TokenRevoked()
        await edge.others.bus.publish(ApiKeyRevoked(key_id=key.key_id or "", user_id=7))
        async with asyncio.timeout(5):
            assert [chunk async for chunk in read if b"data:" in chunk] == []
    assert await code(edge, "/v1/models", headers) == (401, "token_revoked")


async def test_an_unknown_key_is_unauthenticated(at_the_edge: Any) -> None:
    at_the_edge.others.says[CheckApiKey] = Unauthenticated()
    assert await code(at_the_edge, "/v1/models", {"Authorization": f"Bearer {KEY}"}) == (401, "unauthenticated")


async def test_a_key_sees_and_asks_the_models_of_its_list_only(at_the_edge: Any) -> None:
    edge = at_the_edge
    configs = tuple(ModelConfig(id=new_id(), name=name, provider="X", base_url="", model=name) for name in ("one", "two"))
    edge.others.says |= {ListModelConfigs: configs, CheckApiKey: key_of("openai", models=("one",))}
    headers = {"Authorization": f"Bearer {KEY}"}
    listed = await edge.client.get("/v1/models", headers=headers)
    assert [model["id"] for model in listed.json()["data"]] == ["one"]
    assert await code(edge, "/v1/models/two", headers) == (404, "model_not_found")
    body = {"model": "two", "messages": [{"role": "user", "content": "Hello"}]}
    asked = await edge.client.post("/v1/chat/completions", json=body, headers=headers)
    assert (asked.status_code, asked.json()["error"]["code"]) == (404, "model_not_found")
