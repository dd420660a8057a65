"""Settings of the installation and of each user: read by every service, changed in part, told when they change."""

from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar

import msgspec

from parley_auth.audit import record
from parley_auth.fields import checked_text, wrong
from parley_auth.handlers.authority import role_of_actor
from parley_auth.stores.settings import SettingsStore
from parley_auth.stores.users import UserStore
from parley_contracts.errors import UserNotFound
from parley_contracts.settings import (
    AuthMode,
    ContentFilter,
    GetInstallation,
    GetPersonalSettings,
    GetSettings,
    GetSystemSettings,
    Installation,
    PersonalSettings,
    PutPersonalSettings,
    PutSystemSettings,
    Settings,
    SettingsChanged,
    SystemSettings,
)
from parley_runtime.clock import Clock
from parley_runtime.database import Transaction

S = TypeVar("S", bound=msgspec.Struct)

_LONGEST_NAME = 100
_LONGEST_PROMPT = 10_000
_MOST_DAYS = 3650
_MOST_WORDS = 1000
_HIGHEST_BUDGET_USD = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class SettingsHandlers:
    clock: Clock
    auth_mode: AuthMode

    async def get_settings(self, query: GetSettings, tx: Transaction) -> Settings:
        store = SettingsStore(tx)
        if query.user_id is None or not await UserStore(tx).get_users((query.user_id,)):
            return Settings(system=await store.system())
        return Settings(system=await store.system(), personal=await store.personal(query.user_id))

    async def get_installation(self, _query: GetInstallation, tx: Transaction) -> Installation:
        system = await SettingsStore(tx).system()
        is_empty = not await UserStore(tx).has_begun()
        return Installation(
            app_name=system.app_name,
            auth_mode=self.auth_mode,
            registration_enabled=is_empty or (self.auth_mode == "multi" and system.registration_enabled),
        )

    async def get_system_settings(self, _query: GetSystemSettings, tx: Transaction) -> SystemSettings:
        return await SettingsStore(tx).system()

    async def put_system_settings(self, command: PutSystemSettings, tx: Transaction) -> SystemSettings:
        store = SettingsStore(tx)
        await UserStore(tx).one_admin_act_at_a_time()
        await role_of_actor(tx, command.actor_id, "settings:manage")
        old = await store.system()
        new = _checked_system(changed(old, command.changes))
        await store.put_system(new)
        await record(
            tx,
            at=self.clock.now(),
            actor_id=command.actor_id,
            act="put_system_settings",
            subject="system settings",
            before=old,
            after=new,
        )
        tx.announce(SettingsChanged())
        return new

    async def get_personal_settings(self, query: GetPersonalSettings, tx: Transaction) -> PersonalSettings:
        if not await UserStore(tx).get_users((query.user_id,)):
            return PersonalSettings()
        return await SettingsStore(tx).personal(query.user_id)

    async def put_personal_settings(self, command: PutPersonalSettings, tx: Transaction) -> PersonalSettings:
        # The user's row is held: two partial changes at once must both be kept.
        if await UserStore(tx).find_account_by_id(command.user_id, for_change=True) is None:
            raise UserNotFound
        store = SettingsStore(tx)
        new = changed(await store.personal(command.user_id), command.changes)
        _check_prompt(new.default_system_prompt)
        await store.put_personal(command.user_id, new)
        tx.announce(SettingsChanged(user_id=command.user_id))
        return new


def changed(settings: S, changes: msgspec.Struct) -> S:
    """`settings` with what `changes` names."""
    named = {field: value for field in changes.__struct_fields__ if (value := getattr(changes, field)) is not msgspec.UNSET}
    return msgspec.structs.replace(settings, **named)


def _checked_system(settings: SystemSettings) -> SystemSettings:
    _check_prompt(settings.default_system_prompt)
    budget_usd = settings.monthly_budget_default_usd
    if budget_usd is not None and not (budget_usd.is_finite() and 0 <= budget_usd <= _HIGHEST_BUDGET_USD):
        raise wrong("monthlyBudgetDefault", f"must be 0 to {_HIGHEST_BUDGET_USD}, or null for no limit")
    if not 1 <= settings.activity_retention_days <= _MOST_DAYS:
        raise wrong("activityRetentionDays", f"must be 1 to {_MOST_DAYS}")
    if len(settings.content_filter.words) > _MOST_WORDS:
        raise wrong("contentFilter.words", f"has more than {_MOST_WORDS} words")
    words = [checked_text(word, "contentFilter.words", longest=_LONGEST_NAME) for word in settings.content_filter.words]
    return msgspec.structs.replace(
        settings,
        app_name=checked_text(settings.app_name, "appName", longest=_LONGEST_NAME),
        content_filter=ContentFilter(words=tuple(dict.fromkeys(words)), action=settings.content_filter.action),
    )


def _check_prompt(prompt: str | None) -> None:
    if prompt is not None:
        checked_text(prompt, "defaultSystemPrompt", longest=_LONGEST_PROMPT, shortest=0)
