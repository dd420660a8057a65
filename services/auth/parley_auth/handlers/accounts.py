"""One's own account: register, log in, refresh, log out; change name, e-mail, password.

What hashes a password opens its transactions itself: hashing takes 0.13 s and more, and holds no connection meanwhile.
"""

from dataclasses import dataclass

import structlog

from parley_auth.fields import checked_email, checked_username, is_email, normalised, username_for, wrong
from parley_auth.logins import Logins, end_all_logins, end_login
from parley_auth.passwords import Passwords, check_policy
from parley_auth.roles import ADMIN, USER
from parley_auth.stores.refresh_tokens import RefreshTokenStore
from parley_auth.stores.settings import SettingsStore
from parley_auth.stores.users import Account, UserStore
from parley_auth.tokens import hash_of, is_refresh_token
from parley_contracts.accounts import (
    ChangeEmail,
    ChangePassword,
    ChangePasswordKnowingOld,
    ChangeUsername,
    LogIn,
    LogOut,
    RefreshTokens,
    Register,
    Tokens,
    User,
)
from parley_contracts.errors import (
    EmailNotFound,
    EmailTaken,
    InvalidCredentials,
    Overloaded,
    PasswordIncorrect,
    RegistrationClosed,
    TokenRevoked,
    Unauthenticated,
    UserNotFound,
    WrongPassword,
)
from parley_runtime.clock import Clock
from parley_runtime.database import Database, Transaction

log = structlog.get_logger()

_TRIES = 3


@dataclass(frozen=True, slots=True)
class Accounts:
    database: Database
    passwords: Passwords
    logins: Logins
    clock: Clock
    is_open: bool
    """Everyone may register, not the first one only."""
    first_is_admin: bool
    tells_unknown_from_wrong: bool
    needs_old_password: bool

    # --- logging in and out -----------------------------------------------------------------------------------------

    async def register(self, command: Register) -> Tokens:
        username = None if command.username is None else checked_username(command.username)
        email = checked_email(command.email)
        check_policy(command.password)
        password_hash = await self.passwords.hash(command.password)
        async with self.database.transaction() as tx:
            store, now = UserStore(tx), self.clock.now()
            is_first = await store.claim_bootstrap(now)
            if not is_first and not (self.is_open and (await SettingsStore(tx).system()).registration_enabled):
                raise RegistrationClosed
            account = await store.add_user(
                email=email,
                username=username or username_for(email),
                role=ADMIN if is_first and self.first_is_admin else USER,
                password_hash=password_hash,
                now=now,
                last_login_at=now,
            )
            if account is None:
                raise EmailTaken
            log.info("user_registered", user_id=account.user.id, role=account.user.role)
            return await self.logins.begin(tx, account, now, is_long_lived=command.is_long_lived)

    async def log_in(self, command: LogIn) -> Tokens:
        for _ in range(_TRIES):
            account, new_hash = await self._verified(command)
            async with self.database.transaction() as tx:
                now = self.clock.now()
                noted = await UserStore(tx).note_login(account, new_hash, now)
                if noted is not None:
                    return await self.logins.begin(tx, noted, now, is_long_lived=command.is_long_lived)
            # The password was changed, or its hash renewed by another login, since it was read: read it again.
        raise Overloaded

    async def _verified(self, command: LogIn) -> tuple[Account, str | None]:
        email = normalised(command.email)
        account = None
        if is_email(email):
            async with self.database.transaction() as tx:
                account = await UserStore(tx).find_account(email)
        is_right, new_hash = await self.passwords.verify(command.password, account.password_hash if account else None)
        if account is None:
            raise EmailNotFound if self.tells_unknown_from_wrong else InvalidCredentials
        if not is_right:
            raise PasswordIncorrect if self.tells_unknown_from_wrong else InvalidCredentials
        if not account.is_active:
            raise InvalidCredentials
        return account, new_hash

    async def refresh_tokens(self, command: RefreshTokens) -> Tokens:
        if not is_refresh_token(command.refresh_token):
            raise Unauthenticated
        async with self.database.transaction() as tx:
            tokens = await self.logins.rotate(tx, command.refresh_token, self.clock.now())
        if tokens is None:  # raised here: inside, it would roll the revocation back
            raise TokenRevoked
        return tokens

    async def log_out(self, command: LogOut, tx: Transaction) -> None:
        if not is_refresh_token(command.refresh_token):
            raise Unauthenticated
        stored = await RefreshTokenStore(tx).find(hash_of(command.refresh_token))
        if stored is not None:
            await end_login(tx, stored.family, stored.account.user.id, self.clock.now())

    # --- changing ---------------------------------------------------------------------------------------------------

    async def change_username(self, command: ChangeUsername, tx: Transaction) -> User:
        return await _changed(tx, command.user_id, username=checked_username(command.username))

    async def change_email(self, command: ChangeEmail, tx: Transaction) -> User:
        return await _changed(tx, command.user_id, email=checked_email(command.email))

    async def change_password(self, command: ChangePassword) -> Tokens:
        if not is_refresh_token(command.refresh_token):
            raise Unauthenticated
        check_policy(command.new_password)
        if self.needs_old_password and command.old_password is None:
            raise wrong("old_password", "is required")
        async with self.database.transaction() as tx:
            stored = await self.logins.find(tx, command.refresh_token, self.clock.now())
        if stored is None:  # raised here: inside, it would roll the revocation back
            raise TokenRevoked
        if command.old_password is not None:
            await self._check_old(stored.account, command.old_password)
        new_hash = await self.passwords.hash(command.new_password)
        async with self.database.transaction() as tx:
            now = self.clock.now()
            held = await UserStore(tx).find_account_by_id(stored.account.user.id, for_change=True)
            if held is None or await self.logins.find(tx, command.refresh_token, now) is None:
                raise TokenRevoked
            return await self._replace_password(tx, held, new_hash, is_long_lived=False)

    async def change_password_knowing_old(self, command: ChangePasswordKnowingOld) -> Tokens:
        check_policy(command.new_password)
        async with self.database.transaction() as tx:
            account = await UserStore(tx).find_account_by_id(command.user_id)
        if account is None:
            raise UserNotFound
        await self._check_old(account, command.current_password)
        new_hash = await self.passwords.hash(command.new_password)
        async with self.database.transaction() as tx:
            held = await UserStore(tx).find_account_by_id(command.user_id, for_change=True)
            if held is None or not held.is_active:
                raise TokenRevoked
            if held.password_hash != account.password_hash:
                raise WrongPassword
            return await self._replace_password(tx, held, new_hash, is_long_lived=command.is_long_lived)

    async def _check_old(self, account: Account, password: str) -> None:
        is_right, _ = await self.passwords.verify(password, account.password_hash)
        if not is_right:
            raise WrongPassword

    async def _replace_password(self, tx: Transaction, held: Account, new_hash: str, *, is_long_lived: bool) -> Tokens:
        store, now = UserStore(tx), self.clock.now()
        await store.change_user(held.user.id, password_hash=new_hash)
        await end_all_logins(tx, held.user.id, now)
        changed = await store.find_account_by_id(held.user.id) or held
        log.info("password_changed", user_id=held.user.id)
        return await self.logins.begin(tx, changed, now, is_long_lived=is_long_lived)


async def _changed(tx: Transaction, user_id: int, **values: str) -> User:
    store = UserStore(tx)
    if await store.find_account_by_id(user_id, for_change=True) is None:
        raise UserNotFound
    await store.change_user(user_id, **values)
    return (await store.get_users((user_id,)))[0]
