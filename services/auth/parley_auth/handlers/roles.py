"""Roles as an administrator lists and defines them; tokens of those who have one follow at their next refresh."""

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import structlog

from parley_auth.audit import record
from parley_auth.fields import checked_role_name, wrong
from parley_auth.handlers.authority import role_of_actor
from parley_auth.roles import ADMIN, BUILT_IN, PERMISSIONS, check_may_give
from parley_auth.stores.revocations import RevocationStore
from parley_auth.stores.roles import RoleStore
from parley_auth.stores.users import UserStore, next_second
from parley_contracts.accounts import RightsChanged
from parley_contracts.errors import InvalidTransition
from parley_contracts.roles import Limits, ListRoles, PutRole, Role
from parley_runtime.clock import Clock
from parley_runtime.database import Transaction

log = structlog.get_logger()

_HIGHEST_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class Roles:
    clock: Clock

    async def list_roles(self, _query: ListRoles, tx: Transaction) -> tuple[Role, ...]:
        return await RoleStore(tx).list_roles()

    async def put_role(self, command: PutRole, tx: Transaction) -> Role:
        name = checked_role_name(command.name)
        role = Role(
            name=name,
            permissions=_permissions(command.permissions),
            limits=_limits(command.limits),
            is_built_in=name in BUILT_IN,
        )
        store, now = RoleStore(tx), self.clock.now()
        await UserStore(tx).one_admin_act_at_a_time()
        giver = await role_of_actor(tx, command.actor_id, "users:manage")
        if name == ADMIN:
            raise InvalidTransition(reason="the role ADMIN is fixed")
        old = await store.find_role(name)
        for touched in (role, old):
            if touched is not None:
                check_may_give(giver, touched)
        before = await store.put_role(role, next_second(now))
        if old is not None and old != role:
            await RevocationStore(tx).say(RightsChanged(role=name, before=before), now)
        await record(tx, at=now, actor_id=command.actor_id, act="put_role", subject=f"role {name}", before=old, after=role)
        log.info("role_put", role=name, actor_id=command.actor_id)
        return role


def _permissions(asked: Iterable[str]) -> tuple[str, ...]:
    """Once each, in the order they are listed in."""
    wanted = {permission.strip().lower() for permission in asked}
    if unknown := sorted(wanted - set(PERMISSIONS)):
        raise wrong("permissions", f"has {unknown[0][:40]!r}; there are {', '.join(PERMISSIONS)}")
    return tuple(permission for permission in PERMISSIONS if permission in wanted)


def _limits(limits: Limits) -> Limits:
    for field in msgspec.structs.fields(Limits):
        limit = getattr(limits, field.name)
        if limit is not None and not 0 <= limit <= _HIGHEST_LIMIT:
            raise wrong(f"limits.{field.encode_name}", f"must be 0 to {_HIGHEST_LIMIT}, or null for none")
    return limits
