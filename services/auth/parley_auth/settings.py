"""What auth alone needs to know: the secret it signs with, how long tokens live, who may register."""

from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from parley_runtime.settings import Settings

_LEAST_SECRET_BYTES = 32
_LEAST_DISTINCT_CHARACTERS = 10
_SAMPLE_WORDS = ("secret", "change", "example", "sample", "password", "your-", "your_", "0123456789", "abcdefgh")


class AuthSettings(Settings):
    # An error of these fields would print its input, and the input holds the secret.
    model_config = SettingsConfigDict(hide_input_in_errors=True)

    jwt_secret: SecretStr = Field(
        default=SecretStr(""),
        description="Signs access tokens: 32 random bytes or more; `new,old` while it is replaced. Unset in development:"
        " made by `parley up`.",
    )
    access_token_ttl_s: int = Field(default=900, ge=1, description="How long an access token is valid.")
    s3_token_ttl_s: int = Field(
        default=86_400, ge=1, description="How long an access token from `/api/auth/*` is valid: its clients do not refresh."
    )
    refresh_token_ttl_s: int = Field(
        default=30 * 86_400, ge=1, description="How long a refresh token is valid; each use makes a new one."
    )
    auth_mode: Literal["multi", "single"] = Field(
        default="multi", description="`multi`: everyone may register. `single`: the first registration only."
    )
    bootstrap_admin: bool = Field(default=True, description="The first account of an empty installation is an ADMIN.")
    auth_distinct_login_errors: bool = Field(
        default=False, description="Tell an unknown e-mail from a wrong password at login: anyone can then list accounts."
    )
    password_change_requires_old: bool = Field(
        default=False, description="`POST /user/me/password` needs the old password beside the refresh token."
    )
    argon2_memory_kib: int = Field(default=65_536, ge=32, description="Memory that hashing one password takes.")
    argon2_time_cost: int = Field(default=3, ge=1, description="Passes over that memory; about 0.13 s with the defaults.")

    @model_validator(mode="after")
    def _has_a_secret(self) -> Self:
        for secret in self.jwt_secrets:
            problem = _problem(secret, is_production=self.node_env == "production")
            if problem:
                raise ValueError(f"JWT_SECRET {problem}. Make one with: openssl rand -base64 48")
        return self

    @property
    def jwt_secrets(self) -> tuple[str, ...]:
        """The first signs, all verify."""
        return tuple(secret.strip() for secret in self.jwt_secret.get_secret_value().split(","))

    @property
    def has_sample_secret(self) -> bool:
        """Whether a secret is one that others could know; outside production good for a first look only."""
        return any(_is_sample(secret) for secret in self.jwt_secrets)


def _problem(secret: str, *, is_production: bool) -> str | None:
    if not secret:
        return "is missing"
    if len(secret.encode()) < _LEAST_SECRET_BYTES:
        return f"is too short: it needs {_LEAST_SECRET_BYTES} bytes"
    if is_production and _is_sample(secret):
        return "is a sample or easily guessed"
    return None


def _is_sample(secret: str) -> bool:
    return len(set(secret)) < _LEAST_DISTINCT_CHARACTERS or any(word in secret.lower() for word in _SAMPLE_WORDS)
