"""Refresh tokens: used up once, answered alike to two tabs, and a thief's use ends the family."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import ColumnElement, func, select, text
from sqlmodel import col

from parley_auth.stores.refresh_tokens import RefreshTokenStore
from parley_auth.tables import METADATA, RefreshTokenRow
from parley_auth.tokens import hash_of
from parley_contracts.errors import TokenRevoked, Unauthenticated
from parley_runtime.access_tokens import verify_access_token
from parley_runtime.database import Database

OTHER_SECRET = "Zx9Wv7Ut5Sr3Qp1On8Ml6Kj4Ih2Gf0Ed"


async def logged_in(auth: Any) -> Any:
    return await auth.register()


async def refresh(auth: Any, token: str) -> Any:
    return await auth.refresh(token)


async def count(database: Database, *conditions: ColumnElement[bool]) -> int:
    async with database.transaction() as tx:
        found = await tx.session.execute(select(func.count()).select_from(RefreshTokenRow).where(*conditions))
        return int(found.scalar_one())


async def test_20_parallel_refreshes_with_one_token_rotate_once_and_answer_alike(auth: Any, database: Database) -> None:
    first = await logged_in(auth)
    answers = await asyncio.gather(*(refresh(auth, first.refresh_token) for _ in range(20)))
    assert len(set(map(repr, answers))) == 1
    assert await count(database, col(RefreshTokenRow.rotated_at).is_not(None)) == 1
    assert await count(database) == 2


async def test_a_token_is_used_up_and_its_successor_goes_on(auth: Any, clock: Any) -> None:
    tokens = await logged_in(auth)
    seen = {tokens.refresh_token}
    for _ in range(3):
        clock.advance(900)
        tokens = await refresh(auth, tokens.refresh_token)
        seen.add(tokens.refresh_token)
    assert len(seen) == 4


async def test_a_token_used_again_at_9_seconds_gets_the_same_successor(auth: Any, clock: Any) -> None:
    first = await logged_in(auth)
    second = await refresh(auth, first.refresh_token)
    clock.advance(9)
    assert await refresh(auth, first.refresh_token) == second
    assert (await refresh(auth, second.refresh_token)).refresh_token not in {first.refresh_token, second.refresh_token}


async def test_a_token_used_again_at_11_seconds_ends_the_family_the_newest_token_too(auth: Any, clock: Any) -> None:
    first = await logged_in(auth)
    second = await refresh(auth, first.refresh_token)
    third = await refresh(auth, second.refresh_token)
    clock.advance(11)
    for token in (first, third, second, first):
        with pytest.raises(TokenRevoked):
            await refresh(auth, token.refresh_token)


async def test_when_a_thief_was_first_both_end(auth: Any, clock: Any) -> None:
    stolen = (await logged_in(auth)).refresh_token
    thief = await refresh(auth, stolen)
    clock.advance(11)
    with pytest.raises(TokenRevoked):
        await refresh(auth, stolen)
    with pytest.raises(TokenRevoked):
        await refresh(auth, thief.refresh_token)


async def test_one_family_ends_and_another_login_of_the_user_goes_on(auth: Any, clock: Any) -> None:
    first = await logged_in(auth)
    other = await auth.log_in()
    await refresh(auth, first.refresh_token)
    clock.advance(11)
    with pytest.raises(TokenRevoked):
        await refresh(auth, first.refresh_token)
    assert await refresh(auth, other.refresh_token)


async def test_a_rotation_under_way_does_not_escape_the_revocation_of_its_family(auth: Any, database: Database) -> None:
    """The thief rotates the newest token just while the family is revoked: the successor must not survive."""
    newest = (await logged_in(auth)).refresh_token
    async with database.transaction() as rotating:
        store, now = RefreshTokenStore(rotating), auth.clock.now()
        assert await store.rotate(hash_of(newest), now)
        stored = await store.find(hash_of(newest))
        assert stored is not None
        revoking = asyncio.create_task(revoke(database, stored.family, auth))
        await waits_for_a_lock(database)
        await store.add(
            hash_of("successor"), user_id=1, family=stored.family, key_id=stored.key_id, expires_at=now + auth.refresh_ttl
        )
    await revoking
    assert await count(database, col(RefreshTokenRow.revoked_at).is_(None)) == 0


async def revoke(database: Database, family: str, auth: Any) -> None:
    async with database.transaction() as tx:
        await RefreshTokenStore(tx).revoke_family(family, auth.clock.now())


async def waits_for_a_lock(database: Database) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(5):
        while True:
            async with database.transaction() as tx:
                if (await tx.session.execute(text(waiting))).scalar_one():
                    return
            await asyncio.sleep(0.01)


async def test_a_token_lives_30_days_from_its_own_making(auth: Any, clock: Any) -> None:
    first = await logged_in(auth)
    clock.advance(30 * 86_400 - 1)
    second = await refresh(auth, first.refresh_token)
    clock.advance(30 * 86_400)
    with pytest.raises(TokenRevoked):
        await refresh(auth, second.refresh_token)


@pytest.mark.parametrize("token", ["", "rt-", "rt-" + "a" * 42, "rt-" + "a" * 44, "rt-" + "ü" * 43, "eyJhbGciOi.e30.x"])
async def test_what_is_no_refresh_token_is_unauthenticated(auth: Any, token: str) -> None:
    with pytest.raises(Unauthenticated):
        await refresh(auth, token)


async def test_an_access_token_refreshes_nothing_and_a_refresh_token_opens_nothing(auth: Any) -> None:
    tokens = await logged_in(auth)
    with pytest.raises(Unauthenticated):
        await refresh(auth, tokens.access_token)
    with pytest.raises(Unauthenticated):
        verify_access_token(tokens.refresh_token, {}, auth.clock.now())


async def test_a_token_nobody_issued_opens_nothing(auth: Any) -> None:
    with pytest.raises(TokenRevoked):
        await refresh(auth, "rt-" + "a" * 43)


async def test_while_the_secret_is_replaced_old_and_new_replicas_compute_one_successor(
    make_auth: Callable[..., Any], auth: Any, clock: Any, secret: str
) -> None:
    replaced = make_auth(jwt_secret=f"{OTHER_SECRET},{secret}")
    first = await logged_in(auth)
    by_old = await refresh(auth, first.refresh_token)
    by_new = await refresh(replaced, first.refresh_token)
    assert by_old.refresh_token == by_new.refresh_token
    clock.advance(60)
    assert await refresh(replaced, by_old.refresh_token)


async def test_when_the_old_secret_is_gone_what_it_began_ends_and_what_the_new_one_renewed_lives(
    make_auth: Callable[..., Any], auth: Any, secret: str
) -> None:
    old_only = await logged_in(auth)
    renewed_from = await auth.register("bob@example.org")
    renewed = await refresh(make_auth(jwt_secret=f"{OTHER_SECRET},{secret}"), renewed_from.refresh_token)
    after = make_auth(jwt_secret=OTHER_SECRET)
    with pytest.raises(TokenRevoked):
        await refresh(after, old_only.refresh_token)
    assert await refresh(after, renewed.refresh_token)


async def test_a_dump_of_the_database_holds_no_token_that_opens_anything(auth: Any, database: Database) -> None:
    first = await logged_in(auth)
    second = await refresh(auth, first.refresh_token)
    async with database.transaction() as tx:
        rows = [row for table in METADATA.sorted_tables for row in await tx.session.execute(select(table))]
    dump = "\n".join(value.hex() if isinstance(value, bytes) else str(value) for row in rows for value in row)
    assert hash_of(second.refresh_token).hex() in dump
    for secret in (first.refresh_token, second.refresh_token, first.access_token, "correct horse", "rt-", "eyJ", "pk-"):
        assert secret not in dump


async def test_20_parallel_reuses_after_the_grace_all_end_and_none_fails_otherwise(auth: Any, clock: Any) -> None:
    first = await logged_in(auth)
    await refresh(auth, first.refresh_token)
    clock.advance(11)
    answers = await asyncio.gather(*(refresh(auth, first.refresh_token) for _ in range(20)), return_exceptions=True)
    assert Counter(map(type, answers)) == {TokenRevoked: 20}
