"""The signatures of tokens by other people's vectors: RFC 8032, RFC 8037 and Wycheproof, through the library we verify with."""

import base64
import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from jwt.algorithms import OKPAlgorithm

from parley_contracts.errors import Unauthenticated
from parley_runtime.access_tokens import ALGORITHM, verify_access_token

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ORDER = 2**252 + 27742317777372353535851937790883648493
VECTORS = Path(__file__).parent / "vectors"


@cache
def vectors(name: str) -> tuple[dict[str, str], ...]:
    return tuple(json.loads((VECTORS / name).read_text())["vectors"])


def verifies(vector: dict[str, str]) -> bool:
    """What `jwt.decode` asks about a signature under `EdDSA`."""
    algorithm = jwt.get_algorithm_by_name(ALGORITHM)
    assert isinstance(algorithm, OKPAlgorithm)
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(vector["public"]))
    return algorithm.verify(bytes.fromhex(vector["message"]), key, bytes.fromhex(vector["signature"]))


@pytest.mark.parametrize("result", ["valid", "invalid"])
def test_every_signature_of_wycheproof_is_judged_as_it_says(result: str) -> None:
    asked = [vector for vector in vectors("wycheproof_ed25519.json") if vector["result"] == result]
    assert len(asked) == {"valid": 117, "invalid": 64}[result]
    wrong = [(vector["id"], vector["comment"]) for vector in asked if verifies(vector) is not (result == "valid")]
    assert wrong == []


def test_what_wycheproof_leaves_open_is_answered_and_never_fails() -> None:
    """Keys of small or mixed order: none of ours is one, since ours are made of a seed."""
    asked = [vector for vector in vectors("wycheproof_ed25519.json") if vector["result"] == "acceptable"]
    assert len(asked) == 29
    assert {type(verifies(vector)) for vector in asked} == {bool}


def test_the_vectors_of_ed25519_s_authors_are_signed_and_verified_alike() -> None:
    asked = vectors("ed25519_sign_input.json")
    assert len(asked) == 64
    for vector in asked:
        private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["seed"]))
        assert private.public_key().public_bytes_raw().hex() == vector["public"]
        assert private.sign(bytes.fromhex(vector["message"])).hex() == vector["signature"]
        assert verifies(vector)


# RFC 8037, appendix A: key, and the JWS of A.4.
RFC_8037_X = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
RFC_8037_D = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"
RFC_8037_JWS = (
    "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc."
    "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
)


def test_the_jws_of_rfc_8037_is_read_and_is_no_token_of_ours() -> None:
    key = jwt.PyJWK({"kty": "OKP", "crv": "Ed25519", "x": RFC_8037_X, "alg": "EdDSA"}).key
    assert jwt.PyJWS().decode(RFC_8037_JWS, key, algorithms=[ALGORITHM]) == b"Example of Ed25519 signing"
    with pytest.raises(Unauthenticated):
        verify_access_token(RFC_8037_JWS, {"rfc": key}, NOW)


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def our_token(private: Ed25519PrivateKey) -> str:
    claims: dict[str, Any] = {
        "iss": "parley",
        "aud": "parley-api",
        "sub": "7",
        "jti": "j1",
        "typ": "access",
        "fam": "f1",
        "role": "USER",
        "permissions": [],
        "iat": int(NOW.timestamp()),
        "exp": int(NOW.timestamp()) + 900,
    }
    return jwt.encode(claims, private, algorithm=ALGORITHM, headers={"kid": "ours"})


def malleable(signature: bytes) -> bytes:
    """The same R, and S + L: an equation that holds just as well, for who does not check that S is small."""
    return signature[:32] + (int.from_bytes(signature[32:], "little") + ORDER).to_bytes(32, "little")


DAMAGES = {
    "s_plus_the_order": malleable,
    "shortened": lambda signature: signature[:-1],
    "empty": lambda _signature: b"",
    "r_only": lambda signature: signature[:32],
    "lengthened_by_zero": lambda signature: signature + b"\x00",
    "twice": lambda signature: signature + signature,
    "all_zero": lambda _signature: bytes(64),
    "all_ones": lambda _signature: b"\xff" * 64,
    "s_zero": lambda signature: signature[:32] + bytes(32),
    "r_zero": lambda signature: bytes(32) + signature[32:],
    "halves_exchanged": lambda signature: signature[32:] + signature[:32],
    "one_bit_of_r": lambda signature: bytes([signature[0] ^ 1]) + signature[1:],
    "one_bit_of_s": lambda signature: signature[:32] + bytes([signature[32] ^ 1]) + signature[33:],
    "highest_bit": lambda signature: signature[:-1] + bytes([signature[-1] ^ 0x80]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_wycheproof_s_damages_done_to_our_own_token_open_nothing(damage: Any) -> None:
    private = Ed25519PrivateKey.from_private_bytes(decoded(RFC_8037_D))
    keys = {"ours": private.public_key()}
    token = our_token(private)
    assert verify_access_token(token, keys, NOW).user_id == 7
    head, _, signature = token.rpartition(".")
    with pytest.raises(Unauthenticated):
        verify_access_token(f"{head}.{encoded(damage(decoded(signature)))}", keys, NOW)
