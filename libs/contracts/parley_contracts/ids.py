"""Ids: who makes them, what they look like, and the check that nothing else enters a subject.

Users are integers. All else is a 26-character lower-case ULID. A user's string inside a NATS subject can close the
connection for good or read other users' turns, so `checked` stands in front of every subject we build.
"""

import hashlib
import re
from typing import Annotated, TypeAlias

from msgspec import Meta
from ulid import ULID

from parley_contracts.errors import InvalidId

PATTERN = r"^[0-9a-z]{26}\Z"
_GRAMMAR = re.compile(PATTERN)
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"

Id: TypeAlias = Annotated[str, Meta(pattern=PATTERN)]
TurnId: TypeAlias = Id
SessionId: TypeAlias = Id
MessageId: TypeAlias = Id
ModelConfigId: TypeAlias = Id
GatewayId: TypeAlias = Id


def new_id() -> str:
    """A new lower-case ULID; ids made later sort later, to the millisecond."""
    return str(ULID()).lower()


def derived_id(*names: str) -> str:
    """The same id for the same names, on every replica: for things that are named in settings, not made by a user."""
    number = int.from_bytes(hashlib.sha256("\x00".join(names).encode()).digest()[:17], "big") >> 6
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -5, -5))


def is_id(text: str) -> bool:
    return _GRAMMAR.match(text) is not None


def checked(text: str) -> str:
    """`text` if it is an id; raises `InvalidId` for anything else: wildcards, dots, spaces, 5,000 characters."""
    if not is_id(text):
        raise InvalidId(value=text[:40])
    return text
