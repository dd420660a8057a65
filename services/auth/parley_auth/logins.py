"""Logins: how one begins, goes on and ends. A login is a family of refresh tokens; whatever ends it is said to all gateways."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from parley_auth.stores.refresh_tokens import RefreshTokenStore, StoredRefreshToken
from parley_auth.stores.revocations import RevocationStore
from parley_auth.stores.users import Account, UserStore
from parley_auth.tokens import Issuer, Login, hash_of, new_refresh_token
from parley_contracts.accounts import FamilyRevoked, RightsChanged, Tokens
from parley_contracts.ids import new_id
from parley_runtime.database import Transaction

log = structlog.get_logger()

GRACE = timedelta(seconds=10)
"""A refresh token used again this soon is a second tab, later a thief."""


@dataclass(frozen=True, slots=True)
class Logins:
    issuer: Issuer
    refresh_ttl: timedelta

    async def begin(self, tx: Transaction, account: Account, now: datetime, *, is_long_lived: bool) -> Tokens:
        login = login_of(account, new_id(), is_long_lived=is_long_lived)
        refresh_token = new_refresh_token()
        await self._keep(tx, login, refresh_token, now)
        return self.issuer.tokens(login, refresh_token, now)

    async def rotate(self, tx: Transaction, refresh_token: str, now: datetime) -> Tokens | None:
        """The successor's pair; None: the token opens nothing, and if it was stolen, neither does its family."""
        store = RefreshTokenStore(tx)
        is_ours = await store.rotate(hash_of(refresh_token), now)
        stored = await store.find(hash_of(refresh_token))
        if stored is None or stored.rotated_at is None or not await self._is_good(tx, stored, now):
            return None
        key = self.issuer.key(stored.key_id)
        if key is None:
            log.info("refresh_token_of_removed_secret", user_id=stored.account.user.id)
            return None
        successor = key.successor(refresh_token)
        login = login_of(stored.account, stored.family)
        if is_ours:
            await self._keep(tx, login, successor, now)
        # Whoever asks within the grace gets the very pair the first one got.
        return self.issuer.tokens(login, successor, stored.rotated_at)

    async def find(self, tx: Transaction, refresh_token: str, now: datetime) -> StoredRefreshToken | None:
        """Whose token this is, without using it up; None as in `rotate`."""
        stored = await RefreshTokenStore(tx).find(hash_of(refresh_token))
        if stored is None or stored.expires_at <= now or not await self._is_good(tx, stored, now):
            return None
        return stored

    async def _is_good(self, tx: Transaction, stored: StoredRefreshToken, now: datetime) -> bool:
        if stored.revoked_at is not None or not stored.account.is_active:
            return False
        if stored.rotated_at is not None and now - stored.rotated_at > GRACE:
            await end_login(tx, stored.family, stored.account.user.id, now)
            log.warning("refresh_token_reused", user_id=stored.account.user.id, family=stored.family)
            return False
        return True

    async def _keep(self, tx: Transaction, login: Login, refresh_token: str, now: datetime) -> None:
        await RefreshTokenStore(tx).add(
            hash_of(refresh_token),
            user_id=login.user.id,
            family=login.family,
            key_id=self.issuer.signing_key.id,
            expires_at=now + self.refresh_ttl,
        )


def login_of(account: Account, family: str, *, is_long_lived: bool = False) -> Login:
    return Login(
        user=account.user, role=account.role, family=family, valid_from=account.valid_from, is_long_lived=is_long_lived
    )


async def end_login(tx: Transaction, family: str, user_id: int, now: datetime) -> None:
    """Its refresh tokens at once, its access tokens as soon as the gateways hear of it. Nothing if it had ended."""
    if await RefreshTokenStore(tx).revoke_family(family, now):
        await RevocationStore(tx).say(FamilyRevoked(family=family, user_id=user_id), now)


async def end_all_logins(tx: Transaction, user_id: int, now: datetime) -> None:
    """Password changed, disabled, deleted: log in again. The user's row must be held by this transaction."""
    await RefreshTokenStore(tx).revoke_all(user_id, now)
    before = await UserStore(tx).renew_tokens(user_id, now)
    await RevocationStore(tx).say(RightsChanged(user_id=user_id, before=before, must_log_in=True), now)


async def renew_rights(tx: Transaction, user_id: int, now: datetime) -> None:
    """What tokens say of the user is no longer so: refresh them."""
    before = await UserStore(tx).renew_tokens(user_id, now)
    await RevocationStore(tx).say(RightsChanged(user_id=user_id, before=before), now)
