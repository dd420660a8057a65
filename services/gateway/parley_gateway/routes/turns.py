"""Turns: one's own turn, its events again on any gateway, and its stop (requirements 2.5.7, U5, U6)."""

from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import Response

from parley_contracts.accounts import StreamGrant
from parley_contracts.errors import Forbidden, Problem, ValidationFailed
from parley_contracts.reader import Position, Shown, read
from parley_contracts.turns import GetTurn, LogEntry, StopTurn, Turn
from parley_gateway.asking import join
from parley_gateway.dialects import DIALECTS
from parley_gateway.edge import Caller, EventSourceRoute, TheEdge, UserRoute
from parley_gateway.formats import instant
from parley_gateway.responses import TurnResponse, json_response

user_router = APIRouter(prefix="/chat/turns", route_class=UserRoute)
event_source_router = APIRouter(prefix="/chat/turns", route_class=EventSourceRoute)

TurnPath = Annotated[str, Path(alias="turnId")]


def turn_json(turn: Turn, log: Iterable[LogEntry] = ()) -> dict[str, Any]:
    shown = [event for event in read(log) if isinstance(event, Shown)]
    return {
        "turnId": turn.turn_id,
        "sessionId": turn.session_id,
        "userMessageId": turn.user_message_id,
        "messageId": turn.message_id,
        "status": turn.status,
        "finishReason": turn.finish_reason,
        "attempt": turn.attempt,
        "model": turn.model,
        "lastEventId": str(Position(shown[-1].attempt, shown[-1].n)) if shown else None,
        "createdAt": instant(turn.created_at),
        "endedAt": instant(turn.ended_at),
    }


@user_router.get("/{turnId:id}")
async def get(turn_id: TurnPath, caller: Caller, edge: TheEdge) -> Response:
    turn = await edge.bus.ask(GetTurn(turn_id=turn_id, user_id=caller.user_id))
    return json_response({"success": True, "data": turn_json(turn, await edge.bus.turns.read(turn_id))})


@user_router.post("/{turnId:id}/stop")
async def stop(turn_id: TurnPath, caller: Caller, edge: TheEdge) -> Response:
    turn = await edge.bus.ask(StopTurn(turn_id=turn_id, user_id=caller.user_id), timeout_s=10.0)
    return json_response({"success": True, "data": turn_json(turn, await edge.bus.turns.read(turn_id))})


@event_source_router.get("/{turnId:id}/events")
async def events(
    turn_id: TurnPath,
    request: Request,
    caller: Caller,
    edge: TheEdge,
    format_: Annotated[str | None, Query(alias="format")] = None,
    last_event_id: Annotated[str | None, Header()] = None,
    last_event_id_query: Annotated[str | None, Query(alias="last_event_id")] = None,
) -> Response:
    turn = await edge.bus.ask(GetTurn(turn_id=turn_id, user_id=caller.user_id))
    grant: StreamGrant | None = request.state.grant
    if grant is not None and grant.session_id not in {None, turn.session_id}:
        raise Forbidden
    dialect = DIALECTS.get(format_ or turn.dialect)
    if dialect is None:
        raise ValidationFailed(problems=(Problem("format", f"is one of {', '.join(sorted(DIALECTS))}"),))
    seen = Position.parse(last_event_id or last_event_id_query or "")
    live = await join(edge, turn, user_id=caller.user_id, seen=seen)
    return TurnResponse(live, dialect, edge.connections)


router = APIRouter(tags=["turns"])
router.include_router(user_router)
router.include_router(event_source_router)
