"""API keys: one's own, listed, made and deleted; a key cannot make keys (S0-13)."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import Field
from starlette.responses import Response

from parley_contracts.api_keys import ApiKey, CreateApiKey, DeleteApiKey, ListApiKeys, Scope
from parley_gateway.edge import Caller, CamelBody, TheEdge, UserRoute, no_nul
from parley_gateway.formats import instant, usd
from parley_gateway.routes.accounts import envelope

router = APIRouter(prefix="/api/keys", tags=["keys"], route_class=UserRoute)


class ApiKeyBody(CamelBody):
    name: Annotated[str, Field(min_length=1, max_length=100)]
    expires_at: datetime | None = None
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=4)] = ("openai",)
    models: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=100)] | None = None
    budget: Annotated[Decimal, Field(gt=0, le=10**9, max_digits=20, decimal_places=10)] | None = None


def key_json(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "scopes": key.scopes,
        "models": key.models,
        "budget": usd(key.budget_usd),
        "expiresAt": instant(key.expires_at),
        "lastUsedAt": instant(key.last_used_at),
        "createdAt": instant(key.created_at),
    }


@router.get("")
async def list_keys(caller: Caller, edge: TheEdge) -> Response:
    return envelope([key_json(key) for key in await edge.bus.ask(ListApiKeys(user_id=caller.user_id))])


@router.post("", status_code=201)
async def create(body: ApiKeyBody, caller: Caller, edge: TheEdge) -> Response:
    """The answer is the one place that shows the key."""
    expires_at = body.expires_at
    if expires_at is not None and expires_at.tzinfo is None:
        expires_at = expires_at.replace(tzinfo=UTC)
    made = await edge.bus.ask(
        CreateApiKey(
            user_id=caller.user_id,
            name=no_nul(body.name, "name"),
            scopes=tuple(dict.fromkeys(body.scopes)),
            models=None if body.models is None else tuple(no_nul(model, "models") for model in body.models),
            budget_usd=body.budget,
            expires_at=expires_at,
        )
    )
    return envelope({**key_json(made.api_key), "key": made.key}, status=201)


@router.delete("/{id:id}")
async def delete(key_id: Annotated[str, Path(alias="id")], caller: Caller, edge: TheEdge) -> Response:
    await edge.bus.ask(DeleteApiKey(user_id=caller.user_id, id=key_id))
    return envelope({"id": key_id})
