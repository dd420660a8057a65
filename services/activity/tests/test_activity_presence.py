"""Who is online, as scripted conversations: what gateways count, when, and whose status that changes."""

from parley_activity.presence import Connected
from parley_contracts.activity import ConnectionsCounted
from parley_contracts.ids import derived_id


def counted(gateway: str, users: dict[int, int], *, is_complete: bool = False) -> ConnectionsCounted:
    return ConnectionsCounted(gateway_id=derived_id(gateway), users=users, is_complete=is_complete)


def complete(gateway: str, users: dict[int, int]) -> ConnectionsCounted:
    return counted(gateway, users, is_complete=True)


def test_a_user_is_active_from_the_first_connection_to_the_end_of_the_last() -> None:
    presence = Connected()
    assert presence.hear(counted("a", {7: 1}), 0) == {7}
    assert presence.hear(counted("a", {7: 2}), 1) == set()
    assert presence.hear(counted("a", {7: 1}), 2) == set()
    assert presence.is_active(7)
    assert presence.hear(counted("a", {7: 0}), 3) == {7}
    assert not presence.is_active(7)


def test_a_user_of_two_gateways_is_active_until_the_last_one_lets_go() -> None:
    presence = Connected()
    assert presence.hear(counted("a", {7: 1}), 0) == {7}
    assert presence.hear(counted("b", {7: 1}), 0) == set()
    assert presence.hear(counted("a", {7: 0}), 1) == set()
    assert presence.hear(counted("b", {7: 0}), 1) == {7}


def test_a_partial_count_changes_the_named_users_only() -> None:
    presence = Connected()
    presence.hear(counted("a", {1: 1, 2: 1}), 0)
    assert presence.hear(counted("a", {3: 1}), 1) == {3}
    assert presence.active_users() == {1, 2, 3}


def test_a_complete_count_replaces_all_its_gateway_said_and_nothing_of_another() -> None:
    presence = Connected()
    presence.hear(counted("a", {1: 1, 2: 1}), 0)
    presence.hear(counted("b", {2: 1, 9: 1}), 0)
    assert presence.hear(complete("a", {3: 1}), 1) == {1, 3}
    assert presence.active_users() == {2, 3, 9}
    assert presence.hear(complete("b", {}), 2) == {2, 9}


def test_a_lost_goodbye_is_healed_by_the_next_complete_count() -> None:
    presence = Connected()
    presence.hear(complete("a", {1: 1}), 0)
    assert presence.hear(complete("a", {}), 15) == {1}


def test_a_gateway_silent_for_more_than_45_seconds_loses_its_users() -> None:
    presence = Connected()
    presence.hear(complete("a", {1: 1, 2: 1}), 0)
    presence.hear(complete("b", {2: 1}), 40)
    assert presence.expire(45) == set()
    assert presence.expire(45.1) == {1}
    assert presence.active_users() == {2}


def test_any_word_of_a_gateway_keeps_all_its_users() -> None:
    presence = Connected()
    presence.hear(complete("a", {1: 1}), 0)
    presence.hear(counted("a", {2: 1}), 40)
    assert presence.expire(80) == set()
    assert presence.expire(86) == {1, 2}


def test_a_gateway_that_comes_back_after_silence_counts_anew() -> None:
    presence = Connected()
    presence.hear(complete("a", {1: 1, 2: 1}), 0)
    presence.expire(60)
    assert presence.hear(complete("a", {2: 1}), 61) == {2}


def test_what_is_said_twice_or_of_nobody_changes_nothing() -> None:
    presence = Connected()
    presence.hear(complete("a", {1: 1}), 0)
    assert presence.hear(complete("a", {1: 1}), 1) == set()
    assert presence.hear(counted("a", {5: 0, 6: -1}), 1) == set()
    assert presence.hear(complete("never heard", {}), 1) == set()
    assert presence.active_users() == {1}


def test_nothing_is_kept_of_users_and_gateways_that_are_gone() -> None:
    presence = Connected()
    for n in range(100):
        presence.hear(complete(f"gateway {n}", {n: 1}), n)
        presence.hear(counted(f"gateway {n}", {n: 0, n + 1000: 0}), n)
    presence.expire(1000)
    assert (len(presence._heard_at), len(presence._users), len(presence._gateways)) == (0, 0, 0)
