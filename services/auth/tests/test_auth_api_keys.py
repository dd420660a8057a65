"""API keys: shown once, kept as a hash, open what they name until they are deleted or expire."""

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import select

from parley_auth.tables import METADATA
from parley_contracts.accounts import ApiKeyRevoked, Principal
from parley_contracts.api_keys import CheckApiKey, CreateApiKey, DeleteApiKey, ListApiKeys, NewApiKey
from parley_contracts.errors import KeyNotFound, TokenExpired, TokenRevoked, Unauthenticated, UserNotFound, ValidationFailed
from parley_contracts.ids import is_id, new_id
from parley_contracts.roles import Limits
from parley_contracts.users import UpdateUser


async def create(auth: Any, user_id: int = 1, **more: Any) -> NewApiKey:
    made: NewApiKey = await auth.tell(
        auth.api_keys.create_api_key, CreateApiKey(**{"user_id": user_id, "name": "my script", **more})
    )
    return made


async def check(auth: Any, key: str) -> Principal:
    command = CheckApiKey(hash=hashlib.sha256(key.encode()).hexdigest())
    principal: Principal = await auth.tell(auth.api_keys.check_api_key, command)
    return principal


async def keys(auth: Any, user_id: int = 1) -> list[str]:
    return [key.id for key in await auth.tell(auth.api_keys.list_api_keys, ListApiKeys(user_id=user_id))]


async def delete(auth: Any, key_id: str, user_id: int = 1) -> None:
    await auth.tell(auth.api_keys.delete_api_key, DeleteApiKey(user_id=user_id, id=key_id))


async def test_a_key_is_shown_once_and_listed_by_its_beginning(auth: Any) -> None:
    await auth.register()
    expires_at = auth.clock.now() + timedelta(days=1)
    made = await create(auth, models=("gpt", "gpt", "qwen"), budget_usd=Decimal("12.50"), expires_at=expires_at)
    assert re.fullmatch(r"pk-[A-Za-z0-9]{40}", made.key)
    (listed,) = await auth.tell(auth.api_keys.list_api_keys, ListApiKeys(user_id=1))
    assert listed == made.api_key
    assert is_id(listed.id)
    assert made.key.startswith(listed.prefix)
    assert len(listed.prefix) == 9
    assert (listed.name, listed.scopes, listed.models) == ("my script", ("openai",), ("gpt", "qwen"))
    assert (listed.budget_usd, listed.expires_at, listed.last_used_at) == (Decimal("12.50"), expires_at, None)


async def test_a_key_speaks_for_its_user_as_they_are_now(auth: Any) -> None:
    await auth.register()
    await auth.register("bob@example.org")
    made = await create(auth, 2, scopes=("usage", "chat"), models=("gpt",))
    principal = await check(auth, made.key)
    assert (principal.user_id, principal.role, principal.limits) == (2, "USER", Limits(model_configs=20))
    assert (principal.key_id, principal.scopes, principal.models) == (made.api_key.id, ("chat", "usage"), ("gpt",))
    assert (principal.family, principal.issued_at, principal.expires_at.year) == ("", auth.clock.now(), 9999)
    await auth.users.update_user(UpdateUser(actor_id=1, user_id=2, role="ADMIN"))
    promoted = await check(auth, made.key)
    assert (promoted.role, len(promoted.permissions)) == ("ADMIN", 8)


async def test_a_dump_of_the_database_holds_hashes_and_no_key_that_opens_anything(auth: Any) -> None:
    await auth.register()
    made = await create(auth)
    await check(auth, made.key)
    async with auth.database.transaction() as tx:
        rows = [row for table in METADATA.sorted_tables for row in await tx.session.execute(select(table))]
    dump = "\n".join(value.hex() if isinstance(value, bytes) else str(value) for row in rows for value in row)
    assert hashlib.sha256(made.key.encode()).hexdigest() in dump
    assert made.key not in dump
    assert made.key[9:] not in dump
    assert made.key.encode().hex() not in dump
    with pytest.raises(Unauthenticated):
        await check(auth, hashlib.sha256(made.key.encode()).hexdigest())


@pytest.mark.parametrize("text", ["", "x", "pk-" + "a" * 40, "z" * 64, "A" * 64, "0" * 65, "00" * 31 + "0\n"])
async def test_a_hash_of_no_key_opens_nothing(auth: Any, text: str) -> None:
    with pytest.raises(Unauthenticated):
        await auth.tell(auth.api_keys.check_api_key, CheckApiKey(hash=text))
    with pytest.raises(Unauthenticated):
        await check(auth, text)


async def test_a_key_expires(auth: Any, clock: Any) -> None:
    await auth.register()
    made = await create(auth, expires_at=clock.now() + timedelta(seconds=60))
    clock.advance(59)
    assert (await check(auth, made.key)).expires_at == made.api_key.expires_at
    clock.advance(1)
    with pytest.raises(TokenExpired):
        await check(auth, made.key)
    assert await keys(auth) == [made.api_key.id]


async def test_a_deleted_key_opens_nothing_is_not_listed_and_the_gateways_are_told(auth: Any) -> None:
    await auth.register()
    kept, gone = await create(auth), await create(auth)
    await delete(auth, gone.api_key.id)
    with pytest.raises(TokenRevoked):
        await check(auth, gone.key)
    assert await check(auth, kept.key)
    assert await keys(auth) == [kept.api_key.id]
    assert auth.bus.heard(ApiKeyRevoked) == [ApiKeyRevoked(key_id=gone.api_key.id, user_id=1)]
    with pytest.raises(KeyNotFound):
        await delete(auth, gone.api_key.id)


async def test_a_foreign_key_is_not_found_and_goes_on(auth: Any) -> None:
    await auth.register()
    await auth.register("bob@example.org")
    made = await create(auth)
    for user_id, key_id in ((2, made.api_key.id), (1, new_id())):
        with pytest.raises(KeyNotFound):
            await delete(auth, key_id, user_id)
    assert await keys(auth, 2) == []
    assert await check(auth, made.key)


async def test_the_keys_of_a_disabled_user_open_nothing_until_they_are_enabled(auth: Any) -> None:
    await auth.register()
    await auth.register("bob@example.org")
    made = await create(auth, 2)
    await auth.users.update_user(UpdateUser(actor_id=1, user_id=2, status="disabled"))
    with pytest.raises(TokenRevoked):
        await check(auth, made.key)
    await auth.users.update_user(UpdateUser(actor_id=1, user_id=2, status="active"))
    assert await check(auth, made.key)


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
REFUSED = {
    "no name": {"name": " "},
    "a long name": {"name": "x" * 101},
    "a NUL": {"name": "a\x00"},
    "no scope": {"scopes": ()},
    "no model": {"models": ()},
    "a nameless model": {"models": ("",)},
    "too many models": {"models": ("m",) * 101},
    "a budget of nothing": {"budget_usd": Decimal(0)},
    "a debt": {"budget_usd": Decimal(-1)},
    "no number": {"budget_usd": Decimal("NaN")},
    "infinite": {"budget_usd": Decimal("Infinity")},
    "the past": {"expires_at": NOW},
    "no time zone": {"expires_at": datetime(2030, 1, 1)},  # noqa: DTZ001 - that is the case
}


@pytest.mark.parametrize("asked", REFUSED.values(), ids=REFUSED.keys())
async def test_a_key_that_cannot_be_is_refused(auth: Any, asked: dict[str, Any]) -> None:
    await auth.register()
    with pytest.raises(ValidationFailed):
        await create(auth, **asked)
    assert await keys(auth) == []


async def test_a_user_who_is_not_there_has_no_keys(auth: Any) -> None:
    with pytest.raises(UserNotFound):
        await create(auth, 99)


async def test_a_user_has_at_most_100_keys_also_when_many_are_made_at_once(auth: Any) -> None:
    await auth.register()
    for _ in range(95):
        await create(auth)
    answers = await asyncio.gather(*(create(auth) for _ in range(10)), return_exceptions=True)
    assert Counter(type(answer).__name__ for answer in answers) == {"NewApiKey": 5, "ValidationFailed": 5}


async def test_the_last_use_is_written_in_batches_and_never_backwards(
    auth: Any, make_auth: Callable[..., Any], clock: Any
) -> None:
    await auth.register()
    made, unused = await create(auth), await create(auth)
    for _ in range(3):
        clock.advance(1)
        await check(auth, made.key)
    (_, before) = [key.last_used_at for key in await auth.tell(auth.api_keys.list_api_keys, ListApiKeys(user_id=1))]
    assert before is None
    other = make_auth()
    first_use = clock.now()
    await check(other, made.key)
    clock.advance(5)
    await check(auth, made.key)
    await auth.api_keys.write_uses_now()
    await other.api_keys.write_uses_now()
    await auth.api_keys.write_uses_now()
    used = {key.id: key.last_used_at for key in await auth.tell(auth.api_keys.list_api_keys, ListApiKeys(user_id=1))}
    assert used == {made.api_key.id: first_use + timedelta(seconds=5), unused.api_key.id: None}
