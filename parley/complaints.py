"""Complaints: what kept Parley from starting, in one line a person can act on. Never a traceback, never a secret."""

import asyncio
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr, ValidationError

from parley.supervise import StartFailed

MISCONFIGURED = 2
FAILED = 1


class Misconfigured(Exception):
    """A setting that cannot be. The message is the line."""


def from_validation(error: ValidationError, settings: type[BaseModel]) -> Misconfigured:
    """`PORT=abc: …` for each wrong field. A rule over several fields says itself what it is about."""
    wrong = [_line(problem, settings) for problem in error.errors(include_url=False)]
    return Misconfigured("; ".join(wrong) + ". Correct it in the environment or in .env (docs/settings.md lists all).")


def _line(problem: Any, settings: type[BaseModel]) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ").rstrip(".")
    if not problem["loc"]:
        return message
    name = str(problem["loc"][0])
    field = settings.model_fields.get(name)
    is_secret = field is None or "SecretStr" in str(field.annotation) or field.annotation is SecretStr
    if message.startswith(name.upper()):
        return message
    return f"{name.upper()}{'' if is_secret else '=' + str(problem['input'])}: {message[0].lower()}{message[1:]}"


async def until_reachable(url: str, what: str, setting: str, *, within_s: float) -> None:
    """Wait for one of `url`'s servers to take a connection. Raises StartFailed, which names the setting."""
    deadline = asyncio.get_running_loop().time() + within_s
    while True:
        reason = await _refusal(url.split(","))
        if not reason:
            return
        if asyncio.get_running_loop().time() > deadline:
            places = ", ".join(f"{host}:{port}" for host, port in map(_place, url.split(",")))
            raise StartFailed(f"{what} at {places} could not be reached for {within_s:.0f} s ({reason}): is {setting} right?")
        await asyncio.sleep(0.2)


async def _refusal(urls: Iterable[str]) -> str:
    """Why none of them takes a connection; empty when one does."""
    reason = "no address"
    for url in urls:
        host, port = _place(url)
        try:
            async with asyncio.timeout(2.0):
                _, writer = await asyncio.open_connection(host, port)
        except TimeoutError:
            reason = "no answer"
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
        else:
            writer.close()
            return ""
    return reason


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url.strip() if "://" in url else f"nats://{url.strip()}")
    try:
        return parts.hostname or "127.0.0.1", parts.port or 4222
    except ValueError:
        raise Misconfigured(f"NATS_URL={url}: that is no address; write nats://host:4222") from None
