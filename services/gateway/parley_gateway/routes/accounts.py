"""Accounts in two spellings: `/user/…` with short tokens (S2-01 … S2-08), `/api/auth/…` with day-long ones (S3-02 … S3-05).

Whoever logs in gets the access token as a cookie too: only the two EventSource routes take it (requirements 2.2).
"""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from parley_contracts.accounts import (
    ChangeEmail,
    ChangePassword,
    ChangePasswordKnowingOld,
    ChangeUsername,
    GetJwks,
    GetUser,
    IssueStreamToken,
    LogIn,
    LogOut,
    RefreshTokens,
    Register,
    Tokens,
    User,
)
from parley_contracts.sessions import GetSession
from parley_gateway.authenticate import ACCESS_COOKIE, bearer
from parley_gateway.edge import Caller, CamelBody, LoginRoute, OpenRoute, SnakeBody, TheEdge, UserRoute, body_id, no_nul
from parley_gateway.formats import instant
from parley_gateway.responses import json_response

open_router = APIRouter(route_class=OpenRoute)
login_router = APIRouter(route_class=LoginRoute)
user_router = APIRouter(route_class=UserRoute)

HASHING_S = 15.0
"""How long auth may take where it hashes a password: it does so one after the other."""

Text = Annotated[str, Field(max_length=1_000)]


class RegisterBody(SnakeBody):
    email: Text
    username: Text
    password: Text


class LogInBody(SnakeBody):
    email: Text
    password: Text


class UsernameBody(SnakeBody):
    username: Text


class EmailBody(SnakeBody):
    email: Text


class NewPasswordBody(SnakeBody):
    new_password: Text
    old_password: Text | None = None


class RegisterApiBody(CamelBody):
    email: Text
    password: Text
    username: Text | None = None


class LogInApiBody(CamelBody):
    email: Text
    password: Text


class ChangePasswordBody(CamelBody):
    current_password: Text
    new_password: Text


class StreamTokenBody(CamelBody):
    conversation_id: str | None = None


def envelope(data: Any, *, status: int = 200, meta: dict[str, int] | None = None) -> Response:
    """A success in S3's spelling."""
    body = {"success": True, "data": data, "error": None}
    return json_response(body if meta is None else {**body, "meta": meta}, status=status)


def me_json(user: User) -> dict[str, Any]:
    return {"id": user.id, "username": user.username, "email": user.email, "user_group": user.role.lower()}


def user_json(user: User) -> dict[str, Any]:
    return {
        "id": user.id,
        "username": user.username,
        "email": user.email,
        "role": user.role,
        "status": user.status,
        "createdAt": instant(user.created_at),
        "lastLoginAt": instant(user.last_login_at),
    }


def tokens_json(tokens: Tokens) -> dict[str, Any]:
    return {
        "access_token": tokens.access_token,
        "refresh_token": tokens.refresh_token,
        "token_type": "bearer",
        "expires_in": tokens.expires_in_s,
    }


def auth_json(tokens: Tokens) -> dict[str, Any]:
    return {
        "token": tokens.access_token,
        "refreshToken": tokens.refresh_token,
        "expiresIn": tokens.expires_in_s,
        "user": tokens.user and user_json(tokens.user),
    }


def is_secure(request: Request) -> bool:
    """Whether the client came by https. Who forges the header makes only their own cookie stricter."""
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto", "") == "https"


def with_cookie(response: Response, request: Request, tokens: Tokens) -> Response:
    response.set_cookie(
        ACCESS_COOKIE,
        tokens.access_token,
        max_age=tokens.expires_in_s,
        httponly=True,
        samesite="lax",
        secure=is_secure(request),
    )
    return response


# --- S2 -------------------------------------------------------------------------------------------------------------


@login_router.post("/user/register", status_code=201)
async def register(body: RegisterBody, request: Request, edge: TheEdge) -> Response:
    command = Register(email=body.email, username=no_nul(body.username, "username"), password=body.password)
    tokens = await edge.bus.ask(command, timeout_s=HASHING_S)
    return with_cookie(json_response(tokens_json(tokens), status=201), request, tokens)


@login_router.post("/user/login")
async def log_in(body: LogInBody, request: Request, edge: TheEdge) -> Response:
    tokens = await edge.bus.ask(LogIn(email=body.email, password=body.password), timeout_s=HASHING_S)
    return with_cookie(json_response(tokens_json(tokens)), request, tokens)


@login_router.post("/user/refresh")
async def refresh(request: Request, edge: TheEdge) -> Response:
    tokens = await edge.bus.ask(RefreshTokens(refresh_token=bearer(request.headers.get("authorization"))))
    return with_cookie(json_response(tokens_json(tokens)), request, tokens)


@login_router.post("/user/me/password")
async def change_password(body: NewPasswordBody, request: Request, edge: TheEdge) -> Response:
    """By refresh token, as S2 has it."""
    command = ChangePassword(
        refresh_token=bearer(request.headers.get("authorization")),
        new_password=body.new_password,
        old_password=body.old_password,
    )
    tokens = await edge.bus.ask(command, timeout_s=HASHING_S)
    return with_cookie(json_response(tokens_json(tokens)), request, tokens)


@open_router.post("/user/logout")
async def log_out(request: Request, edge: TheEdge) -> Response:
    await edge.bus.ask(LogOut(refresh_token=bearer(request.headers.get("authorization"))))
    response = json_response({"success": True})
    response.delete_cookie(ACCESS_COOKIE, httponly=True, samesite="lax", secure=is_secure(request))
    return response


@user_router.get("/user/me")
async def me(caller: Caller, edge: TheEdge) -> Response:
    return json_response(me_json(await edge.bus.ask(GetUser(user_id=caller.user_id))))


@user_router.post("/user/me/username")
async def change_username(body: UsernameBody, caller: Caller, edge: TheEdge) -> Response:
    command = ChangeUsername(user_id=caller.user_id, username=no_nul(body.username, "username"))
    return json_response(me_json(await edge.bus.ask(command)))


@user_router.post("/user/me/email")
async def change_email(body: EmailBody, caller: Caller, edge: TheEdge) -> Response:
    return json_response(me_json(await edge.bus.ask(ChangeEmail(user_id=caller.user_id, email=body.email))))


# --- S3 -------------------------------------------------------------------------------------------------------------


@login_router.post("/api/auth/register", status_code=201)
async def register_api(body: RegisterApiBody, request: Request, edge: TheEdge) -> Response:
    username = None if body.username is None else no_nul(body.username, "username")
    command = Register(email=body.email, username=username, password=body.password, is_long_lived=True)
    tokens = await edge.bus.ask(command, timeout_s=HASHING_S)
    return with_cookie(envelope(auth_json(tokens), status=201), request, tokens)


@login_router.post("/api/auth/login")
async def log_in_api(body: LogInApiBody, request: Request, edge: TheEdge) -> Response:
    command = LogIn(email=body.email, password=body.password, is_long_lived=True)
    tokens = await edge.bus.ask(command, timeout_s=HASHING_S)
    return with_cookie(envelope(auth_json(tokens)), request, tokens)


@user_router.get("/api/auth/me")
async def me_api(caller: Caller, edge: TheEdge) -> Response:
    """What is stored of the user, and what the token in hand allows."""
    user = await edge.bus.ask(GetUser(user_id=caller.user_id))
    rights = {"permissions": caller.permissions, "limits": msgspec.to_builtins(caller.limits)}
    return envelope({**user_json(user), **rights})


@user_router.put("/api/auth/password")
async def change_password_api(body: ChangePasswordBody, request: Request, caller: Caller, edge: TheEdge) -> Response:
    command = ChangePasswordKnowingOld(
        user_id=caller.user_id, current_password=body.current_password, new_password=body.new_password
    )
    tokens = await edge.bus.ask(command, timeout_s=HASHING_S)
    return with_cookie(envelope(auth_json(tokens)), request, tokens)


# --- S4 -------------------------------------------------------------------------------------------------------------


@user_router.post("/api/chat/stream-token")
async def stream_token(caller: Caller, edge: TheEdge, body: StreamTokenBody | None = None) -> Response:
    """For EventSource, in the URL; a token for one conversation opens no other."""
    session_id = None if body is None or body.conversation_id is None else body_id(body.conversation_id, "conversationId")
    if session_id is not None:
        await edge.bus.ask(GetSession(user_id=caller.user_id, session_id=session_id))
    made = await edge.bus.ask(IssueStreamToken(user_id=caller.user_id, family=caller.family, session_id=session_id))
    return json_response({"token": made.token, "expiresIn": made.expires_in_s})


@open_router.get("/.well-known/jwks.json")
async def public_keys(edge: TheEdge) -> Response:
    """What verifies our access tokens, for whoever stands beside Parley."""
    return json_response({"keys": msgspec.to_builtins(await edge.bus.ask(GetJwks()))})


router = APIRouter(tags=["accounts"])
router.include_router(open_router)
router.include_router(login_router)
router.include_router(user_router)
