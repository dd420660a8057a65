"""Users as others see them, and as an administrator makes, changes and deletes them. One such act at a time."""

from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from parley_auth.audit import record
from parley_auth.fields import checked_email, checked_username, role_name, username_for, wrong
from parley_auth.handlers.authority import role_of_actor
from parley_auth.logins import end_all_logins, renew_rights
from parley_auth.passwords import Passwords, check_policy
from parley_auth.roles import ADMIN, check_may_give
from parley_auth.stores.roles import RoleStore
from parley_auth.stores.users import Account, UserStore
from parley_contracts.accounts import GetUser, GetUsers, User, UserDeleted
from parley_contracts.errors import EmailTaken, InvalidTransition, RoleNotFound, UserNotFound
from parley_contracts.roles import Role
from parley_contracts.users import CreateUser, DeleteUser, ListUsers, UpdateUser, UserPage
from parley_runtime.clock import Clock
from parley_runtime.database import Database, Transaction

log = structlog.get_logger()

_MOST_ON_A_PAGE = 1000
_LAST_PAGE = 1_000_000


@dataclass(frozen=True, slots=True)
class Users:
    database: Database
    passwords: Passwords
    clock: Clock

    async def get_user(self, query: GetUser, tx: Transaction) -> User:
        users = await UserStore(tx).get_users((query.user_id,))
        if not users:
            raise UserNotFound
        return users[0]

    async def get_users(self, query: GetUsers, tx: Transaction) -> tuple[User, ...]:
        return await UserStore(tx).get_users(query.user_ids)

    async def list_users(self, query: ListUsers, tx: Transaction) -> UserPage:
        if not 1 <= query.page <= _LAST_PAGE:
            raise wrong("page", f"must be 1 to {_LAST_PAGE}")
        if not 1 <= query.limit <= _MOST_ON_A_PAGE:
            raise wrong("limit", f"must be 1 to {_MOST_ON_A_PAGE}")
        if any("\x00" in text for text in (query.q or "", query.role or "")):
            return UserPage(users=(), total=0)
        users, total = await UserStore(tx).list_users(
            q=query.q,
            role=None if query.role is None else role_name(query.role),
            status=query.status,
            limit=query.limit,
            offset=(query.page - 1) * query.limit,
        )
        return UserPage(users=users, total=total)

    async def create_user(self, command: CreateUser) -> User:
        username = None if command.username is None else checked_username(command.username)
        email = checked_email(command.email)
        check_policy(command.password)
        password_hash = await self.passwords.hash(command.password)
        async with self.database.transaction() as tx:
            store, now = UserStore(tx), self.clock.now()
            await store.one_admin_act_at_a_time()
            giver = await role_of_actor(tx, command.actor_id, "users:manage")
            role = await _role(tx, command.role)
            check_may_give(giver, role)
            # Whoever registers after this is not the installation's first.
            await store.claim_bootstrap(now)
            account = await store.add_user(
                email=email,
                username=username or username_for(email),
                role=role.name,
                password_hash=password_hash,
                now=now,
            )
            if account is None:
                raise EmailTaken
            await record(
                tx, at=now, actor_id=command.actor_id, act="create_user", subject=_subject(account), after=account.user
            )
            log.info("user_created", user_id=account.user.id, role=role.name, actor_id=command.actor_id)
            return account.user

    async def update_user(self, command: UpdateUser) -> User:
        values = _values(command)
        if command.password is not None:
            check_policy(command.password)
            values["password_hash"] = await self.passwords.hash(command.password)
        async with self.database.transaction() as tx:
            store = UserStore(tx)
            held, giver = await self._held(tx, command.actor_id, command.user_id)
            if command.role is not None:
                role = await _role(tx, command.role)
                check_may_give(giver, role)
                values["role"] = role.name
            await _check_admin_remains(store, held, role=values.get("role"), status=values.get("status"))
            await store.change_user(held.user.id, **values)
            await self._tell(tx, held, values)
            user = (await store.get_users((held.user.id,)))[0]
            before, after = _shown(held.user), _shown(user)
            if command.password is not None:
                before["password"], after["password"] = "old", "new"
            await record(
                tx,
                at=self.clock.now(),
                actor_id=command.actor_id,
                act="update_user",
                subject=_subject(held),
                before=before,
                after=after,
            )
            log.info("user_updated", user_id=user.id, actor_id=command.actor_id, changed=sorted(values))
            return user

    async def delete_user(self, command: DeleteUser) -> None:
        async with self.database.transaction() as tx:
            store, now = UserStore(tx), self.clock.now()
            held, _ = await self._held(tx, command.actor_id, command.user_id)
            await _check_admin_remains(store, held, status="deleted")
            await end_all_logins(tx, held.user.id, now)
            await store.delete_user(held.user.id, now)
            tx.announce(UserDeleted(user_id=held.user.id))
            await record(tx, at=now, actor_id=command.actor_id, act="delete_user", subject=_subject(held), before=held.user)
            log.info("user_deleted", user_id=held.user.id, actor_id=command.actor_id)

    async def _held(self, tx: Transaction, actor_id: int | None, user_id: int) -> tuple[Account, Role]:
        """The account, which nobody else changes until the transaction ends, and the role of the actor, who may."""
        store = UserStore(tx)
        await store.one_admin_act_at_a_time()
        actor = await role_of_actor(tx, actor_id, "users:manage")
        held = await store.find_account_by_id(user_id, for_change=True)
        if held is None:
            raise UserNotFound
        check_may_give(actor, held.role)
        return held, actor

    async def _tell(self, tx: Transaction, held: Account, values: dict[str, str]) -> None:
        now = self.clock.now()
        is_disabled = values.get("status") == "disabled" and held.is_active
        if is_disabled or "password_hash" in values:
            await end_all_logins(tx, held.user.id, now)
        elif values.get("role", held.user.role) != held.user.role:
            await renew_rights(tx, held.user.id, now)


def _values(command: UpdateUser) -> dict[str, str]:
    """The columns that change, as far as they need nothing but the command."""
    values: dict[str, str] = {}
    if command.username is not None:
        values["username"] = checked_username(command.username)
    if command.email is not None:
        values["email"] = checked_email(command.email)
    if command.status is not None:
        values["status"] = command.status
    return values


async def _role(tx: Transaction, name: str) -> Role:
    role = None if "\x00" in name else await RoleStore(tx).find_role(role_name(name))
    if role is None:
        raise RoleNotFound(role=name[:40])
    return role


async def _check_admin_remains(store: UserStore, held: Account, *, role: str | None = None, status: str | None = None) -> None:
    """Raises InvalidTransition. Sure, since such acts come one at a time."""
    is_active_admin = held.user.role == ADMIN and held.is_active
    remains = (role or ADMIN) == ADMIN and (status or "active") == "active"
    if is_active_admin and not remains and not await store.has_another_active_admin(held.user.id):
        raise InvalidTransition(reason="this is the last active administrator")


def _subject(account: Account) -> str:
    return f"user {account.user.id}"


def _shown(user: User) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(user)
    return shown
