"""The public API: routes, middleware from the outside in, and one place for failures."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from parley_contracts.errors import ParleyError
from parley_gateway.edge import Edge
from parley_gateway.failures import FailureMiddleware, as_parley_error, is_openai, render
from parley_gateway.middleware import MIB, BodyLimitMiddleware, ContextMiddleware, PrefixMiddleware
from parley_gateway.routes import (
    accounts,
    activity,
    completions,
    health,
    keys,
    models,
    roles,
    sessions,
    settings,
    turns,
    usage,
    users,
)

_ALLOWED_HEADERS = ["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "X-Request-ID"]
_EXPOSED_HEADERS = ["X-Request-ID", "X-Turn-Id", "Retry-After"]


def body_limit(path: str) -> int:
    """1 MiB, 6 MiB where a prompt with images comes inline: a command must fit the bus's 8 MiB message."""
    return 6 * MIB if is_openai(path) else MIB


def create_app(edge: Edge) -> FastAPI:
    app = FastAPI(title="Parley", summary="The self-hosted backend of an AI chat platform.", redirect_slashes=False)
    app.state.edge = edge
    for routes in (health, accounts, sessions, turns, completions, models, usage, activity, keys, users, roles, settings):
        app.include_router(routes.router)
    for kind in (ParleyError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer)
    # The last one added is the outermost.
    app.add_middleware(PrefixMiddleware, routes=app.router.routes)
    app.add_middleware(BodyLimitMiddleware, limit_of=body_limit)
    if edge.settings.enable_cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=edge.settings.origins or ["*"],
            allow_methods=["*"],
            allow_headers=_ALLOWED_HEADERS,
            expose_headers=_EXPOSED_HEADERS,
        )
    app.add_middleware(FailureMiddleware)
    app.add_middleware(ContextMiddleware, trusted_proxies=edge.settings.trusted_proxies)
    return app


async def _answer(request: Request, error: Exception) -> Response:
    path = request.url.path
    return render(as_parley_error(error, openai=is_openai(path)), path)
