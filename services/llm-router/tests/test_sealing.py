import base64
import re

import pytest
from cryptography.exceptions import InvalidTag

from parley_llm_router.sealing import CannotUnseal, Sealer, SealKeysInvalid, UnknownSealKey, api_key_place, new_seal_keys

OLD = "k1:" + base64.b64encode(bytes(32)).decode()
NEW = "k2:" + base64.b64encode(bytes([1]) * 32).decode()
PLACE = api_key_place(row_id="r1", owner_id=7, origin="https://x.example:443")
SEALER = Sealer(OLD, service="llm_router")


def test_a_sealed_text_has_the_stated_form_and_opens_again() -> None:
    sealed = SEALER.seal("sk-密", place=PLACE)
    assert re.fullmatch(r"v1\.k1\.[A-Za-z0-9+/]+=*", sealed)
    assert len(base64.b64decode(sealed.rpartition(".")[2])) == 12 + len("sk-密".encode()) + 16
    assert SEALER.unseal(sealed, place=PLACE) == "sk-密"


def test_two_seals_of_one_text_differ() -> None:
    assert SEALER.seal("sk-1", place=PLACE) != SEALER.seal("sk-1", place=PLACE)


@pytest.mark.parametrize(
    "elsewhere",
    [
        api_key_place(row_id="r2", owner_id=7, origin="https://x.example:443"),
        api_key_place(row_id="r1", owner_id=8, origin="https://x.example:443"),
        api_key_place(row_id="r1", owner_id=None, origin="https://x.example:443"),
        api_key_place(row_id="r1", owner_id=7, origin="https://evil.example:443"),
        api_key_place(row_id="r1", owner_id=7, origin="http://x.example:80"),
    ],
)
def test_a_key_moved_to_another_row_owner_or_origin_does_not_open(elsewhere: str) -> None:
    with pytest.raises(CannotUnseal) as refusal:
        SEALER.unseal(SEALER.seal("sk-1", place=PLACE), place=elsewhere)
    assert isinstance(refusal.value.__cause__, InvalidTag)


def test_another_service_cannot_open_what_one_sealed() -> None:
    with pytest.raises(CannotUnseal):
        Sealer(OLD, service="activity").unseal(SEALER.seal("sk-1", place=PLACE), place=PLACE)


def test_the_first_key_seals_and_all_open() -> None:
    rotated = Sealer(f"{NEW}, {OLD}", service="llm_router")
    old, new = SEALER.seal("sk-1", place=PLACE), rotated.seal("sk-1", place=PLACE)
    assert new.startswith("v1.k2.")
    assert [rotated.unseal(sealed, place=PLACE) for sealed in (old, new)] == ["sk-1", "sk-1"]
    assert [rotated.is_newest(sealed) for sealed in (old, new)] == [False, True]


def test_a_key_that_was_removed_is_named() -> None:
    with pytest.raises(UnknownSealKey, match="'k1'") as refusal:
        Sealer(NEW, service="llm_router").unseal(SEALER.seal("sk-1", place=PLACE), place=PLACE)
    assert refusal.value.key_id == "k1"


def test_every_changed_byte_is_noticed() -> None:
    head, _, encoded = SEALER.seal("sk-1", place=PLACE).rpartition(".")
    data = base64.b64decode(encoded)
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(CannotUnseal):
            SEALER.unseal(f"{head}.{base64.b64encode(changed).decode()}", place=PLACE)


@pytest.mark.parametrize("text", ["", "sk-1", "v1.k1.", "v1.k1.AAAA", "v1.k1.!!!!", "v2.k1." + "A" * 64])
def test_what_is_no_sealed_text_is_refused(text: str) -> None:
    with pytest.raises(CannotUnseal):
        SEALER.unseal(text, place=PLACE)


@pytest.mark.parametrize("keys", ["", "k1", "k1:", "k1:c2hvcnQ=", OLD[3:], f"{OLD},{OLD}", f"{OLD},", "k.1" + OLD[2:], "k1:!"])
def test_bad_seal_keys_are_refused_without_showing_them(keys: str) -> None:
    with pytest.raises(SealKeysInvalid) as refusal:
        Sealer(keys, service="llm_router")
    assert "AAAA" not in str(refusal.value)
    assert "c2hvcnQ" not in str(refusal.value)


def test_fresh_keys_are_usable_and_differ() -> None:
    one, other = new_seal_keys(), new_seal_keys()
    assert one != other
    sealer = Sealer(one, service="llm_router")
    assert sealer.unseal(sealer.seal("sk-1", place=PLACE), place=PLACE) == "sk-1"
