"""Users as an administrator sees and changes them. Each change leaves an audit row; `actor_id` is who asks for it.

The actor needs `users:manage` now, whatever their token says, and touches no user, and gives no role, with a permission
they lack themselves: else Forbidden. `actor_id` None is the operator at the command line (`parley user create`).
"""

from typing import ClassVar

import msgspec

from parley_contracts.accounts import User, UserStatus
from parley_contracts.message import Command, Query


class UserPage(msgspec.Struct, frozen=True, kw_only=True):
    """`total` counts all that match."""

    users: tuple[User, ...]
    total: int


class ListUsers(Query[UserPage], frozen=True, kw_only=True):
    """Newest first. `q`: part of user name or e-mail, in any case; `role` in any case."""

    subject: ClassVar[str] = "auth.list_users"
    page: int = 1
    limit: int = 50
    q: str | None = None
    role: str | None = None
    status: UserStatus | None = None


class CreateUser(Command[User], frozen=True, kw_only=True):
    """An account that is not logged in; works also where registration is closed. `username` None: what stands before the @.

    Errors: EmailTaken, InvalidEmail, PasswordPolicy, ValidationFailed, RoleNotFound, Forbidden.
    """

    subject: ClassVar[str] = "auth.create_user"
    actor_id: int | None
    email: str
    password: str
    username: str | None = None
    role: str = "USER"


class UpdateUser(Command[User], frozen=True, kw_only=True):
    """None: stays as it is. A new role reaches tokens by RightsChanged; a new password or `disabled` ends all logins.

    Errors: UserNotFound, RoleNotFound, EmailTaken, InvalidEmail, PasswordPolicy, ValidationFailed, Forbidden,
    InvalidTransition (the last active ADMIN cannot be demoted or disabled).
    """

    subject: ClassVar[str] = "auth.update_user"
    actor_id: int | None
    user_id: int
    username: str | None = None
    email: str | None = None
    role: str | None = None
    status: UserStatus | None = None
    password: str | None = None


class DeleteUser(Command[None], frozen=True, kw_only=True):
    """Gone with logins, keys and personal settings; UserDeleted tells the others to erase theirs.

    Errors: UserNotFound, Forbidden, InvalidTransition (the last active ADMIN).
    """

    subject: ClassVar[str] = "auth.delete_user"
    actor_id: int | None
    user_id: int
