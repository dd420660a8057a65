"""The edge without services: JSON, paths, addresses, errors."""

import msgspec
import pytest
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Match

from parley_contracts.errors import BudgetExceeded, InvalidJson, ParleyError, TurnInProgress, Unauthenticated
from parley_gateway.app import body_limit, create_app
from parley_gateway.authenticate import bearer
from parley_gateway.edge import parse_json
from parley_gateway.failures import as_parley_error, is_openai, render
from parley_gateway.middleware import ContextMiddleware
from parley_gateway.service import GatewayService
from parley_gateway.settings import GatewaySettings
from parley_runtime.memory_bus import MemoryBus, MemoryHub


@pytest.mark.parametrize(
    "data", [b"", b"{", b"NaN", b'{"a": Infinity}', b"\xff", b"[" * 100_000, b'{"a":' * 33 + b"1" + b"}" * 33], ids=repr
)
def test_what_is_no_strict_json_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidJson):
        parse_json(data)


def test_json_may_be_32_levels_deep_and_no_deeper() -> None:
    assert parse_json(b"[" * 32 + b"]" * 32)
    with pytest.raises(InvalidJson):
        parse_json(b"[" * 33 + b"]" * 33)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "abc"])
def test_only_a_bearer_token_is_a_token(header: str | None) -> None:
    with pytest.raises(Unauthenticated):
        bearer(header)


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.9", "", "203.0.113.9"),
        ("203.0.113.9", "1.2.3.4", "203.0.113.9"),
        ("10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "not an address", "not an address"),
    ],
)
def test_a_forged_forwarded_address_counts_only_behind_a_trusted_proxy(peer: str, forwarded: str, expected: str) -> None:
    middleware = ContextMiddleware(lambda *_: None, trusted_proxies="10.0.0.0/8")  # type: ignore[arg-type]
    headers = Headers({"x-forwarded-for": forwarded} if forwarded else {})
    assert middleware._client_ip({"client": (peer, 1)}, headers) == expected


def test_errors_have_the_shape_of_their_path() -> None:
    ours = msgspec.json.decode(render(TurnInProgress(turnId="01jd0000000000000000000001"), "/chat/completions").body)
    assert ours["success"] is False
    assert ours["details"] == {"turnId": "01jd0000000000000000000001"}
    theirs = render(BudgetExceeded(remaining_usd="0.1", resets_at="2026-02-01"), "/v1/chat/completions")
    assert (theirs.status_code, msgspec.json.decode(theirs.body)["error"]["type"]) == (402, "insufficient_quota")


def test_a_bug_is_internal_and_says_nothing_of_itself() -> None:
    error = as_parley_error(KeyError("secret detail"), openai=False)
    assert (error.code, error.http_status) == ("internal", 500)
    assert "secret" not in error.message


def test_an_unlisted_field_is_unsupported_for_openai_and_wrong_for_us() -> None:
    error = RequestValidationError([{"loc": ("body", "role"), "type": "extra_forbidden", "msg": "Extra inputs"}])
    assert as_parley_error(error, openai=True).fields["param"] == "role"
    assert as_parley_error(error, openai=False).problems[0].field == "role"


def test_an_unknown_path_is_not_found_and_a_wrong_method_is_said() -> None:
    assert as_parley_error(HTTPException(404), openai=False).code == "not_found"
    assert as_parley_error(HTTPException(405), openai=False).code == "method_not_allowed"
    cause = HTTPException(400)
    cause.__cause__ = InvalidJson(reason="it is empty")
    assert as_parley_error(cause, openai=False).code == "invalid_json"


def test_openai_paths_are_known_by_their_prefix_and_take_larger_bodies() -> None:
    assert all(is_openai(path) for path in ("/v1/models", "/chat/v1/models", "/api/v1/models"))
    assert not any(is_openai(path) for path in ("/chat/completions", "/v1x", "/api/usage/budget"))
    assert body_limit("/v1/chat/completions") == 6 * body_limit("/chat/completions")


async def _gateway() -> GatewayService:
    return GatewayService(GatewaySettings(node_env="test"), MemoryBus(MemoryHub(), service="gateway"))


@pytest.mark.parametrize(
    ("method", "path", "is_served"),
    [
        ("GET", "/chat/sessions", True),
        ("GET", "/chat/sessions/01jd0000000000000000000001", True),
        ("GET", "/chat/sessions/turn.x.y", False),
        ("GET", "/chat/sessions/01JD0000000000000000000001", False),
        ("POST", "/chat/v1/chat/completions", True),
        ("GET", "/v1/models/simulator/slow", True),
        ("GET", "/shared/short", False),
        ("PUT", "/api/usage/budgets/12", True),
        ("PUT", "/api/usage/budgets/abc", False),
    ],
)
async def test_a_route_matches_only_ids_of_its_grammar(method: str, path: str, is_served: bool) -> None:  # noqa: FBT001
    app = create_app((await _gateway()).edge)
    scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": [], "query_string": b""}
    assert any(route.matches(dict(scope))[0] is Match.FULL for route in app.router.routes) is is_served


def test_retry_after_is_a_whole_number_of_seconds() -> None:
    class Later(ParleyError):
        """Later."""

        status = 503

    assert render(Later(retry_after_s=0.2), "/x").headers["retry-after"] == "1"
    assert render(Later(retry_after_s=2.2), "/x").headers["retry-after"] == "3"
