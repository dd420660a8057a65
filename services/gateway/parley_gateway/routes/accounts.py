"""Accounts: register, log in, refresh, me (S2-01 … S2-04)."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from parley_contracts.accounts import GetUser, LogIn, RefreshTokens, Register, Tokens
from parley_gateway.authenticate import bearer
from parley_gateway.edge import Caller, OpenRoute, SnakeBody, TheEdge, UserRoute
from parley_gateway.responses import json_response

open_router = APIRouter(route_class=OpenRoute)
user_router = APIRouter(route_class=UserRoute)


class RegisterBody(SnakeBody):
    email: str
    username: str
    password: str


class LogInBody(SnakeBody):
    email: str
    password: str


def tokens_json(tokens: Tokens) -> dict[str, Any]:
    return {
        "access_token": tokens.access_token,
        "refresh_token": tokens.refresh_token,
        "token_type": "bearer",
        "expires_in": tokens.expires_in_s,
    }


@open_router.post("/user/register", status_code=201)
async def register(body: RegisterBody, edge: TheEdge) -> Response:
    tokens = await edge.bus.ask(Register(email=body.email, username=body.username, password=body.password), timeout_s=15.0)
    return json_response(tokens_json(tokens), status=201)


@open_router.post("/user/login")
async def log_in(body: LogInBody, edge: TheEdge) -> Response:
    return json_response(tokens_json(await edge.bus.ask(LogIn(email=body.email, password=body.password), timeout_s=15.0)))


@open_router.post("/user/refresh")
async def refresh(request: Request, edge: TheEdge) -> Response:
    token = bearer(request.headers.get("authorization"))
    return json_response(tokens_json(await edge.bus.ask(RefreshTokens(refresh_token=token))))


@user_router.get("/user/me")
async def me(caller: Caller, edge: TheEdge) -> Response:
    user = await edge.bus.ask(GetUser(user_id=caller.user_id))
    return json_response({"id": user.id, "username": user.username, "email": user.email, "user_group": user.role.lower()})


router = APIRouter(tags=["accounts"])
router.include_router(open_router)
router.include_router(user_router)
