"""Settings of the installation and of each user; what the installation is and whether its parts answer (S3-34)."""

import asyncio
from decimal import Decimal
from importlib.metadata import version
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from parley_contracts.accounts import GetJwks, Principal
from parley_contracts.activity import ListPresence
from parley_contracts.errors import ParleyError, ServiceUnavailable
from parley_contracts.ids import new_id
from parley_contracts.message import Question
from parley_contracts.model_configs import ListModelConfigs
from parley_contracts.sessions import GetSession
from parley_contracts.settings import (
    ContentFilter,
    GetInstallation,
    GetPersonalSettings,
    GetSystemSettings,
    Language,
    PersonalSettings,
    PersonalSettingsChanges,
    PutPersonalSettings,
    PutSystemSettings,
    SystemSettings,
    SystemSettingsChanges,
    Theme,
)
from parley_contracts.usage import GetBudget
from parley_gateway.dialects import DIALECTS
from parley_gateway.edge import Caller, CamelBody, Edge, OpenRoute, TheEdge, UserRoute, body_id, needs, no_nul
from parley_gateway.formats import usd
from parley_gateway.routes.accounts import envelope

user_router = APIRouter(prefix="/api/settings", route_class=UserRoute)
open_router = APIRouter(prefix="/api/settings", route_class=OpenRoute)

Manager = Annotated[Principal, needs("settings:manage")]
Prompt = Annotated[str, Field(max_length=100_000)]
_PROBE_S = 2.0
_NOBODY = 0


class FilterBody(CamelBody):
    words: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(max_length=10_000)] = ()
    action: Literal["reject", "mask"] = "reject"


class SystemBody(CamelBody):
    """What is not named stays; null removes where there may be none. The defaults are never used."""

    app_name: Annotated[str, Field(min_length=1, max_length=100)] = ""
    registration_enabled: bool = True
    personal_models_enabled: bool = True
    default_model_id: str | None = None
    default_system_prompt: Prompt | None = None
    monthly_budget_default: Annotated[Decimal, Field(ge=0, le=10**9, max_digits=20, decimal_places=10)] | None = None
    share_links_enabled: bool = True
    activity_retention_days: Annotated[int, Field(ge=1, le=3_650)] = 90
    content_filter: FilterBody = FilterBody()


class PersonalBody(CamelBody):
    """What is not named stays; null removes where there may be none."""

    language: Language | None = None
    theme: Theme = "system"
    default_model_id: str | None = None
    default_system_prompt: Prompt | None = None
    share_activity: bool = False


def system_json(system: SystemSettings) -> dict[str, Any]:
    return {
        "appName": system.app_name,
        "registrationEnabled": system.registration_enabled,
        "personalModelsEnabled": system.personal_models_enabled,
        "defaultModelId": system.default_model_id,
        "defaultSystemPrompt": system.default_system_prompt,
        "monthlyBudgetDefault": usd(system.monthly_budget_default_usd),
        "shareLinksEnabled": system.share_links_enabled,
        "activityRetentionDays": system.activity_retention_days,
        "contentFilter": {"words": system.content_filter.words, "action": system.content_filter.action},
    }


def personal_json(personal: PersonalSettings) -> dict[str, Any]:
    return {
        "language": personal.language or "en",
        "theme": personal.theme,
        "defaultModelId": personal.default_model_id,
        "defaultSystemPrompt": personal.default_system_prompt,
        "shareActivity": personal.share_activity,
    }


def _named(body: SystemBody | PersonalBody) -> dict[str, Any]:
    """The fields a client named, as they may be stored."""
    named = {name: getattr(body, name) for name in body.model_fields_set}
    if named.get("default_model_id") is not None:
        body_id(named["default_model_id"], "defaultModelId")
    for name in ("app_name", "default_system_prompt"):
        if named.get(name) is not None:
            no_nul(named[name], name)
    return named


@user_router.get("/system")
async def get_system(_manager: Manager, edge: TheEdge) -> Response:
    return envelope(system_json(await edge.bus.ask(GetSystemSettings())))


@user_router.put("/system")
async def put_system(body: SystemBody, manager: Manager, edge: TheEdge) -> Response:
    named = _named(body)
    if "monthly_budget_default" in named:
        named["monthly_budget_default_usd"] = named.pop("monthly_budget_default")
    if "content_filter" in named:
        words = tuple(no_nul(word, "contentFilter.words") for word in body.content_filter.words)
        named["content_filter"] = ContentFilter(words=words, action=body.content_filter.action)
    command = PutSystemSettings(actor_id=manager.user_id, changes=SystemSettingsChanges(**named))
    return envelope(system_json(await edge.bus.ask(command)))


@user_router.get("/personal")
async def get_personal(caller: Caller, edge: TheEdge) -> Response:
    return envelope(personal_json(await edge.bus.ask(GetPersonalSettings(user_id=caller.user_id))))


@user_router.put("/personal")
async def put_personal(body: PersonalBody, caller: Caller, edge: TheEdge) -> Response:
    command = PutPersonalSettings(user_id=caller.user_id, changes=PersonalSettingsChanges(**_named(body)))
    return envelope(personal_json(await edge.bus.ask(command)))


async def _state(edge: Edge, probe: Question[Any]) -> Literal["ok", "down"]:
    """Whoever answers lives, a refusal included."""
    try:
        await edge.bus.ask(probe, timeout_s=_PROBE_S)
    except ServiceUnavailable:
        return "down"
    except ParleyError:
        return "ok"
    return "ok"


@open_router.get("/health")
async def health(edge: TheEdge) -> Response:
    """Each service is asked for something cheap that belongs to nobody."""
    probes: dict[str, Question[Any]] = {
        "auth": GetJwks(),
        "chat": GetSession(user_id=_NOBODY, session_id=new_id()),
        "llm-router": ListModelConfigs(user_id=_NOBODY),
        "usage": GetBudget(user_id=_NOBODY),
        "activity": ListPresence(),
    }
    states = await asyncio.gather(*(_state(edge, probe) for probe in probes.values()))
    services = {"gateway": "ok", **dict(zip(probes, states, strict=True))}
    return envelope({"status": "degraded" if "down" in states else "ok", "services": services})


@open_router.get("/info")
async def info(edge: TheEdge) -> Response:
    installation = await edge.bus.ask(GetInstallation())
    return envelope(
        {
            "name": "Parley",
            "appName": installation.app_name,
            "version": version("parley"),
            "commit": None,
            "authMode": installation.auth_mode,
            "registrationEnabled": installation.registration_enabled,
            "defaultModel": await _default_model(edge),
            "dialects": sorted(DIALECTS),
        }
    )


async def _default_model(edge: Edge) -> str | None:
    try:
        return (await edge.configs.get(_NOBODY)).name
    except ParleyError:
        return None


router = APIRouter(tags=["settings"])
router.include_router(user_router)
router.include_router(open_router)
