"""`servers.json`: the secrets of the embedded servers, for the owner's eyes only."""

import contextlib
import os
import secrets
from pathlib import Path

import msgspec

from parley.supervise import StartFailed


class Secrets(msgspec.Struct, frozen=True):
    """Made once for a data directory; PostgreSQL keeps the password in its own data too."""

    postgres_password: str
    s3_access_key_id: str
    s3_secret_access_key: str

    @classmethod
    def load(cls, path: Path) -> "Secrets":
        with contextlib.suppress(FileNotFoundError):
            try:
                return msgspec.json.decode(path.read_bytes(), type=cls)
            except msgspec.DecodeError as error:
                raise StartFailed(f"{path} cannot be read ({error}): put back a copy, or move it away with the data.") from None
        made = cls(
            postgres_password=secrets.token_hex(24),
            s3_access_key_id=secrets.token_hex(10),
            s3_secret_access_key=secrets.token_hex(20),
        )
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123 - Path.open takes no mode
            file.write(msgspec.json.encode(made))
            file.flush()
            os.fsync(file.fileno())  # a database whose password a power failure took is lost
        new.replace(path)
        return made
