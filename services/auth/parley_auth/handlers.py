"""What auth does: register, log in, refresh, and tell who users are and which keys verify tokens.

Register and LogIn open their transactions themselves: hashing takes 0.13 s and more, and holds no connection meanwhile.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from parley_auth.passwords import Passwords, check_policy
from parley_auth.roles import ADMIN, USER
from parley_auth.store import AuthStore, StoredRefreshToken
from parley_auth.tokens import Issuer, Login, hash_of, is_refresh_token, new_refresh_token
from parley_contracts.accounts import GetJwks, GetUser, GetUsers, Jwk, LogIn, RefreshTokens, Register, Tokens, User
from parley_contracts.errors import (
    EmailTaken,
    InvalidCredentials,
    InvalidEmail,
    Problem,
    RegistrationClosed,
    TokenRevoked,
    Unauthenticated,
    UserNotFound,
    ValidationFailed,
)
from parley_contracts.ids import new_id
from parley_runtime.clock import Clock
from parley_runtime.database import Database, Transaction

log = structlog.get_logger()

GRACE = timedelta(seconds=10)
"""A refresh token used again this soon is a second tab, later a thief."""
_LONGEST_EMAIL = 254
_LONGEST_USERNAME = 50


@dataclass(frozen=True, slots=True)
class Handlers:
    database: Database
    passwords: Passwords
    issuer: Issuer
    clock: Clock
    refresh_ttl: timedelta
    is_open: bool
    """Everyone may register, not the first one only."""
    first_is_admin: bool

    async def register(self, command: Register) -> Tokens:
        username = _checked_username(command.username)
        email = normalised(command.email)
        if not is_email(email):
            raise InvalidEmail
        check_policy(command.password)
        password_hash = await self.passwords.hash(command.password)
        async with self.database.transaction() as tx:
            store, now = AuthStore(tx), self.clock.now()
            is_first = await store.claim_bootstrap(now)
            if not is_first and not self.is_open:
                raise RegistrationClosed
            role = ADMIN if is_first and self.first_is_admin else USER
            user_id = await store.add_user(email=email, username=username, role=role, password_hash=password_hash, now=now)
            if user_id is None:
                raise EmailTaken
            log.info("user_registered", user_id=user_id, role=role)
            return await self._begin_login(store, user_id, role, now)

    async def log_in(self, command: LogIn) -> Tokens:
        email = normalised(command.email)
        account = None
        if is_email(email):
            async with self.database.transaction() as tx:
                account = await AuthStore(tx).find_account(email)
        is_right, new_hash = await self.passwords.verify(command.password, account.password_hash if account else None)
        if account is None or not is_right:
            raise InvalidCredentials
        async with self.database.transaction() as tx:
            store, now = AuthStore(tx), self.clock.now()
            if new_hash:
                await store.replace_password_hash(account.user_id, account.password_hash, new_hash)
            await store.note_login(account.user_id, now)
            return await self._begin_login(store, account.user_id, account.role, now)

    async def refresh_tokens(self, command: RefreshTokens) -> Tokens:
        if not is_refresh_token(command.refresh_token):
            raise Unauthenticated
        async with self.database.transaction() as tx:
            tokens = await self._rotate(AuthStore(tx), command.refresh_token)
        if tokens is None:  # raised here: inside, it would roll the revocation back
            raise TokenRevoked
        return tokens

    async def get_user(self, query: GetUser, tx: Transaction) -> User:
        users = await AuthStore(tx).get_users((query.user_id,))
        if not users:
            raise UserNotFound
        return users[0]

    async def get_users(self, query: GetUsers, tx: Transaction) -> tuple[User, ...]:
        return await AuthStore(tx).get_users(query.user_ids)

    async def get_jwks(self, _query: GetJwks) -> tuple[Jwk, ...]:
        return self.issuer.jwks()

    async def _begin_login(self, store: AuthStore, user_id: int, role: str, now: datetime) -> Tokens:
        login = Login(user_id=user_id, role=role, family=new_id())
        refresh_token = new_refresh_token()
        await self._keep(store, login, refresh_token, now)
        return self.issuer.tokens(login, refresh_token, now)

    async def _keep(self, store: AuthStore, login: Login, refresh_token: str, now: datetime) -> None:
        key_id = self.issuer.signing_key.id
        await store.add_refresh_token(hash_of(refresh_token), login, key_id=key_id, expires_at=now + self.refresh_ttl)

    async def _rotate(self, store: AuthStore, refresh_token: str) -> Tokens | None:
        """The successor's pair; None: the token opens nothing, and if it was stolen, neither does its family."""
        now = self.clock.now()
        is_ours = await store.rotate(hash_of(refresh_token), now)
        stored = await store.find_refresh_token(hash_of(refresh_token))
        if stored is None or stored.rotated_at is None or stored.revoked_at is not None:
            return None
        if now - stored.rotated_at > GRACE:
            await store.revoke_family(stored.login.family, now)
            log.warning("refresh_token_reused", user_id=stored.login.user_id, family=stored.login.family)
            return None
        successor = self._successor(stored, refresh_token)
        if successor is None:
            return None
        if is_ours:
            await self._keep(store, stored.login, successor, now)
        # Whoever asks within the grace gets the very pair the first one got.
        return self.issuer.tokens(stored.login, successor, stored.rotated_at)

    def _successor(self, stored: StoredRefreshToken, refresh_token: str) -> str | None:
        key = self.issuer.key(stored.key_id)
        if key is None:
            log.info("refresh_token_of_removed_secret", user_id=stored.login.user_id)
            return None
        return key.successor(refresh_token)


def normalised(email: str) -> str:
    return email.strip().lower()


def is_email(text: str) -> bool:
    """Strict enough to catch slips; only a letter sent there would prove more."""
    local, _, domain = text.rpartition("@")
    return (
        len(text) <= _LONGEST_EMAIL
        and text.isprintable()
        and " " not in text
        and "@" not in local
        and local != ""
        and (domain == "localhost" or (len(domain.split(".")) > 1 and all(domain.split("."))))
    )


def _checked_username(text: str) -> str:
    username = text.strip()
    if not 1 <= len(username) <= _LONGEST_USERNAME:
        raise ValidationFailed(problems=(Problem("username", f"needs 1 to {_LONGEST_USERNAME} characters"),))
    if not username.isprintable():
        raise ValidationFailed(problems=(Problem("username", "has control characters"),))
    return username
