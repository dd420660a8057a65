"""Roles: who may do what, and who may give what to whom. ADMIN and USER are built in; an administrator adds others."""

from collections.abc import Collection
from typing import get_args

from parley_contracts.errors import Forbidden
from parley_contracts.roles import Limits, Permission, Role

ADMIN = "ADMIN"
USER = "USER"
PERMISSIONS: tuple[str, ...] = get_args(Permission)

BUILT_IN = {
    ADMIN: Role(name=ADMIN, permissions=PERMISSIONS, limits=Limits(), is_built_in=True),
    USER: Role(name=USER, permissions=("models:create",), limits=Limits(model_configs=20), is_built_in=True),
}


def role_named(name: str, stored: Role | None) -> Role:
    """The role as it holds now. One that is nowhere gives no rights at all."""
    if stored is not None and name != ADMIN:
        return stored
    return BUILT_IN.get(name) or Role(name=name, permissions=(), limits=Limits())


def check_may_give(giver: Role, role: Role) -> None:
    """Raises Forbidden: nobody gives, or takes from others, what they lack themselves, and only an ADMIN makes ADMINs."""
    if (role.name == ADMIN and giver.name != ADMIN) or not _covers(giver.permissions, role.permissions):
        raise Forbidden


def _covers(more: Collection[str], less: Collection[str]) -> bool:
    return set(less) <= set(more)
