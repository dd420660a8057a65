"""Hashing is bounded: two at once, and who would wait longer than anyone listens is told to come back."""

import asyncio
import threading
import time

import pytest

from parley_auth import passwords as passwords_module
from parley_auth.passwords import AT_ONCE, Passwords
from parley_auth.settings import AuthSettings
from parley_contracts.errors import Overloaded


async def test_a_password_is_stored_as_argon2id_with_a_salt_of_its_own(passwords: Passwords) -> None:
    first, second = await passwords.hash("secret 123"), await passwords.hash("secret 123")
    assert first.startswith("$argon2id$v=19$m=32,t=1,")
    assert first != second
    assert await passwords.verify("secret 123", first) == (True, None)
    assert await passwords.verify("secret 124", first) == (False, None)


async def test_no_password_is_right_where_there_is_no_account(passwords: Passwords) -> None:
    assert await passwords.verify("", None) == (False, None)


async def test_two_are_hashed_at_once_and_the_loop_goes_on(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def slow(_password: str) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return "hash"

    monkeypatch.setattr(passwords._hasher, "hash", slow)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(passwords.hash("x")) for _ in range(10)]
        await asyncio.sleep(0.005)
        assert not all(task.done() for task in tasks)
    assert most == AT_ONCE


async def test_who_would_wait_too_long_is_told_to_come_back(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords_module, "_WAIT_S", 0.02)
    busy = threading.Event()
    monkeypatch.setattr(passwords._hasher, "hash", lambda _password: busy.wait(5))
    tasks = [asyncio.create_task(passwords.hash("x")) for _ in range(AT_ONCE)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await passwords.hash("x")
    busy.set()
    await asyncio.gather(*tasks)


def test_the_defaults_are_strong() -> None:
    fields = AuthSettings.model_fields
    assert fields["argon2_memory_kib"].default == 65_536
    assert fields["argon2_time_cost"].default == 3
