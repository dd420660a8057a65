"""`secrets.env`: the secrets an installation needs and nobody gave, made once, for its owner's eyes only.

In development only. In production a missing secret is an error: one made on the fly would be another on each machine,
and would be lost with the data directory that seals what it sealed.
"""

import base64
import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from parley.supervise import StartFailed

MAKERS: dict[str, Callable[[], str]] = {
    "JWT_SECRET": lambda: secrets.token_urlsafe(48),
    "SEAL_KEYS": lambda: "k1:" + base64.b64encode(secrets.token_bytes(32)).decode(),
}
_HOW = {
    "JWT_SECRET": "openssl rand -base64 48",
    "SEAL_KEYS": "echo k1:$(openssl rand -base64 32)",
}
FILE = "secrets.env"


class SecretsMissing(Exception):
    """Production begins with its own secrets or not at all."""

    def __init__(self, names: list[str]) -> None:
        how = "; ".join(f"{name}: {_HOW[name]}" for name in names)
        super().__init__(
            f"NODE_ENV=production, but {' and '.join(names)} {'is' if len(names) == 1 else 'are'} not set: "
            f"set them in the environment or .env ({how})."
        )


def missing_secrets(data_dir: Path, given: Mapping[str, str], *, is_production: bool) -> dict[str, str]:
    """The secrets that `given` lacks: those of the file, which is written when it has not got them yet."""
    missing = [name for name in MAKERS if not given.get(name)]
    if not missing:
        return {}
    if is_production:
        raise SecretsMissing(missing)
    path = data_dir / FILE
    try:
        known = _read(path)
        if not all(known.get(name) for name in missing):
            _write(path, {name: known.get(name) or make() for name, make in MAKERS.items()}, is_new=not known)
            known = _read(path)  # another launcher may have been quicker
    except (OSError, UnicodeDecodeError) as error:
        raise StartFailed(
            f"the secrets in {path} cannot be used: {error}. Make {data_dir} a folder this user may write to, or set "
            f"{' and '.join(missing)}."
        ) from None
    return {name: known[name] for name in missing}


def _read(path: Path) -> dict[str, str]:
    try:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def _write(path: Path, values: Mapping[str, str], *, is_new: bool) -> None:
    lines = ["# Made by `parley up`. Keep it with the data: SEAL_KEYS opens the provider keys stored there."]
    lines += [f"{name}={value}" for name, value in values.items()]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(f".{secrets.token_hex(4)}")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123 - Path.open takes no mode
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())  # a key that a power failure took leaves sealed what it sealed
    if is_new:
        with contextlib.suppress(FileExistsError):  # two first starts at once agree on the file that is there
            path.hardlink_to(new)
        new.unlink()
    else:
        new.replace(path)
