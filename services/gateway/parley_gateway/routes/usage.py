"""Usage: one's budget and charges; an ADMIN sets budgets (S4-26, S4-29)."""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from parley_contracts.errors import Forbidden, Problem, ValidationFailed
from parley_contracts.usage import Budget, Charge, GetBudget, ListCharges, SetBudget
from parley_gateway.edge import Admin, Caller, CamelBody, TheEdge, UserRoute, body_id
from parley_gateway.formats import instant, usd
from parley_gateway.responses import json_response

router = APIRouter(prefix="/api/usage", tags=["usage"], route_class=UserRoute)

UserId = Annotated[int, Field(ge=1, le=2**31 - 1)]


class BudgetBody(CamelBody):
    limit: Annotated[Decimal, Field(ge=0, le=10**9, max_digits=20, decimal_places=10)] | None


def budget_json(budget: Budget) -> dict[str, Any]:
    return {
        "userId": budget.user_id,
        "limit": usd(budget.limit_usd),
        "spent": usd(budget.spent_usd),
        "reserved": usd(budget.held_usd),
        "remaining": usd(budget.remaining_usd),
        "period": budget.period,
        "resetsAt": instant(budget.resets_at),
    }


def charge_json(charge: Charge) -> dict[str, Any]:
    return {
        "id": charge.id,
        "turnId": charge.turn_id,
        "kind": "turn",
        "attempt": charge.attempt,
        "model": charge.model,
        "provider": charge.provider,
        "promptTokens": charge.input_tokens,
        "cachedTokens": charge.cached_tokens,
        "completionTokens": charge.output_tokens,
        "reasoningTokens": charge.reasoning_tokens,
        "totalTokens": charge.total_tokens,
        "cost": usd(charge.cost_usd),
        "priceVersion": charge.price_version,
        "billable": charge.is_billable,
        "estimated": charge.is_estimated,
        "success": charge.is_success,
        "errorCode": charge.error_code,
        "responseTime": charge.response_time_ms,
        "createdAt": instant(charge.created_at),
    }


@router.get("/budget")
async def own_budget(caller: Caller, edge: TheEdge) -> Response:
    return json_response(budget_json(await edge.bus.ask(GetBudget(user_id=caller.user_id))))


@router.get("/budgets/{user_id:int}")
async def get_budget(user_id: UserId, _admin: Admin, edge: TheEdge) -> Response:
    return json_response(budget_json(await edge.bus.ask(GetBudget(user_id=user_id))))


@router.put("/budgets/{user_id:int}")
async def set_budget(user_id: UserId, body: BudgetBody, _admin: Admin, edge: TheEdge) -> Response:
    return json_response(budget_json(await edge.bus.ask(SetBudget(user_id=user_id, limit_usd=body.limit))))


@router.get("/charges")
async def charges(
    caller: Caller,
    edge: TheEdge,
    turn_id: Annotated[str | None, Query(alias="turnId")] = None,
    session_id: Annotated[str | None, Query(alias="sessionId")] = None,
    user_id: Annotated[UserId | None, Query(alias="userId")] = None,
    start: str | None = None,
    end: str | None = None,
    page: Annotated[int, Query(ge=1, le=10**6)] = 1,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> Response:
    if user_id not in {None, caller.user_id} and not caller.is_admin:
        raise Forbidden
    zone = ZoneInfo(edge.settings.timezone)
    found = await edge.bus.ask(
        ListCharges(
            user_id=user_id or caller.user_id,
            turn_id=body_id(turn_id, "turnId") if turn_id else None,
            session_id=body_id(session_id, "sessionId") if session_id else None,
            start_at=_moment(start, "start", zone),
            end_at=_moment(end, "end", zone, is_end=True),
            limit=limit,
            offset=(page - 1) * limit,
        )
    )
    return json_response({"charges": [charge_json(charge) for charge in found.charges], "total": found.total})


def _moment(text: str | None, field: str, zone: ZoneInfo, *, is_end: bool = False) -> datetime | None:
    """An instant, or a day of the zone; as an end a day is included."""
    if text is None:
        return None
    try:
        if len(text) == len("2026-01-31"):
            day = date.fromisoformat(text) + timedelta(days=1 if is_end else 0)
            return datetime.combine(day, time(), zone)
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ValidationFailed(problems=(Problem(field, "is no ISO-8601 instant or day"),)) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
