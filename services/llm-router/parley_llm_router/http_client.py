"""The one client factory: every connection to a provider is opened here.

Operators' providers get a fast client. URLs that users set get one that refuses, where the socket is opened, each address
that is not public: whatever the URL looks like, and whatever its name resolves to by then.
"""

import socket
import ssl
from collections.abc import Iterable
from http.cookiejar import CookieJar, DefaultCookiePolicy

import aiohttp
import httpx
import httpx_aiohttp.transport
from aiohttp.abc import AbstractResolver, ResolveResult
from httpx_aiohttp import AiohttpTransport
from typing_extensions import override

from parley_contracts.errors import BaseUrlRefused
from parley_contracts.model_configs import ModelConfig
from parley_llm_router.addresses import check_url, is_public, origin_of

CONNECT_TIMEOUT_S = 10.0
_KEEPALIVE_S = 30.0

# The library calls every lost connection a ConnectTimeout, which would be told to users as a slow provider.
httpx_aiohttp.transport.AIOHTTP_EXC_MAP[aiohttp.ClientConnectionError] = httpx.NetworkError
httpx_aiohttp.transport.AIOHTTP_EXC_MAP[aiohttp.ConnectionTimeoutError] = httpx.ConnectTimeout


class HttpClients:
    """The clients of a router. Nothing is opened before the first request.

    No client follows redirects, keeps cookies or reads proxies from the environment. Connecting, name resolution included,
    may take `connect_timeout_s`; reading is not limited, so whoever reads a stream keeps an eye on its silence. How many
    connections there are is bounded by the turns a router takes. Bodies are asked for uncompressed.
    """

    def __init__(
        self,
        *,
        allow: Iterable[str] = (),
        user_agent: str = "Parley",
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        resolver: AbstractResolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._allow = frozenset(origin_of(origin) for origin in allow)
        self._resolver = resolver
        self._ssl_context = ssl_context or httpx.create_ssl_context(trust_env=False)
        self._headers = {"user-agent": user_agent, "accept-encoding": "identity"}
        self._timeout = httpx.Timeout(None, connect=connect_timeout_s, pool=connect_timeout_s)
        self._open = self._client(AiohttpTransport(verify=self._ssl_context, trust_env=False, client=self._open_session))
        self._guarded = self._client(_GuardedTransport(verify=self._ssl_context, trust_env=False, client=self._guarded_session))

    def for_config(self, config: ModelConfig) -> httpx.AsyncClient:
        """The client for this config: unguarded for a system config and for the origins an administrator excepts."""
        if config.owner_id is None or origin_of(config.base_url) in self._allow:
            return self._open
        return self._guarded

    async def close(self) -> None:
        await self._open.aclose()
        await self._guarded.aclose()

    def _client(self, transport: httpx.AsyncBaseTransport) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=transport,
            headers=self._headers,
            timeout=self._timeout,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            follow_redirects=False,
            trust_env=False,
        )

    def _open_session(self) -> aiohttp.ClientSession:
        return _session(
            aiohttp.TCPConnector(limit=0, ssl=self._ssl_context, keepalive_timeout=_KEEPALIVE_S, resolver=self._resolver)
        )

    def _guarded_session(self) -> aiohttp.ClientSession:
        # No cache of names: each connection is judged by the answer it connects to.
        return _session(
            aiohttp.TCPConnector(
                limit=0,
                ssl=self._ssl_context,
                keepalive_timeout=_KEEPALIVE_S,
                use_dns_cache=False,
                resolver=_PublicResolver(self._resolver or aiohttp.ThreadedResolver()),
                socket_factory=_public_socket,
            )
        )


def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)


class _GuardedTransport(AiohttpTransport):
    """Checks the text of each URL too: a config may have been saved before its exception was withdrawn."""

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        check_url(str(request.url), ())
        return await super().handle_async_request(request)


class _PublicResolver(AbstractResolver):
    """Refuses a name if any of its addresses is not public: which one is tried is not ours to say."""

    def __init__(self, inner: AbstractResolver) -> None:
        self._inner = inner

    @override
    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if not all(is_public(result["host"]) for result in found):
            raise BaseUrlRefused(reason="its address is not public")
        return found

    @override
    async def close(self) -> None:
        await self._inner.close()


def _public_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket for a public address. Literal addresses come only here: no resolver is asked for them."""
    family, kind, protocol, _, peer = address
    if not is_public(str(peer[0])):
        raise BaseUrlRefused(reason="its address is not public")
    return socket.socket(family=family, type=kind, proto=protocol)
