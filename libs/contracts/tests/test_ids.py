"""Ids: ours pass, everything else is kept out of subjects."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parley_contracts.errors import InvalidId
from parley_contracts.ids import checked, derived_id, is_id, new_id


def test_new_ids_are_ids_all_different_and_sorted_by_time() -> None:
    ids = [new_id() for _ in range(1000)]
    assert all(is_id(one) for one in ids)
    assert len(set(ids)) == 1000
    assert [one[:10] for one in ids] == sorted(one[:10] for one in ids)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        ">",
        "a.b",
        "a" * 25,
        "a" * 27,
        "a" * 5000,
        "A" * 26,
        "a" * 25 + " ",
        "a" * 26 + "\n",
        "ａ" * 26,
        "٣" * 26,
        "\x00" * 26,
        "a" * 25 + ".",
        "a" * 25 + "*",
        "$" + "a" * 25,
    ],
)
def test_what_is_no_id_is_refused_and_shown_shortened(text: str) -> None:
    assert not is_id(text)
    with pytest.raises(InvalidId) as raised:
        checked(text)
    assert len(raised.value.fields["value"]) <= 40


@given(st.text())
def test_only_26_lower_case_letters_and_digits_pass(text: str) -> None:
    assert is_id(text) == (re.fullmatch("[0-9a-z]{26}", text) is not None)


@given(st.lists(st.text(), max_size=4))
def test_a_derived_id_is_an_id_and_the_same_for_the_same_names(names: list[str]) -> None:
    assert is_id(derived_id(*names))
    assert derived_id(*names) == derived_id(*names)


def test_derived_ids_of_different_names_differ() -> None:
    ids = {derived_id("provider", str(i)) for i in range(10_000)}
    assert len(ids) == 10_000
    assert derived_id("a", "b") != derived_id("ab") != derived_id("b", "a")
    # Other versions must find the same: it is stored.
    assert derived_id("openai", "gpt-4o") == "7gesejn8bc2rbj4em334pweyrc"
