"""Auth: who users are, what proves it, and what they may. Answers all of `auth.*`; says what ended or changed.

Says FamilyRevoked, RightsChanged, ApiKeyRevoked, UserDeleted, SettingsChanged, KeysChanged. Hears nothing.
"""

from datetime import timedelta

from parley_auth.handlers.accounts import Accounts
from parley_auth.handlers.api_keys import ApiKeys
from parley_auth.handlers.roles import Roles
from parley_auth.handlers.settings import SettingsHandlers
from parley_auth.handlers.tokens import TokenHandlers
from parley_auth.handlers.users import Users
from parley_auth.logins import Logins
from parley_auth.passwords import Passwords
from parley_auth.samples import SampleSecrets
from parley_auth.settings import AuthSettings
from parley_auth.tokens import Issuer
from parley_contracts.accounts import (
    ChangeEmail,
    ChangePassword,
    ChangePasswordKnowingOld,
    ChangeUsername,
    GetJwks,
    GetUser,
    GetUsers,
    IssueStreamToken,
    ListRevoked,
    LogIn,
    LogOut,
    RefreshTokens,
    Register,
)
from parley_contracts.api_keys import CheckApiKey, CreateApiKey, DeleteApiKey, ListApiKeys
from parley_contracts.roles import ListRoles, PutRole
from parley_contracts.settings import (
    GetInstallation,
    GetPersonalSettings,
    GetSettings,
    GetSystemSettings,
    PutPersonalSettings,
    PutSystemSettings,
)
from parley_contracts.users import CreateUser, DeleteUser, ListUsers, UpdateUser
from parley_runtime.bus import Bus
from parley_runtime.clock import Clock, SystemClock
from parley_runtime.database import Database
from parley_runtime.service import Service


class AuthService(Service):
    MIGRATIONS = ("parley_auth", "auth")

    def __init__(self, settings: AuthSettings, bus: Bus, clock: Clock = SystemClock()) -> None:  # noqa: B008 - holds no state
        database = Database(settings.database_url.get_secret_value(), bus=bus, pool_size=settings.database_pool_size)
        passwords = Passwords(memory_kib=settings.argon2_memory_kib, time_cost=settings.argon2_time_cost)
        issuer = Issuer(settings.jwt_secrets, access_ttl_s=settings.access_token_ttl_s, long_ttl_s=settings.s3_token_ttl_s)
        accounts = Accounts(
            database=database,
            passwords=passwords,
            logins=Logins(issuer=issuer, refresh_ttl=timedelta(seconds=settings.refresh_token_ttl_s)),
            clock=clock,
            is_open=settings.auth_mode == "multi",
            first_is_admin=settings.bootstrap_admin,
            tells_unknown_from_wrong=settings.auth_distinct_login_errors,
            needs_old_password=settings.password_change_requires_old,
        )
        users = Users(database=database, passwords=passwords, clock=clock)
        roles = Roles(clock=clock)
        api_keys = ApiKeys(database, clock)
        said = SettingsHandlers(clock=clock, auth_mode=settings.auth_mode)
        tokens = TokenHandlers(bus=bus, database=database, issuer=issuer, clock=clock)

        bus.answer(Register, accounts.register)
        bus.answer(LogIn, accounts.log_in)
        bus.answer(RefreshTokens, accounts.refresh_tokens)
        bus.answer(LogOut, database.transact(accounts.log_out))
        bus.answer(ChangeUsername, database.transact(accounts.change_username))
        bus.answer(ChangeEmail, database.transact(accounts.change_email))
        bus.answer(ChangePassword, accounts.change_password)
        bus.answer(ChangePasswordKnowingOld, accounts.change_password_knowing_old)
        bus.answer(GetUser, database.transact(users.get_user))
        bus.answer(GetUsers, database.transact(users.get_users))
        bus.answer(ListUsers, database.transact(users.list_users))
        bus.answer(CreateUser, users.create_user)
        bus.answer(UpdateUser, users.update_user)
        bus.answer(DeleteUser, users.delete_user)
        bus.answer(ListRoles, database.transact(roles.list_roles))
        bus.answer(PutRole, database.transact(roles.put_role))
        bus.answer(CreateApiKey, database.transact(api_keys.create_api_key))
        bus.answer(ListApiKeys, database.transact(api_keys.list_api_keys))
        bus.answer(DeleteApiKey, database.transact(api_keys.delete_api_key))
        bus.answer(CheckApiKey, database.transact(api_keys.check_api_key))
        bus.answer(GetSettings, database.transact(said.get_settings))
        bus.answer(GetInstallation, database.transact(said.get_installation))
        bus.answer(GetSystemSettings, database.transact(said.get_system_settings))
        bus.answer(PutSystemSettings, database.transact(said.put_system_settings))
        bus.answer(GetPersonalSettings, database.transact(said.get_personal_settings))
        bus.answer(PutPersonalSettings, database.transact(said.put_personal_settings))
        bus.answer(GetJwks, tokens.get_jwks)
        bus.answer(ListRevoked, database.transact(tokens.list_revoked))
        bus.answer(IssueStreamToken, database.transact(tokens.issue_stream_token))
        super().__init__(
            "auth",
            bus,
            settings,
            owns=(database, SampleSecrets(settings, database), passwords),
            loops=(tokens.keep, api_keys.write_uses),
        )
