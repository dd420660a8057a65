"""Who may act for all: looked up when they act, so that a right that was taken away acts no more, whatever a token says."""

from parley_auth.roles import ADMIN, BUILT_IN
from parley_auth.stores.users import UserStore
from parley_contracts.errors import Forbidden
from parley_contracts.roles import Permission, Role
from parley_runtime.database import Transaction


async def role_of_actor(tx: Transaction, actor_id: int | None, permission: Permission) -> Role:
    """The actor's role now; the operator at the command line (None) is an ADMIN. Raises Forbidden."""
    if actor_id is None:
        return BUILT_IN[ADMIN]
    actor = await UserStore(tx).find_account_by_id(actor_id)
    if actor is None or not actor.is_active or permission not in actor.role.permissions:
        raise Forbidden
    return actor.role
