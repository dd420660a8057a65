"""What gateways need to check tokens, and to end them: public keys, what was revoked, stream tokens; and the hourly upkeep."""

import contextlib
from dataclasses import dataclass
from datetime import timedelta

import structlog

from parley_auth.logins import login_of
from parley_auth.stores.refresh_tokens import RefreshTokenStore
from parley_auth.stores.revocations import RevocationStore
from parley_auth.stores.users import UserStore
from parley_auth.tokens import Issuer
from parley_contracts.accounts import (
    GetJwks,
    IssueStreamToken,
    Jwk,
    KeysChanged,
    ListRevoked,
    Revocations,
    StreamToken,
    UserDeleted,
)
from parley_contracts.errors import ServiceUnavailable, TokenRevoked
from parley_runtime.access_tokens import LEEWAY_S
from parley_runtime.bus import Bus
from parley_runtime.clock import Clock
from parley_runtime.database import Database, Transaction

log = structlog.get_logger()

COMMITS_MAY_TAKE = timedelta(seconds=60)
"""A revocation is dated when its handler begins, seen when it commits, and clocks of replicas differ."""
UPKEEP_EVERY_S = 3600.0
DELETED_USERS_SAID_FOR = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class TokenHandlers:
    bus: Bus
    database: Database
    issuer: Issuer
    clock: Clock

    async def get_jwks(self, _query: GetJwks) -> tuple[Jwk, ...]:
        return self.issuer.jwks()

    async def list_revoked(self, query: ListRevoked, tx: Transaction) -> Revocations:
        as_of = self.clock.now()
        since = as_of - self._meets_tokens_for if query.since is None else query.since - COMMITS_MAY_TAKE
        return await RevocationStore(tx).since(since, as_of=as_of)

    async def issue_stream_token(self, command: IssueStreamToken, tx: Transaction) -> StreamToken:
        now = self.clock.now()
        account = await UserStore(tx).find_account_by_id(command.user_id)
        if account is None or not account.is_active:
            raise TokenRevoked
        if "\x00" in command.family or not await RefreshTokenStore(tx).is_alive(command.family, command.user_id, now):
            raise TokenRevoked
        return self.issuer.stream_token(login_of(account, command.family), command.session_id, now)

    async def keep(self) -> None:
        """For ever: at the start and every hour."""
        while True:
            await self.bus.publish(KeysChanged(key_ids=tuple(jwk.kid for jwk in self.issuer.jwks())))
            with contextlib.suppress(ServiceUnavailable):  # the database is away, and its own log says so
                await self.keep_now()
            await self.clock.sleep(UPKEEP_EVERY_S)

    async def keep_now(self) -> None:
        """Forget what opens nothing and ends nothing any more; say again whose data is to be erased."""
        now = self.clock.now()
        async with self.database.transaction() as tx:
            gone = await RefreshTokenStore(tx).purge(now)
            await RevocationStore(tx).purge(now - self._meets_tokens_for)
            users = UserStore(tx)
            await users.forget_deleted_users(now - DELETED_USERS_SAID_FOR)
            for user_id in await users.deleted_users():
                tx.announce(UserDeleted(user_id=user_id))
        log.info("auth_upkeep_done", expired=gone)

    @property
    def _meets_tokens_for(self) -> timedelta:
        return self.issuer.longest_ttl + timedelta(seconds=LEEWAY_S) + COMMITS_MAY_TAKE
