"""What ended: told by event, told again when asked, forgotten when no token could meet it; and stream tokens."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from parley_contracts.accounts import (
    ApiKeyRevoked,
    FamilyRevoked,
    IssueStreamToken,
    ListRevoked,
    LogOut,
    Revocations,
    RightsChanged,
    StreamGrant,
    StreamToken,
    UserDeleted,
)
from parley_contracts.api_keys import CreateApiKey, DeleteApiKey
from parley_contracts.errors import TokenRevoked
from parley_contracts.ids import new_id
from parley_contracts.roles import Limits, PutRole
from parley_contracts.users import DeleteUser, UpdateUser
from parley_runtime.access_tokens import verify_stream_token


async def revoked(auth: Any, since: datetime | None = None) -> Revocations:
    answer: Revocations = await auth.tell(auth.tokens.list_revoked, ListRevoked(since=since))
    return answer


async def log_out(auth: Any, tokens: Any) -> None:
    await auth.tell(auth.accounts.log_out, LogOut(refresh_token=tokens.refresh_token))


async def test_what_events_said_can_be_asked_for_word_by_word(auth: Any) -> None:
    await auth.register()
    bob = await auth.register("bob@example.org")
    key = (await auth.tell(auth.api_keys.create_api_key, CreateApiKey(user_id=2, name="k"))).api_key
    await log_out(auth, bob)
    await auth.tell(auth.api_keys.delete_api_key, DeleteApiKey(user_id=2, id=key.id))
    await auth.tell(auth.roles.put_role, PutRole(actor_id=1, name="USER", permissions=(), limits=Limits()))
    await auth.users.update_user(UpdateUser(actor_id=1, user_id=2, status="disabled"))
    answer = await revoked(auth)
    assert answer.as_of == auth.clock.now()
    assert list(answer.families) == auth.bus.heard(FamilyRevoked)
    assert list(answer.rights) == auth.bus.heard(RightsChanged)
    assert list(answer.api_keys) == auth.bus.heard(ApiKeyRevoked)
    assert [(said.user_id, said.role) for said in answer.rights] == [(None, "USER"), (2, None)]
    assert len(answer.families) == len(answer.api_keys) == 1


async def test_who_asks_again_gets_what_is_new_and_the_last_minute(auth: Any, clock: Any) -> None:
    first, second = await auth.register(), await auth.log_in()
    await log_out(auth, first)
    as_of = (await revoked(auth)).as_of
    clock.advance(59)
    await log_out(auth, second)
    assert len((await revoked(auth, as_of)).families) == 2
    clock.advance(2)
    assert len((await revoked(auth, clock.now())).families) == 1
    clock.advance(61)
    assert (await revoked(auth, clock.now())).families == ()


async def test_a_gateway_that_starts_learns_all_that_a_living_token_could_meet(auth: Any, clock: Any) -> None:
    await log_out(auth, await auth.register())
    clock.advance(86_400 + 30)
    assert len((await revoked(auth)).families) == 1
    await auth.tokens.keep_now()
    assert len((await revoked(auth)).families) == 1
    clock.advance(61)
    assert (await revoked(auth)).families == ()
    await auth.tokens.keep_now()
    assert await auth.value("SELECT count(*) FROM auth.revocations") == 0


async def test_upkeep_forgets_expired_refresh_tokens_and_no_other(auth: Any, clock: Any) -> None:
    await auth.register()
    clock.advance(86_400)
    living = await auth.log_in()
    clock.advance(29 * 86_400)
    await auth.tokens.keep_now()
    assert await auth.value("SELECT count(*) FROM auth.refresh_tokens") == 1
    assert await auth.refresh(living)


async def test_whose_data_is_to_be_erased_is_said_again_for_a_week(auth: Any, clock: Any) -> None:
    await auth.register()
    await auth.register("bob@example.org")
    await auth.users.delete_user(DeleteUser(actor_id=1, user_id=2))
    for _ in range(2):
        clock.advance(3 * 86_400)
        await auth.tokens.keep_now()
    assert auth.bus.heard(UserDeleted) == [UserDeleted(user_id=2)] * 3
    clock.advance(2 * 86_400)
    await auth.tokens.keep_now()
    assert len(auth.bus.heard(UserDeleted)) == 3


# --- stream tokens ---


async def stream(auth: Any, tokens: Any, session_id: str | None = None, user_id: int | None = None) -> StreamToken:
    principal = auth.principal(tokens)
    command = IssueStreamToken(user_id=user_id or principal.user_id, family=principal.family, session_id=session_id)
    issued: StreamToken = await auth.tell(auth.tokens.issue_stream_token, command)
    return issued


def opened(auth: Any, issued: StreamToken) -> StreamGrant:
    keys = {auth.issuer.signing_key.id: auth.issuer.signing_key.private.public_key()}
    return verify_stream_token(issued.token, keys, auth.clock.now())


async def test_a_stream_token_is_for_300_seconds_its_user_and_its_session(auth: Any) -> None:
    tokens = await auth.register()
    session_id = new_id()
    issued = await stream(auth, tokens, session_id)
    grant = opened(auth, issued)
    principal = auth.principal(tokens)
    assert issued.expires_in_s == 300
    assert grant.session_id == session_id
    assert (grant.principal.user_id, grant.principal.family) == (1, principal.family)
    assert (grant.principal.role, grant.principal.permissions) == ("ADMIN", principal.permissions)
    assert grant.principal.expires_at == auth.clock.now() + timedelta(seconds=300)
    assert opened(auth, await stream(auth, tokens)).session_id is None


async def test_a_stream_token_is_given_to_living_logins_of_their_own_user_only(auth: Any) -> None:
    ann, bob = await auth.register(), await auth.register("bob@example.org")
    with pytest.raises(TokenRevoked):
        await stream(auth, bob, user_id=1)
    for family in ("", "nonsense", "\x00"):
        with pytest.raises(TokenRevoked):
            await auth.tell(auth.tokens.issue_stream_token, IssueStreamToken(user_id=1, family=family))
    await log_out(auth, ann)
    with pytest.raises(TokenRevoked):
        await stream(auth, ann)
    await auth.users.update_user(UpdateUser(actor_id=None, user_id=2, status="disabled"))
    with pytest.raises(TokenRevoked):
        await stream(auth, bob)


async def test_a_stream_token_made_after_a_change_of_rights_is_not_refused_for_it(
    auth: Any, make_auth: Callable[..., Any]
) -> None:
    await auth.register()
    bob = await auth.register("bob@example.org")
    await auth.users.update_user(UpdateUser(actor_id=1, user_id=2, role="ADMIN"))
    (said,) = auth.bus.heard(RightsChanged)
    grant = opened(make_auth(), await stream(auth, bob))
    assert grant.principal.role == "ADMIN"
    assert grant.principal.issued_at is not None
    assert grant.principal.issued_at >= said.before
