"""What the launcher alone needs to know: where data lies, and which servers are yours instead of embedded ones."""

import os
from pathlib import Path

from dotenv import dotenv_values
from pydantic import Field, SecretStr

from parley_runtime.settings import Settings


class LauncherSettings(Settings):
    """Read by `parley up`; the services read their own."""

    parley_data_dir: Path = Field(
        default=Path(".parley"),
        description="Where `parley up` keeps the embedded servers' data, generated secrets and logs.",
    )
    s3_endpoint_url: str = Field(default="", description="An S3-compatible object store; unset: embedded by `parley up`.")

    def is_given(self, field: str) -> bool:
        """Whether somebody set it. An empty line in `.env` sets nothing."""
        value = getattr(self, field)
        text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        return field in self.model_fields_set and text != ""


SERVERS_SET_BY = {
    "nats": "nats_url",
    "postgres": "database_url",
    "valkey": "redis_url",
    "s3": "s3_endpoint_url",
}
"""An embedded server, and the setting that replaces it."""


def value_of(name: str) -> str:
    """A setting as the services will read it: from the environment, else from .env; empty when nobody set it."""
    return os.environ.get(name) or dotenv_values(".env").get(name) or ""
