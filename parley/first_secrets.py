"""Secrets of an installation, made at its first start into a 0600 file: nobody has to invent one, none is a sample."""

import base64
import os
import secrets
from pathlib import Path

import msgspec

from parley.supervise import StartFailed


def _seal_keys() -> str:
    return f"k1:{base64.b64encode(secrets.token_bytes(32)).decode()}"


MAKERS = {"JWT_SECRET": lambda: secrets.token_urlsafe(48), "SEAL_KEYS": _seal_keys}


def ensure_secrets(data_dir: Path, given: dict[str, str]) -> dict[str, str]:
    """The secrets that `given` lacks, the same at every start. Raises StartFailed when the file cannot be used."""
    path = data_dir / "secrets.json"
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = msgspec.json.decode(path.read_bytes(), type=dict[str, str]) if path.exists() else {}
        missing = {name: make() for name, make in MAKERS.items() if name not in known and not given.get(name)}
        if missing:
            known |= missing
            new = path.with_suffix(".new")
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(msgspec.json.encode(known))
            new.replace(path)
    except OSError as error:
        raise StartFailed(f"{path} cannot be used: {error}. Make {data_dir} a folder this user may write to.") from None
    except msgspec.DecodeError as error:
        raise StartFailed(f"{path} is damaged ({error}). Put back a copy: without it, sealed keys cannot be opened.") from None
    return {name: value for name, value in known.items() if not given.get(name)}
