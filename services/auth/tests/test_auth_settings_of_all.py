"""Settings of the installation and of each user: changed in part, kept, told, and never what they cannot be."""

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from parley_contracts.errors import Forbidden, UserNotFound, ValidationFailed
from parley_contracts.ids import new_id
from parley_contracts.settings import (
    ContentFilter,
    GetInstallation,
    GetPersonalSettings,
    GetSettings,
    GetSystemSettings,
    Installation,
    PersonalSettings,
    PersonalSettingsChanges,
    PutPersonalSettings,
    PutSystemSettings,
    Settings,
    SettingsChanged,
    SystemSettings,
    SystemSettingsChanges,
)


async def put(auth: Any, *, actor_id: int | None = 1, **changes: Any) -> SystemSettings:
    command = PutSystemSettings(actor_id=actor_id, changes=SystemSettingsChanges(**changes))
    settings: SystemSettings = await auth.tell(auth.settings.put_system_settings, command)
    return settings


async def system(auth: Any) -> SystemSettings:
    settings: SystemSettings = await auth.tell(auth.settings.get_system_settings, GetSystemSettings())
    return settings


async def put_personal(auth: Any, user_id: int = 1, **changes: Any) -> PersonalSettings:
    command = PutPersonalSettings(user_id=user_id, changes=PersonalSettingsChanges(**changes))
    settings: PersonalSettings = await auth.tell(auth.settings.put_personal_settings, command)
    return settings


async def personal(auth: Any, user_id: int = 1) -> PersonalSettings:
    settings: PersonalSettings = await auth.tell(auth.settings.get_personal_settings, GetPersonalSettings(user_id=user_id))
    return settings


async def test_settings_nobody_changed_have_their_defaults(auth: Any) -> None:
    await auth.register()
    assert await system(auth) == SystemSettings()
    assert await personal(auth) == PersonalSettings()
    assert (SystemSettings().share_links_enabled, SystemSettings().activity_retention_days) == (True, 90)


async def test_what_is_named_changes_none_removes_and_the_rest_stays(auth: Any) -> None:
    await auth.register()
    model_id = new_id()
    await put(auth, app_name=" Chat ", default_model_id=model_id, monthly_budget_default_usd=Decimal("10.50"))
    changed = await put(
        auth,
        default_model_id=None,
        content_filter=ContentFilter(words=("darn", "darn", " heck "), action="mask"),
        activity_retention_days=7,
    )
    assert changed == await system(auth)
    assert changed == SystemSettings(
        app_name="Chat",
        monthly_budget_default_usd=Decimal("10.50"),
        activity_retention_days=7,
        content_filter=ContentFilter(words=("darn", "heck"), action="mask"),
    )
    assert auth.bus.heard(SettingsChanged) == [SettingsChanged(), SettingsChanged()]


REFUSED: dict[str, dict[str, Any]] = {
    "no name": {"app_name": " "},
    "a long name": {"app_name": "x" * 101},
    "a NUL": {"app_name": "a\x00"},
    "no days": {"activity_retention_days": 0},
    "too many days": {"activity_retention_days": 10**6},
    "a debt": {"monthly_budget_default_usd": Decimal(-1)},
    "no number": {"monthly_budget_default_usd": Decimal("NaN")},
    "an empty word": {"content_filter": ContentFilter(words=("",))},
    "too many words": {"content_filter": ContentFilter(words=tuple(map(str, range(1001))))},
    "a long prompt": {"default_system_prompt": "x" * 10_001},
    "a NUL in the prompt": {"default_system_prompt": "\x00"},
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED.keys())
async def test_settings_that_cannot_be_are_refused_and_nothing_changes(auth: Any, changes: dict[str, Any]) -> None:
    await auth.register()
    with pytest.raises(ValidationFailed):
        await put(auth, **changes)
    assert await system(auth) == SystemSettings()
    assert auth.bus.said == []


async def test_only_who_may_manage_settings_changes_them(auth: Any) -> None:
    await auth.register()
    await auth.register("bob@example.org")
    for actor_id in (2, 99):
        with pytest.raises(Forbidden):
            await put(auth, actor_id=actor_id, app_name="Mine")
    assert (await put(auth, actor_id=None, app_name="The operator's")).app_name == "The operator's"


async def test_partial_changes_beside_each_other_are_all_kept(auth: Any) -> None:
    await auth.register()
    await asyncio.gather(
        put(auth, app_name="Chat"),
        put(auth, share_links_enabled=False),
        put(auth, personal_models_enabled=False),
        put_personal(auth, language="zh-CN"),
        put_personal(auth, theme="dark"),
        put_personal(auth, share_activity=True),
    )
    assert await system(auth) == SystemSettings(app_name="Chat", share_links_enabled=False, personal_models_enabled=False)
    assert await personal(auth) == PersonalSettings(language="zh-CN", theme="dark", share_activity=True)


async def test_personal_settings_are_each_user_s_own(auth: Any) -> None:
    await auth.register()
    await auth.register("bob@example.org")
    model_id = new_id()
    await put_personal(auth, 2, default_model_id=model_id, default_system_prompt="Be brief.")
    await put_personal(auth, 2, default_system_prompt=None)
    assert await personal(auth, 2) == PersonalSettings(default_model_id=model_id)
    assert await personal(auth, 1) == PersonalSettings()
    assert auth.bus.heard(SettingsChanged) == [SettingsChanged(user_id=2), SettingsChanged(user_id=2)]
    with pytest.raises(ValidationFailed):
        await put_personal(auth, 2, default_system_prompt="x" * 10_001)


@pytest.mark.parametrize("user_id", [99, 0, -1, 2**80])
async def test_a_user_who_is_not_there_has_defaults_and_changes_nothing(auth: Any, user_id: int) -> None:
    assert await personal(auth, user_id) == PersonalSettings()
    with pytest.raises(UserNotFound):
        await put_personal(auth, user_id, theme="dark")


async def test_a_service_reads_both_in_one_answer(auth: Any) -> None:
    await auth.register()
    await put(auth, app_name="Chat")
    await put_personal(auth, theme="dark")
    both = Settings(system=SystemSettings(app_name="Chat"), personal=PersonalSettings(theme="dark"))
    assert await auth.tell(auth.settings.get_settings, GetSettings(user_id=1)) == both
    for nobody in (None, 99, 2**80):
        answer = await auth.tell(auth.settings.get_settings, GetSettings(user_id=nobody))
        assert answer == Settings(system=both.system)


async def test_anyone_may_know_whether_a_registration_would_succeed(auth: Any, make_auth: Callable[..., Any]) -> None:
    single = make_auth(auth_mode="single")

    async def told(by: Any) -> Installation:
        installation: Installation = await by.tell(by.settings.get_installation, GetInstallation())
        return installation

    assert await told(auth) == Installation(app_name="Parley", auth_mode="multi", registration_enabled=True)
    assert (await told(single)).registration_enabled
    await auth.register()
    assert [(await told(by)).registration_enabled for by in (auth, single)] == [True, False]
    await put(auth, registration_enabled=False)
    assert [(await told(by)).registration_enabled for by in (auth, single)] == [False, False]
