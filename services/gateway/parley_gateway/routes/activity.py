"""Activity: who is online (S0-24)."""

from fastapi import APIRouter
from starlette.responses import Response

from parley_contracts.accounts import GetUsers
from parley_contracts.activity import ListPresence
from parley_gateway.edge import Caller, TheEdge, UserRoute
from parley_gateway.formats import instant
from parley_gateway.responses import json_response

router = APIRouter(tags=["activity"], route_class=UserRoute)


@router.get("/activity/status/all")
async def everyone_online(_caller: Caller, edge: TheEdge) -> Response:
    present = await edge.bus.ask(ListPresence())
    users = await edge.bus.ask(GetUsers(user_ids=tuple(presence.user_id for presence in present))) if present else ()
    names = {user.id: user.username for user in users}
    data = [
        {
            "userId": presence.user_id,
            "username": names[presence.user_id],
            "status": presence.status,
            "currentApp": None,
            "lastActivity": instant(presence.last_active_at),
        }
        for presence in present
        if presence.user_id in names
    ]
    return json_response({"success": True, "data": data})
