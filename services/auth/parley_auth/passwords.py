"""Passwords: what they must be, and argon2id in threads of their own: 64 MiB and 0.13 s each, two at a time.

An unknown e-mail costs as much as a wrong password, so that the time of a refusal tells nobody who has an account.
bcrypt hashes, brought along from elsewhere, are verified and become argon2id at their first login.
"""

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import bcrypt
from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError
from pwdlib.hashers.argon2 import Argon2Hasher

from parley_contracts.errors import Overloaded, PasswordPolicy

R = TypeVar("R")

SHORTEST = 8
LONGEST = 128
AT_ONCE = 2
_BCRYPT = ("$2a$", "$2b$", "$2y$")
_BCRYPT_READS_BYTES = 72
_WAIT_S = 4.0  # who asked gives up after 5 s: work for nobody would only delay the others


def check_policy(password: str) -> None:
    """Raises PasswordPolicy with the first reason that applies."""
    if len(password) < SHORTEST:
        raise PasswordPolicy(reason="is too short")
    if len(password) > LONGEST:
        raise PasswordPolicy(reason="is too long")
    if not any(character.isalpha() for character in password):
        raise PasswordPolicy(reason="has no letter")
    if not any(character.isdigit() for character in password):
        raise PasswordPolicy(reason="has no digit")


class Passwords:
    """Hashes and verifies, `AT_ONCE` side by side; who waits too long is told to come back."""

    name = "passwords"

    def __init__(self, *, memory_kib: int, time_cost: int) -> None:
        self._hasher = PasswordHash((Argon2Hasher(time_cost=time_cost, memory_cost=memory_kib),))
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._threads: ThreadPoolExecutor | None = None
        self._dummy_hash = ""

    async def open(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=AT_ONCE, thread_name_prefix="argon2")
        self._dummy_hash = await self.hash(secrets.token_urlsafe(16))

    async def check(self) -> None:
        """Nothing outside is needed."""

    async def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def hash(self, password: str) -> str:
        return await self._in_thread(lambda: self._hasher.hash(password))

    async def verify(self, password: str, stored: str | None) -> tuple[bool, str | None]:
        """Whether it is the right one, and a new hash when the stored one was made with other parameters.

        `stored` None: there is no such account; the answer is no, after the same work.
        """
        is_right, new_hash = await self._in_thread(lambda: self._verify(password, stored or self._dummy_hash))
        return (is_right and stored is not None), new_hash

    def _verify(self, password: str, stored: str) -> tuple[bool, str | None]:
        if stored.startswith(_BCRYPT):
            is_right = _bcrypt_matches(password, stored)
            return is_right, self._hasher.hash(password) if is_right else None
        try:
            return self._hasher.verify_and_update(password, stored)
        except UnknownHashError:  # an account brought along without a password
            self._hasher.verify(password, self._dummy_hash)
            return False, None

    async def _in_thread(self, work: Callable[[], R]) -> R:
        try:
            async with asyncio.timeout(_WAIT_S):
                await self._turns.acquire()
        except TimeoutError as error:
            raise Overloaded from error
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._turns.release()


def _bcrypt_matches(password: str, stored: str) -> bool:
    try:
        # What made these hashes cut passwords here in silence; the library refuses longer ones.
        return bcrypt.checkpw(password.encode()[:_BCRYPT_READS_BYTES], stored.encode())
    except ValueError:  # a damaged hash
        return False
