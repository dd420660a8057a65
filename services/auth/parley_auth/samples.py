"""Sample secrets: good for a first look, never for an installation that somebody uses."""

import structlog

from parley_auth.settings import AuthSettings
from parley_auth.stores.users import UserStore
from parley_contracts.errors import ServiceUnavailable
from parley_runtime.database import Database

log = structlog.get_logger()


class SampleSecrets:
    """Owned by the service, after its database: refuses any start after the first account was made (security, row 11)."""

    name = "secrets"

    def __init__(self, settings: AuthSettings, database: Database) -> None:
        self._is_suspect = settings.has_sample_secret and settings.node_env != "test"
        self._database = database

    async def open(self) -> None:
        """Raises OSError, which the launcher shows as one line."""
        if not self._is_suspect:
            return
        log.warning("jwt_secret_is_a_sample", advice="make one with: openssl rand -base64 48")
        try:
            async with self._database.transaction() as tx:
                has_begun = await UserStore(tx).has_begun()
        except ServiceUnavailable:
            return  # the start goes on without a database, as ever; nobody can log in meanwhile
        if has_begun:
            raise OSError(
                "JWT_SECRET is a sample or easily guessed, and there are accounts. Make one with: openssl rand -base64 48"
            )

    async def check(self) -> None:
        """Nothing outside is needed."""

    async def close(self) -> None:
        """Nothing is held."""
