"""Roles: what those who have one may do, and how much of it."""

from typing import ClassVar, Literal, TypeAlias

import msgspec

from parley_contracts.message import Command, Query

Permission: TypeAlias = Literal[
    "models:create",
    "models:system",
    "users:manage",
    "settings:manage",
    "usage:read_all",
    "activity:read_all",
    "flows:manage",
    "connections:manage",
]


class Limits(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a role limits; camelCase in tokens and on the wire. None: no limit of the role's own (the installation's hold)."""

    model_configs: int | None = None
    """Model configs a user may own."""
    requests_per_minute: int | None = None
    turns_per_minute: int | None = None
    """Turns a user may start in a minute."""
    connections: int | None = None
    """Sockets a user may hold open."""
    concurrent_turns: int | None = None
    """Turns of a user that may run at the same time."""


class Role(msgspec.Struct, frozen=True, kw_only=True):
    """`is_built_in`: ADMIN and USER, which are always there. S2's user group is the name in lower case."""

    name: str
    permissions: tuple[str, ...]
    limits: Limits
    is_built_in: bool = False


class ListRoles(Query[tuple[Role, ...]], frozen=True, kw_only=True):
    """Built-in ones first, then by name."""

    subject: ClassVar[str] = "auth.list_roles"


class PutRole(Command[Role], frozen=True, kw_only=True):
    """Make or replace a role; leaves an audit row. Names are read in any case and kept in upper case.

    `actor_id` needs `users:manage`, and gives nobody a permission it lacks itself; None: the operator at the command line.
    Errors: InvalidTransition (ADMIN cannot be changed), Forbidden, ValidationFailed (name, permissions, limits).
    """

    subject: ClassVar[str] = "auth.put_role"
    actor_id: int | None
    name: str
    permissions: tuple[str, ...]
    limits: Limits
