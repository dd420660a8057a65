"""A secret that others could know does not sign: the start is refused with one line that says what to do."""

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from parley_auth.settings import AuthSettings

GOOD = "qk3Tz8vY1wLr5uXb7nMc9pJd2sFh6gAe"
SAMPLES = [
    "your-jwt-secret-your-jwt-secret-your-jwt-secret",
    "change-me-in-production-please-1234567890",
    "a" * 64,
    "0123456789abcdef0123456789abcdef",
    "my-super-SECRET-key-of-forty-characters-xy",
]

MakeSettings = Callable[..., AuthSettings]


@pytest.mark.parametrize("environment", ["development", "test", "production"])
@pytest.mark.parametrize("secret", ["", "short", "a1" * 15, f"{GOOD},", f"{GOOD},short"])
def test_a_missing_or_short_secret_refuses_the_start(make_settings: MakeSettings, secret: str, environment: str) -> None:
    with pytest.raises(ValidationError, match=r"JWT_SECRET is (missing|too short).*openssl rand"):
        make_settings(jwt_secret=secret, node_env=environment)


@pytest.mark.parametrize("secret", [*SAMPLES, f"{GOOD},{SAMPLES[0]}"])
def test_a_sample_refuses_the_start_in_production_only(make_settings: MakeSettings, secret: str) -> None:
    assert make_settings(jwt_secret=secret, node_env="development")
    with pytest.raises(ValidationError, match="JWT_SECRET is a sample"):
        make_settings(jwt_secret=secret, node_env="production")


def test_a_random_secret_starts_in_production(make_settings: MakeSettings) -> None:
    assert make_settings(jwt_secret=f"{GOOD}, {GOOD[::-1]}", node_env="production").jwt_secrets == (GOOD, GOOD[::-1])


def test_no_error_and_no_print_shows_the_secret(make_settings: MakeSettings) -> None:
    with pytest.raises(ValidationError) as refusal:
        make_settings(jwt_secret=SAMPLES[0], node_env="production", auth_mode="nonsense")
    assert SAMPLES[0] not in str(refusal.value)
    with pytest.raises(ValidationError) as refusal:
        make_settings(jwt_secret=SAMPLES[0], node_env="production")
    assert SAMPLES[0] not in str(refusal.value)
    assert GOOD not in repr(make_settings(jwt_secret=GOOD))


def test_a_sample_is_known_in_every_environment(make_settings: MakeSettings) -> None:
    assert not make_settings(jwt_secret=GOOD).has_sample_secret
    for secret in SAMPLES:
        assert make_settings(jwt_secret=f"{GOOD},{secret}").has_sample_secret
