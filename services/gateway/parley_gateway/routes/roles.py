"""Roles: what those who have one may do, and how much of it; ADMIN itself stays as it is (S1-31, S2-10)."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from parley_contracts.accounts import Principal
from parley_contracts.roles import Limits, ListRoles, Permission, PutRole, Role
from parley_gateway.edge import CamelBody, TheEdge, UserRoute, needs
from parley_gateway.routes.accounts import envelope

router = APIRouter(prefix="/api/roles", tags=["roles"], route_class=UserRoute)

Manager = Annotated[Principal, needs("users:manage")]
Amount = Annotated[int, Field(ge=0, le=2**31 - 1)]


class LimitsBody(CamelBody):
    model_configs: Amount | None = None
    requests_per_minute: Amount | None = None
    turns_per_minute: Amount | None = None
    connections: Amount | None = None
    concurrent_turns: Amount | None = None


class RoleBody(CamelBody):
    permissions: Annotated[list[Permission], Field(max_length=100)]
    limits: LimitsBody


def role_json(role: Role) -> dict[str, Any]:
    return {
        "name": role.name,
        "permissions": role.permissions,
        "limits": msgspec.to_builtins(role.limits),
        "builtIn": role.is_built_in,
    }


@router.get("")
async def list_roles(_manager: Manager, edge: TheEdge) -> Response:
    return envelope([role_json(role) for role in await edge.bus.ask(ListRoles())])


@router.put("/{name:role}")
async def put(name: str, body: RoleBody, manager: Manager, edge: TheEdge) -> Response:
    command = PutRole(
        actor_id=manager.user_id,
        name=name,
        permissions=tuple(dict.fromkeys(body.permissions)),
        limits=Limits(**body.limits.model_dump()),
    )
    return envelope(role_json(await edge.bus.ask(command)))
