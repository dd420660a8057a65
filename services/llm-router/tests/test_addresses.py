import pytest

from parley_contracts.errors import BaseUrlRefused
from parley_llm_router.addresses import check_url, is_public, origin_of

NOT_PUBLIC = """
    0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 127.0.0.1 127.255.255.254 168.63.129.16 169.254.169.254 172.16.0.1 172.31.255.255
    192.0.0.8 192.0.0.10 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250
    240.0.0.1 255.255.255.255 :: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1
    64:ff9b:1::7f00:1 2001::1 2001:db8::1 2002:7f00:1:: 3fff::1 5f00::1 fc00::1 fe80::1%eth0 fec0::1 ff02::1
""".split()  # noqa: SIM905 — a table
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2001:4860:4860::8888", "::ffff:8.8.8.8"]

# Spellings of addresses of ours, and other URLs that lead there.
TRICKS = {
    "dotted": "https://127.0.0.1/v1",
    "short": "https://127.1/v1",
    "decimal": "https://2130706433/v1",
    "hexadecimal": "https://0x7f000001/v1",
    "octal": "https://0177.0.0.1/v1",
    "zero": "https://0/v1",
    "mixed": "https://0x7f.1/v1",
    "trailing dot": "https://127.0.0.1./v1",
    "loopback 6": "https://[::1]/v1",
    "mapped": "https://[::ffff:7f00:1]/v1",
    "mapped dotted": "https://[::ffff:127.0.0.1]/v1",
    "translated": "https://[64:ff9b::7f00:1]/v1",
    "6to4": "https://[2002:7f00:1::]/v1",
    "circled digits": "https://①②⑦.⓪.⓪.①/v1",
    "ideographic stops": "https://127。0。0。1/v1",
    "localhost": "https://localhost/v1",
    "any localhost": "https://x.LOCALHOST./v1",
    "multicast": "https://224.0.0.1/v1",
    "carrier": "https://100.64.0.1/v1",
    "metadata": "https://169.254.169.254/latest",
    "user": "https://api.openai.com@127.0.0.1/v1",
    "user of a public host": "https://me:secret@api.openai.com/v1",
    "empty user": "https://@api.openai.com/v1",
    "http": "http://api.openai.com/v1",
    "file": "file:///etc/passwd",
    "no scheme": "api.openai.com/v1",
    "no host": "https:///v1",
    "only a dot": "https://./v1",
    "line end": "https://api.openai.com/\r\nx: y",
    "port": "https://api.openai.com:99999/",
    "fragment": "https://api.openai.com/v1#x",
    "no address": "https://1.2.3.4.5/v1",
    "long": "https://api.openai.com/" + "x" * 2048,
    "empty": "",
}


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_public_is_known(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_passes(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("url", TRICKS.values(), ids=TRICKS.keys())
def test_a_url_that_leads_to_us_or_is_none_is_refused_when_saved(url: str) -> None:
    with pytest.raises(BaseUrlRefused) as refusal:
        check_url(url, ())
    assert "secret" not in refusal.value.message


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1",
        "https://1.1.1.1:8443/v1?api-version=1",
        "https://模型.cn/v1",
        "https://[2606:4700:4700::1111]/",
    ],
)
def test_a_public_https_url_passes(url: str) -> None:
    check_url(url, ())


def test_an_exception_is_an_exact_origin() -> None:
    allow = ["http://127.0.0.1:11434", "http://LocalHost/"]
    check_url("http://127.0.0.1:11434/v1", allow)
    check_url("http://localhost:80/v1", allow)
    for other in ("http://127.0.0.1:11435/v1", "https://127.0.0.1:11434/v1", "http://127.0.0.1/v1", "http://127.0.0.2:11434"):
        with pytest.raises(BaseUrlRefused):
            check_url(other, allow)
    with pytest.raises(BaseUrlRefused):
        check_url("http://me@127.0.0.1:11434/v1", allow)


def test_an_origin_always_names_its_port() -> None:
    assert origin_of("https://API.openai.com/v1?x=1") == "https://api.openai.com:443"
    assert origin_of("http://[::1]/v1") == "http://[::1]:80"
    assert origin_of("http://127.0.0.1:11434") == "http://127.0.0.1:11434"
