"""Keys and tokens come from JWT_SECRET alone: the same on every replica, and replaceable while tokens live."""

from datetime import UTC, datetime

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from parley_auth.roles import BUILT_IN
from parley_auth.tokens import Issuer, Login, SigningKey, hash_of, is_refresh_token, new_refresh_token, thumbprint
from parley_contracts.accounts import User
from parley_contracts.errors import Unauthenticated
from parley_contracts.ids import is_id
from parley_runtime.access_tokens import key_id_of, verify_access_token

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OLD, NEW = "o" * 32, "n" * 32
USER_7 = User(id=7, username="Ann", email="ann@example.org", role="USER", created_at=NOW)
LOGIN = Login(user=USER_7, role=BUILT_IN["USER"], family="01jgabcdefghjkmnpqrstvwxyz")


def public_keys(issuer: Issuer) -> dict[str, Ed25519PublicKey]:
    """As a gateway makes them, of nothing but what auth answers."""
    return {jwk.kid: jwt.PyJWK({"kty": jwk.kty, "crv": jwk.crv, "x": jwk.x, "alg": jwk.alg}).key for jwk in issuer.jwks()}


def issuer_of(*secrets: str) -> Issuer:
    return Issuer(secrets, access_ttl_s=900, long_ttl_s=86_400)


def test_an_access_token_says_who_what_for_whom_and_until_when() -> None:
    issuer = issuer_of(NEW)
    tokens = issuer.tokens(LOGIN, new_refresh_token(), NOW)
    claims = jwt.decode(tokens.access_token, options={"verify_signature": False})
    assert is_id(claims.pop("jti"))
    assert claims == {
        "iss": "parley",
        "aud": "parley-api",
        "sub": "7",
        "typ": "access",
        "fam": LOGIN.family,
        "role": "USER",
        "permissions": ["models:create"],
        "limits": {"modelConfigs": 20},
        "iat": int(NOW.timestamp()),
        "exp": int(NOW.timestamp()) + 900,
    }
    assert jwt.get_unverified_header(tokens.access_token) == {"alg": "EdDSA", "typ": "JWT", "kid": issuer.signing_key.id}
    assert tokens.expires_in_s == 900


def test_a_gateway_verifies_by_the_public_keys_alone() -> None:
    issuer = issuer_of(NEW)
    tokens = issuer.tokens(LOGIN, new_refresh_token(), NOW)
    principal = verify_access_token(tokens.access_token, public_keys(issuer), NOW)
    assert (principal.user_id, principal.family) == (7, LOGIN.family)


def test_an_admin_may_do_everything() -> None:
    issuer = issuer_of(NEW)
    admin = Login(user=USER_7, role=BUILT_IN["ADMIN"], family=LOGIN.family)
    principal = verify_access_token(issuer.tokens(admin, new_refresh_token(), NOW).access_token, public_keys(issuer), NOW)
    assert principal.is_admin
    assert len(principal.permissions) == 8


def test_every_replica_has_the_same_keys_and_another_secret_gives_others() -> None:
    assert SigningKey(NEW).jwk == SigningKey(NEW).jwk
    assert SigningKey(NEW).id != SigningKey(OLD).id
    assert len(SigningKey(NEW).id) == 11


def test_the_key_id_is_the_thumbprint_of_rfc_8037() -> None:
    assert thumbprint("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo") == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_while_the_secret_is_replaced_the_new_one_signs_and_both_verify() -> None:
    before, during, after = issuer_of(OLD), issuer_of(NEW, OLD), issuer_of(NEW)
    old_token = before.tokens(LOGIN, new_refresh_token(), NOW).access_token
    new_token = during.tokens(LOGIN, new_refresh_token(), NOW).access_token
    assert key_id_of(new_token) == after.signing_key.id
    for token in (old_token, new_token):
        assert verify_access_token(token, public_keys(during), NOW).user_id == 7
    with pytest.raises(Unauthenticated):
        verify_access_token(old_token, public_keys(after), NOW)


def test_no_private_key_is_in_the_answer_about_keys() -> None:
    key = SigningKey(NEW)
    assert key.jwk.x not in key.private.private_bytes_raw().hex()
    assert set(key.jwk.__struct_fields__) == {"kid", "x", "kty", "crv", "alg", "use"}


def test_refresh_tokens_and_their_successors_have_one_form() -> None:
    token = new_refresh_token()
    successor = SigningKey(NEW).successor(token)
    assert is_refresh_token(token)
    assert is_refresh_token(successor)
    assert len({token, successor, new_refresh_token()}) == 3
    assert len(hash_of(token)) == 32


def test_a_successor_follows_from_token_and_secret_and_from_nothing_less() -> None:
    token = new_refresh_token()
    assert SigningKey(NEW).successor(token) == SigningKey(NEW).successor(token)
    assert SigningKey(NEW).successor(token) != SigningKey(OLD).successor(token)
