"""Users, as an administrator sees and changes them; auth refuses what would leave nobody in charge (S3-34)."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BeforeValidator, Field
from starlette.responses import Response

from parley_contracts.accounts import GetUser, Principal
from parley_contracts.users import CreateUser, DeleteUser, ListUsers, UpdateUser
from parley_gateway.edge import CamelBody, TheEdge, UserRoute, needs, no_nul
from parley_gateway.routes.accounts import HASHING_S, Text, envelope, user_json

router = APIRouter(prefix="/api/users", tags=["users"], route_class=UserRoute)

Manager = Annotated[Principal, needs("users:manage")]
UserPath = Annotated[int, Path(alias="userId", ge=1, le=2**31 - 1)]


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


Status = Annotated[Literal["active", "disabled"], BeforeValidator(_lower)]
RoleName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")]


class NewUserBody(CamelBody):
    email: Text
    password: Text
    username: Text | None = None
    role: RoleName = "USER"


class UserChangesBody(CamelBody):
    username: Text | None = None
    email: Text | None = None
    role: RoleName | None = None
    status: Status | None = None
    password: Text | None = None


def _name(username: str | None) -> str | None:
    return None if username is None else no_nul(username, "username")


@router.get("")
async def list_users(
    _manager: Manager,
    edge: TheEdge,
    page: Annotated[int, Query(ge=1, le=10**6)] = 1,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    q: Annotated[str | None, Query(max_length=200)] = None,
    role: Annotated[str | None, Query(max_length=32)] = None,
    status: Annotated[Status | None, Query()] = None,
) -> Response:
    query = ListUsers(
        page=page, limit=limit, q=no_nul(q, "q") if q else None, role=no_nul(role, "role") if role else None, status=status
    )
    found = await edge.bus.ask(query)
    return envelope([user_json(user) for user in found.users], meta={"total": found.total, "page": page, "limit": limit})


@router.post("", status_code=201)
async def create(body: NewUserBody, manager: Manager, edge: TheEdge) -> Response:
    command = CreateUser(
        actor_id=manager.user_id,
        email=body.email,
        password=body.password,
        username=_name(body.username),
        role=body.role.upper(),
    )
    return envelope(user_json(await edge.bus.ask(command, timeout_s=HASHING_S)), status=201)


@router.get("/{userId:int}")
async def get(user_id: UserPath, _manager: Manager, edge: TheEdge) -> Response:
    return envelope(user_json(await edge.bus.ask(GetUser(user_id=user_id))))


@router.put("/{userId:int}")
async def update(user_id: UserPath, body: UserChangesBody, manager: Manager, edge: TheEdge) -> Response:
    """What is absent or null stays as it is."""
    command = UpdateUser(
        actor_id=manager.user_id,
        user_id=user_id,
        username=_name(body.username),
        email=body.email,
        role=body.role.upper() if body.role else None,
        status=body.status,
        password=body.password,
    )
    return envelope(user_json(await edge.bus.ask(command, timeout_s=HASHING_S)))


@router.delete("/{userId:int}")
async def delete(user_id: UserPath, manager: Manager, edge: TheEdge) -> Response:
    await edge.bus.ask(DeleteUser(actor_id=manager.user_id, user_id=user_id))
    return envelope({"id": user_id})
