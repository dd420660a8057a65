"""Auth: who users are and what proves it. Answers Register, LogIn, RefreshTokens, GetUser, GetUsers, GetJwks."""

from datetime import timedelta

from parley_auth.handlers import Handlers
from parley_auth.passwords import Passwords
from parley_auth.settings import AuthSettings
from parley_auth.tokens import Issuer
from parley_contracts.accounts import GetJwks, GetUser, GetUsers, LogIn, RefreshTokens, Register
from parley_runtime.bus import Bus
from parley_runtime.clock import Clock, SystemClock
from parley_runtime.database import Database
from parley_runtime.service import Service


class AuthService(Service):
    MIGRATIONS = ("parley_auth", "auth")

    def __init__(self, settings: AuthSettings, bus: Bus, clock: Clock = SystemClock()) -> None:  # noqa: B008 - holds no state
        database = Database(settings.database_url.get_secret_value(), bus=bus, pool_size=settings.database_pool_size)
        passwords = Passwords(memory_kib=settings.argon2_memory_kib, time_cost=settings.argon2_time_cost)
        handlers = Handlers(
            database=database,
            passwords=passwords,
            issuer=Issuer(settings.jwt_secrets, access_ttl_s=settings.access_token_ttl_s),
            clock=clock,
            refresh_ttl=timedelta(seconds=settings.refresh_token_ttl_s),
            is_open=settings.auth_mode == "multi",
            first_is_admin=settings.bootstrap_admin,
        )
        bus.answer(Register, handlers.register)
        bus.answer(LogIn, handlers.log_in)
        bus.answer(RefreshTokens, handlers.refresh_tokens)
        bus.answer(GetUser, database.transact(handlers.get_user))
        bus.answer(GetUsers, database.transact(handlers.get_users))
        bus.answer(GetJwks, handlers.get_jwks)
        super().__init__("auth", bus, settings, owns=(database, passwords))
