"""Connections, against real listeners on this machine."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typing_extensions import override

from parley_contracts.errors import BaseUrlRefused
from parley_contracts.model_configs import ModelConfig
from parley_llm_router import http_client
from parley_llm_router.http_client import HttpClients

LITERALS = ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "0.0.0.0", "127.0.0.1.", "127。0。0。1"]  # noqa: S104 — refused
LITERALS += ["[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]"]
LITERALS += ["①②⑦.⓪.⓪.①", "localhost", "224.0.0.1", "100.64.0.1"]
TEXT = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\nset-cookie: a=b\r\n\r\nok"
ENDLESS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n8\r\ndata: 1\n\r\n"


@dataclass
class Listener:
    """A server that gives one answer and counts who comes."""

    answer: bytes = TEXT
    hits: int = 0
    requests: list[bytes] = field(default_factory=list)
    gone_at: asyncio.Future[float] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hits += 1
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self.answer)
                if self.answer is ENDLESS:
                    await asyncio.wait_for(reader.read(), 5)  # until the client leaves
                    self.gone_at.set_result(time.perf_counter())
                if self.answer is not TEXT:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()


@asynccontextmanager
async def listening(answer: bytes = TEXT, tls: ssl.SSLContext | None = None) -> AsyncIterator[Listener]:
    listener = Listener(answer)
    server = await asyncio.start_server(listener.serve, "127.0.0.1", 0, ssl=tls)
    listener.port = server.sockets[0].getsockname()[1]
    try:
        yield listener
    finally:
        server.close()


class Names(AbstractResolver):
    """A resolver that gives one scripted answer after the other."""

    def __init__(self, *answers: list[str], delay_s: float = 0) -> None:
        self.answers = list(answers)
        self.delay_s = delay_s

    @override
    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        await asyncio.sleep(self.delay_s)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        kind = [socket.AF_INET6 if ":" in ip else socket.AF_INET for ip in answer]
        return [
            ResolveResult(hostname=host, host=ip, port=port, family=family, proto=0, flags=0)
            for ip, family in zip(answer, kind, strict=True)
        ]

    @override
    async def close(self) -> None:
        pass


@asynccontextmanager
async def clients(**options: Any) -> AsyncIterator[HttpClients]:
    made = HttpClients(**options)
    try:
        yield made
    finally:
        await made.close()


def config(base_url: str, owner_id: int | None = 7) -> ModelConfig:
    return ModelConfig(id="0" * 26, name="n", provider="custom", model="m", base_url=base_url, owner_id=owner_id)


@dataclass(frozen=True)
class Tls:
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A server that is `model.example`, and a client that trusts it."""
    folder: Path = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "model.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("model.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "model.pem"
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return Tls(server, ssl.create_default_context(cafile=str(file)))


@pytest.fixture
def all_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine stands in for a public one."""
    monkeypatch.setattr(http_client, "is_public", lambda _: True)


# --- where a user's URL may lead ------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", LITERALS)
@pytest.mark.parametrize("is_text_checked", [True, False], ids=["text checked", "socket only"])
async def test_a_users_url_never_reaches_this_machine(
    host: str,
    is_text_checked: bool,  # noqa: FBT001 — a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not is_text_checked:
        monkeypatch.setattr(http_client, "check_url", lambda _url, _allow: None)
    async with listening() as listener, clients() as made:
        with pytest.raises((BaseUrlRefused, httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.ConnectError)):
            await made.for_config(config("https://api.openai.com")).get(f"http://{host}:{listener.port}/")
        assert listener.hits == 0


async def test_an_unguarded_client_would_have_reached_it() -> None:
    async with listening() as listener, clients() as made:
        answer = await made.for_config(config("https://x.example", owner_id=None)).get(f"http://127.0.0.1:{listener.port}/")
        assert (answer.text, listener.hits) == ("ok", 1)


@pytest.mark.parametrize("answer", [["127.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["::1"], ["93.184.216.34", "fe80::1"]])
async def test_a_name_with_any_address_of_ours_is_refused(answer: list[str]) -> None:
    async with listening() as listener, clients(resolver=Names(answer)) as made:
        url = f"https://rebind.example:{listener.port}/"
        with pytest.raises(BaseUrlRefused):
            await made.for_config(config(url)).get(url)
        assert listener.hits == 0


async def test_a_name_that_turns_private_later_is_refused_then(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    public = {"127.0.0.1"}
    monkeypatch.setattr(http_client, "is_public", lambda ip: ip in public)
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    once = TEXT.replace(b"content-type", b"connection: close\r\ncontent-type")
    async with listening(once, tls.server) as listener, clients(resolver=names, ssl_context=tls.client) as made:
        client = made.for_config(config("https://model.example"))
        url = f"https://model.example:{listener.port}/"
        assert (await client.get(url)).text == "ok"
        with pytest.raises(BaseUrlRefused):
            await client.get(url)
        assert listener.hits == 1


@pytest.mark.usefixtures("all_public")
async def test_a_url_saved_under_an_exception_that_was_withdrawn_is_refused_at_use() -> None:
    async with listening() as listener, clients(resolver=Names(["127.0.0.1"])) as made:
        url = f"http://model.example:{listener.port}/v1"
        with pytest.raises(BaseUrlRefused):
            await made.for_config(config(url)).get(url)
        assert listener.hits == 0


@pytest.mark.usefixtures("all_public")
async def test_the_certificate_must_bear_the_name_of_the_url(tls: Tls) -> None:
    async with listening(TEXT, tls.server) as listener, clients(resolver=Names(["127.0.0.1"]), ssl_context=tls.client) as made:
        client = made.for_config(config("https://model.example"))
        assert (await client.get(f"https://model.example:{listener.port}/")).text == "ok"
        with pytest.raises(httpx.ConnectError):
            await client.get(f"https://other.example:{listener.port}/")
        assert len(listener.requests) == 1


async def test_a_listed_local_model_works_and_its_neighbour_does_not() -> None:
    async with listening() as listener, listening() as neighbour:
        origin, other = f"http://127.0.0.1:{listener.port}", f"http://127.0.0.1:{neighbour.port}"
        async with clients(allow=[origin]) as made:
            assert (await made.for_config(config(f"{origin}/v1")).get(f"{origin}/v1")).text == "ok"
            with pytest.raises(BaseUrlRefused):
                await made.for_config(config(f"{other}/v1")).get(f"{other}/v1")
        assert (listener.hits, neighbour.hits) == (1, 0)


# --- what no client does --------------------------------------------------------------------------------------------


async def test_a_redirect_is_not_followed() -> None:
    async with listening() as target:
        answer = f"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{target.port}/\r\ncontent-length: 0\r\n\r\n".encode()
        async with listening(answer) as listener, clients() as made:
            got = await made.for_config(config("https://x", owner_id=None)).get(f"http://127.0.0.1:{listener.port}/")
            assert (got.status_code, target.hits) == (302, 0)


async def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening() as proxy, listening() as listener:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with clients() as made:
            await made.for_config(config("https://x", owner_id=None)).get(f"http://127.0.0.1:{listener.port}/")
            with pytest.raises(BaseUrlRefused):
                await made.for_config(config("https://x")).get(f"https://127.0.0.1:{listener.port}/")
        assert (listener.hits, proxy.hits) == (1, 0)


async def test_no_cookie_comes_back_and_nothing_is_asked_compressed() -> None:
    async with listening() as listener, clients(user_agent="Parley/1") as made:
        client = made.for_config(config("https://x", owner_id=None))
        for _ in range(2):
            await client.get(f"http://127.0.0.1:{listener.port}/")
        second = listener.requests[1].lower()
        assert b"cookie" not in second
        assert b"accept-encoding: identity" in second
        assert b"user-agent: parley/1" in second
        assert listener.hits == 1  # and the connection was kept


# --- time -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner_id", [None, 7], ids=["open", "guarded"])
async def test_a_slow_name_server_ends_with_the_connect_timeout(owner_id: int | None) -> None:
    async with clients(resolver=Names(["93.184.216.34"], delay_s=30), connect_timeout_s=0.1) as made:
        started = time.perf_counter()
        with pytest.raises(httpx.ConnectTimeout):
            await made.for_config(config("https://slow.example", owner_id)).get("https://slow.example/")
        assert time.perf_counter() - started < 5


@pytest.mark.usefixtures("all_public")
@pytest.mark.parametrize("owner_id", [None, 7], ids=["open", "guarded"])
@pytest.mark.parametrize("is_cancelled", [False, True], ids=["closed", "cancelled"])
async def test_leaving_a_stream_closes_its_connection_at_once(tls: Tls, owner_id: int | None, is_cancelled: bool) -> None:  # noqa: FBT001 — a parameter of the test
    async with (
        listening(ENDLESS, tls.server) as listener,
        clients(resolver=Names(["127.0.0.1"]), ssl_context=tls.client) as made,
    ):
        client = made.for_config(config("https://model.example", owner_id))
        first = asyncio.Event()

        async def read() -> None:
            async with client.stream("POST", f"https://model.example:{listener.port}/") as answer:
                async for _ in answer.aiter_raw():
                    first.set()
                    if not is_cancelled:
                        return

        reading = asyncio.create_task(read())
        await first.wait()
        left_at = time.perf_counter()
        if is_cancelled:
            reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert await asyncio.wait_for(listener.gone_at, 5) - left_at < 0.3


@pytest.mark.parametrize("answer", [b"", ENDLESS[:20], ENDLESS + b"8\r\nda"], ids=["no answer", "half a head", "half a body"])
async def test_a_connection_that_breaks_is_no_timeout(answer: bytes) -> None:
    async with listening(answer) as listener, clients() as made:
        with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)):
            await made.for_config(config("https://x", owner_id=None)).post(f"http://127.0.0.1:{listener.port}/", content=b"")
