"""An access token opens only what it was made for: the forged tokens of security.md §7, one by one."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from parley_contracts.errors import ParleyError, TokenExpired, Unauthenticated
from parley_contracts.roles import Limits
from parley_runtime.access_tokens import key_id_of, verify_access_token, verify_stream_token

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OURS = Ed25519PrivateKey.generate()
THEIRS = Ed25519PrivateKey.generate()
KEYS = {"ours": OURS.public_key()}


def claims(**changes: Any) -> dict[str, Any]:
    """What our tokens say; a change to None takes the claim out."""
    said = {
        "iss": "parley",
        "aud": "parley-api",
        "sub": "7",
        "jti": "j1",
        "typ": "access",
        "fam": "f1",
        "role": "USER",
        "permissions": ["models:create"],
        "iat": int(NOW.timestamp()),
        "exp": int(NOW.timestamp()) + 900,
        **changes,
    }
    return {name: value for name, value in said.items() if value is not None}


def signed(payload: dict[str, Any], *, key: Ed25519PrivateKey = OURS, kid: str = "ours") -> str:
    return jwt.encode(payload, key, algorithm="EdDSA", headers={"kid": kid})


def by_hand(algorithm: str, sign: Callable[[bytes], bytes]) -> str:
    """A token no library would make."""
    head = encoded({"alg": algorithm, "typ": "JWT", "kid": "ours"}) + b"." + encoded(claims())
    return (head + b"." + base64.urlsafe_b64encode(sign(head)).rstrip(b"=")).decode()


def encoded(value: dict[str, Any]) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")


def hmac_by_public_key(digest: Any) -> Callable[[bytes], bytes]:
    return lambda head: hmac.digest(OURS.public_key().public_bytes_raw(), head, digest)


def tampered() -> str:
    head, _, signature = signed(claims()).split(".")
    return f"{head}.{encoded(claims(role='ADMIN')).decode()}.{signature}"


FORGED = {
    "refresh_where_access_is_due": signed(claims(typ="refresh")),
    "no_typ": signed(claims(typ=None)),
    "no_exp": signed(claims(exp=None)),
    "no_sub": signed(claims(sub=None)),
    "no_jti": signed(claims(jti=None)),
    "other_audience": signed(claims(aud="other-api")),
    "other_issuer": signed(claims(iss="other")),
    "hs256_with_the_public_key": by_hand("HS256", hmac_by_public_key(hashlib.sha256)),
    "hs512_with_the_public_key": by_hand("HS512", hmac_by_public_key(hashlib.sha512)),
    "alg_none": by_hand("none", lambda _head: b""),
    "unknown_kid": signed(claims(), kid="theirs", key=THEIRS),
    "other_key_under_our_kid": signed(claims(), key=THEIRS),
    "tampered": tampered(),
    # beyond the trial's list
    "issued_in_the_future": signed(claims(iat=int(NOW.timestamp()) + 31)),
    "several_audiences": signed(claims(aud=["parley-api", "other-api"])),
    "sub_is_no_user": signed(claims(sub="0")),
    "sub_is_a_number": signed(claims(sub=7)),
    "no_kid": jwt.encode(claims(), OURS, algorithm="EdDSA"),
    "exp_beyond_time": signed(claims(exp=10**18)),
    "stream_token": signed(claims(typ="stream")),
    "nonsense": "nonsense",
    "empty": "",
    "not_ascii": "ü.ü.ü",
}


@pytest.mark.parametrize("token", FORGED.values(), ids=FORGED.keys())
def test_a_forged_token_is_unauthenticated(token: str) -> None:
    with pytest.raises(Unauthenticated):
        verify_access_token(token, KEYS, NOW)


def test_an_expired_token_is_told_apart_from_a_forged_one() -> None:
    with pytest.raises(TokenExpired):
        verify_access_token(signed(claims()), KEYS, NOW + timedelta(seconds=930))


def test_an_expired_and_forged_token_does_not_learn_that_it_expired() -> None:
    with pytest.raises(ParleyError) as refusal:
        verify_access_token(signed(claims(), key=THEIRS), KEYS, NOW + timedelta(days=1))
    assert type(refusal.value) is Unauthenticated


def test_clocks_may_differ_by_less_than_30_seconds() -> None:
    token = signed(claims())
    assert verify_access_token(token, KEYS, NOW - timedelta(seconds=30)).user_id == 7
    assert verify_access_token(token, KEYS, NOW + timedelta(seconds=929)).user_id == 7


def test_a_good_token_becomes_the_principal_it_speaks_for() -> None:
    principal = verify_access_token(signed(claims()), KEYS, NOW)
    assert (principal.user_id, principal.role, principal.permissions) == (7, "USER", ("models:create",))
    assert principal.family == "f1"
    assert principal.expires_at == NOW + timedelta(seconds=900)
    assert (principal.token_id, principal.issued_at) == ("j1", NOW)
    assert (principal.key_id, principal.scopes, principal.models) == (None, (), None)
    assert not principal.is_admin


def test_unknown_claims_are_left_alone_so_that_tokens_can_grow() -> None:
    assert verify_access_token(signed(claims(mood="cheerful", limits={"mood": 1})), KEYS, NOW).user_id == 7


def test_limits_are_those_the_token_names_and_an_older_token_names_none() -> None:
    said = {"modelConfigs": 20, "turnsPerMinute": None}
    assert verify_access_token(signed(claims(limits=said)), KEYS, NOW).limits == Limits(model_configs=20)
    assert verify_access_token(signed(claims()), KEYS, NOW).limits == Limits()


SESSION = "01jgabcdefghjkmnpqrstvwxyz"


def stream(**changes: Any) -> str:
    return signed(claims(typ="stream", exp=int(NOW.timestamp()) + 300, **changes))


def test_a_stream_token_opens_its_session_for_its_user() -> None:
    grant = verify_stream_token(stream(ses=SESSION), KEYS, NOW)
    assert (grant.principal.user_id, grant.principal.family, grant.session_id) == (7, "f1", SESSION)
    assert verify_stream_token(stream(), KEYS, NOW).session_id is None


def test_a_stream_token_is_no_access_token_and_an_access_token_is_no_stream_token() -> None:
    with pytest.raises(Unauthenticated):
        verify_access_token(stream(), KEYS, NOW)
    with pytest.raises(Unauthenticated):
        verify_stream_token(signed(claims()), KEYS, NOW)


@pytest.mark.parametrize("session", ["*", "", 7, "a.b", SESSION.upper()])
def test_a_stream_token_for_what_is_no_session_opens_nothing(session: Any) -> None:
    with pytest.raises(Unauthenticated):
        verify_stream_token(stream(ses=session), KEYS, NOW)


def test_a_stream_token_expires_after_300_seconds() -> None:
    with pytest.raises(TokenExpired):
        verify_stream_token(stream(), KEYS, NOW + timedelta(seconds=330))


@pytest.mark.parametrize("token", [token for name, token in FORGED.items() if name != "stream_token"])
def test_a_forged_token_opens_no_stream(token: str) -> None:
    with pytest.raises(Unauthenticated):
        verify_stream_token(token, KEYS, NOW)


def test_a_token_says_which_key_it_wants_before_it_is_verified() -> None:
    assert key_id_of(signed(claims(), kid="new")) == "new"
