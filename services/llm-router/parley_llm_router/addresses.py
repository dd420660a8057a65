"""Addresses: where a URL that a user set may lead. Never into our own network.

The text of a URL is checked when it is saved, the address when a connection is opened: only the second is protection, since
names change; the first tells the user at once.
"""

import socket
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

import httpx

from parley_contracts.errors import BaseUrlRefused

_URL_LIMIT = 2048
_DEFAULT_PORTS = {"https": 443, "http": 80}

# What `is_global` lets pass on one Python or another: addresses that carry an IPv4 address, old and special ranges,
# and the last one, a cloud's platform address.
_REFUSED = tuple(
    ip_network(text)
    for text in (
        *("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96", "fec0::/10", "5f00::/16", "3fff::/20"),
        *("192.0.0.0/24", "192.88.99.0/24", "100.64.0.0/10", "198.18.0.0/15", "240.0.0.0/4", "168.63.129.16/32"),
    )
)


def is_public(text: str) -> bool:
    """Whether an address, as a resolver or a socket names it, lies on the public internet."""
    ip = ip_address(text.split("%", maxsplit=1)[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_global and not ip.is_multicast and not any(ip in net for net in _REFUSED if net.version == ip.version)


def origin_of(url: str) -> str:
    """`scheme://host:port`, always with the port. Errors: BaseUrlRefused for what is no URL of a host."""
    parsed = _parse(url)
    host = parsed.raw_host.decode().lower()
    port = parsed.port or _DEFAULT_PORTS.get(parsed.scheme)
    return f"{parsed.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def check_url(url: str, allow: Collection[str]) -> None:
    """Refuse a URL that no user may set. Asks no DNS. `allow` holds the origins an administrator excepts.

    Errors: BaseUrlRefused.
    """
    parsed = _parse(url)
    if "@" in urlsplit(url).netloc or parsed.userinfo:
        raise BaseUrlRefused(reason="it holds a user name")
    if parsed.fragment:
        raise BaseUrlRefused(reason="it holds a fragment")
    if allow and origin_of(url) in {origin_of(origin) for origin in allow}:
        return
    if parsed.scheme != "https":
        raise BaseUrlRefused(reason="it is not https")
    host = parsed.raw_host.decode().lower().rstrip(".")
    literal = _literal(host)
    if host == "localhost" or host.endswith(".localhost") or (literal is not None and not is_public(str(literal))):
        raise BaseUrlRefused(reason="its address is not public")


def _parse(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
        parsed.raw_host.decode()
    except (httpx.InvalidURL, UnicodeError, TypeError, ValueError):
        raise BaseUrlRefused(reason="it is no URL") from None
    if len(url) > _URL_LIMIT or parsed.scheme not in _DEFAULT_PORTS or not parsed.raw_host.strip(b"."):
        raise BaseUrlRefused(reason="it is no http URL of a host")
    if parsed.port is not None and not 0 < parsed.port < 1 << 16:
        raise BaseUrlRefused(reason="its port is out of range")
    return parsed


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    """The address that `host` spells, in any spelling a C library takes: 127.1, 2130706433, 0x7f000001, 0177.0.0.1."""
    try:
        return ip_address(host.split("%", maxsplit=1)[0])
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except OSError:
        pass
    last = host.rpartition(".")[2]
    if last.isdigit() or last.startswith("0x"):
        raise BaseUrlRefused(reason="its address is none")  # a name never ends so; some resolver might still read it as one
    return None
