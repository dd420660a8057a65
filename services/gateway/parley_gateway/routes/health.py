"""Health on the public port: alive and ready, without details; those are on the health port."""

from fastapi import APIRouter
from starlette.responses import Response

from parley_gateway.edge import ProbeRoute, TheEdge
from parley_gateway.responses import json_response

router = APIRouter(tags=["health"], route_class=ProbeRoute)


@router.get("/healthz")
async def alive() -> Response:
    return json_response({"status": "alive"})


@router.get("/readyz", responses={503: {"description": "Not ready"}})
async def ready(edge: TheEdge) -> Response:
    problems = await edge.readiness().readiness.problems()
    return json_response({"status": "not ready" if problems else "ready"}, status=503 if problems else 200)
