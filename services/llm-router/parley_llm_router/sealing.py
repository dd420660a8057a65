"""Sealing: secrets as they lie in the database. AES-256-GCM, each bound to the place it was sealed for."""

import base64
import binascii
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_VERSION = "v1"
_KEY_BYTES = 32
_NONCE_BYTES = 12
_TAG_BYTES = 16


class SealKeysInvalid(ValueError):
    """SEAL_KEYS is not `<id>:<base64 of 32 bytes>`, comma-separated, newest first. The message never holds a key."""


class CannotUnseal(Exception):
    """A sealed text does not open: damaged, or moved from the place it was sealed for."""


class UnknownSealKey(CannotUnseal):
    """A text was sealed with a key that SEAL_KEYS no longer holds. Put the key back, or enter the secret again."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"sealed with the key {key_id!r}, which SEAL_KEYS does not hold")
        self.key_id = key_id


class Sealer:
    """Seals with the first of `keys`, opens with all. Each service derives keys of its own from them."""

    def __init__(self, keys: str, *, service: str) -> None:
        self._ciphers = {key_id: AESGCM(_derived(key, service)) for key_id, key in _read_keys(keys)}
        self._newest = next(iter(self._ciphers))

    def seal(self, text: str, *, place: str) -> str:
        """`v1.<key id>.<base64 of nonce and ciphertext>`; opens only with the same `place`."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._ciphers[self._newest].encrypt(nonce, text.encode(), place.encode())
        return f"{_VERSION}.{self._newest}.{base64.b64encode(nonce + sealed).decode()}"

    def unseal(self, sealed: str, *, place: str) -> str:
        """Errors: UnknownSealKey, CannotUnseal."""
        key_id, data = _split(sealed)
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise UnknownSealKey(key_id)
        try:
            return cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], place.encode()).decode()
        except InvalidTag as problem:
            raise CannotUnseal("damaged, or sealed for another place") from problem

    def is_newest(self, sealed: str) -> bool:
        """Whether `sealed` bears the newest key; else it is to be sealed again."""
        return _split(sealed)[0] == self._newest


def api_key_place(*, row_id: str, owner_id: int | None, origin: str) -> str:
    """The place of a model config's key: in another row, for another owner or another origin it does not open."""
    return f"llm_router.model_configs:api_key:{row_id}:{'' if owner_id is None else owner_id}:{origin}"


def new_seal_keys() -> str:
    """A fresh SEAL_KEYS of one key."""
    return f"k1:{base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()}"


def _read_keys(keys: str) -> list[tuple[str, bytes]]:
    found: dict[str, bytes] = {}
    for number, entry in enumerate(keys.split(","), start=1):
        key_id, _, encoded = entry.strip().partition(":")
        try:
            key = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if not (key_id.isascii() and key_id.isalnum()) or len(key) != _KEY_BYTES or key_id in found:
            # From None, and without the entry: the text may be a key.
            raise SealKeysInvalid(
                f"SEAL_KEYS: entry {number} is not `<id>:<base64 of 32 bytes>` with an id of its own"
            ) from None
        found[key_id] = key
    return list(found.items())


def _derived(key: bytes, service: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=b"parley", info=f"seal-{service}-v1".encode()).derive(key)


def _split(sealed: str) -> tuple[str, bytes]:
    version, _, rest = sealed.partition(".")
    key_id, _, encoded = rest.partition(".")
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if version != _VERSION or len(data) < _NONCE_BYTES + _TAG_BYTES:
        raise CannotUnseal("it is no sealed text")
    return key_id, data
