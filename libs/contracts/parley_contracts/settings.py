"""Settings: what an administrator sets for all, and each user for themselves. Kept by auth, heard of by SettingsChanged."""

from decimal import Decimal
from typing import ClassVar, Literal, TypeAlias

import msgspec

from parley_contracts.ids import ModelConfigId
from parley_contracts.message import Command, Event, Query

Language: TypeAlias = Literal["en", "zh-CN"]
Theme: TypeAlias = Literal["system", "light", "dark"]
FilterAction: TypeAlias = Literal["reject", "mask"]
AuthMode: TypeAlias = Literal["multi", "single"]


class ContentFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Words users may not send: the message is rejected, or they become `***`. No words: off."""

    words: tuple[str, ...] = ()
    action: FilterAction = "reject"


class SystemSettings(msgspec.Struct, frozen=True, kw_only=True):
    """For the whole installation. `monthly_budget_default_usd` None: no limit."""

    app_name: str = "Parley"
    registration_enabled: bool = True
    personal_models_enabled: bool = True
    default_model_id: ModelConfigId | None = None
    default_system_prompt: str | None = None
    monthly_budget_default_usd: Decimal | None = None
    share_links_enabled: bool = True
    activity_retention_days: int = 90
    content_filter: ContentFilter = ContentFilter()


class PersonalSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One user's own. `language` None: never chosen, `Accept-Language` decides (shown as `en`)."""

    language: Language | None = None
    theme: Theme = "system"
    default_model_id: ModelConfigId | None = None
    default_system_prompt: str | None = None
    share_activity: bool = False


class SystemSettingsChanges(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a partial update names. UNSET: stays as it is; None: removed."""

    app_name: str | msgspec.UnsetType = msgspec.UNSET
    registration_enabled: bool | msgspec.UnsetType = msgspec.UNSET
    personal_models_enabled: bool | msgspec.UnsetType = msgspec.UNSET
    default_model_id: ModelConfigId | msgspec.UnsetType | None = msgspec.UNSET
    default_system_prompt: str | msgspec.UnsetType | None = msgspec.UNSET
    monthly_budget_default_usd: Decimal | msgspec.UnsetType | None = msgspec.UNSET
    share_links_enabled: bool | msgspec.UnsetType = msgspec.UNSET
    activity_retention_days: int | msgspec.UnsetType = msgspec.UNSET
    content_filter: ContentFilter | msgspec.UnsetType = msgspec.UNSET


class PersonalSettingsChanges(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a partial update names. UNSET: stays as it is; None: removed."""

    language: Language | msgspec.UnsetType | None = msgspec.UNSET
    theme: Theme | msgspec.UnsetType = msgspec.UNSET
    default_model_id: ModelConfigId | msgspec.UnsetType | None = msgspec.UNSET
    default_system_prompt: str | msgspec.UnsetType | None = msgspec.UNSET
    share_activity: bool | msgspec.UnsetType = msgspec.UNSET


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for one user, in one answer; `personal` are the defaults when no user was named."""

    system: SystemSettings
    personal: PersonalSettings = PersonalSettings()


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """What anyone may know. `registration_enabled`: a Register would succeed now."""

    app_name: str
    auth_mode: AuthMode
    registration_enabled: bool


class GetSettings(Query[Settings], frozen=True, kw_only=True):
    """For services; remember it until SettingsChanged. A user who is not there has the defaults."""

    subject: ClassVar[str] = "auth.get_settings"
    user_id: int | None = None


class GetInstallation(Query[Installation], frozen=True, kw_only=True):
    subject: ClassVar[str] = "auth.get_installation"


class GetSystemSettings(Query[SystemSettings], frozen=True, kw_only=True):
    subject: ClassVar[str] = "auth.get_system_settings"


class PutSystemSettings(Command[SystemSettings], frozen=True, kw_only=True):
    """Change what is named; leaves an audit row. `actor_id` needs `settings:manage`; None: the operator.

    Errors: Forbidden, ValidationFailed.
    """

    subject: ClassVar[str] = "auth.put_system_settings"
    actor_id: int | None
    changes: SystemSettingsChanges


class GetPersonalSettings(Query[PersonalSettings], frozen=True, kw_only=True):
    subject: ClassVar[str] = "auth.get_personal_settings"
    user_id: int


class PutPersonalSettings(Command[PersonalSettings], frozen=True, kw_only=True):
    """Change what is named. Errors: UserNotFound, ValidationFailed."""

    subject: ClassVar[str] = "auth.put_personal_settings"
    user_id: int
    changes: PersonalSettingsChanges


class SettingsChanged(Event, frozen=True, kw_only=True):
    """Forget what you remember of the settings of `user_id`; None: of the installation."""

    subject: ClassVar[str] = "auth.event.settings_changed"
    user_id: int | None = None
