"""The gateway's routes over HTTP, with an auth on the memory bus that answers what a test says."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import jwt
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from parley_contracts import accounts, api_keys, model_configs, roles, sessions, settings, turns, usage, users
from parley_contracts.accounts import AUDIENCE, ISSUER, GetJwks, Jwk, ListRevoked, Revocations
from parley_gateway.service import GatewayService
from parley_gateway.settings import GatewaySettings
from parley_runtime.memory_bus import MemoryBus, MemoryHub

_ASKED = (
    (accounts, "Register LogIn RefreshTokens LogOut ChangeUsername ChangeEmail ChangePassword ChangePasswordKnowingOld"),
    (accounts, "IssueStreamToken GetUser GetUsers GetJwks ListRevoked"),
    (api_keys, "CreateApiKey ListApiKeys DeleteApiKey CheckApiKey"),
    (users, "ListUsers CreateUser UpdateUser DeleteUser"),
    (roles, "ListRoles PutRole"),
    (settings, "GetInstallation GetSystemSettings PutSystemSettings GetPersonalSettings PutPersonalSettings"),
    (sessions, "ListSessions GetSession"),
    (model_configs, "ListModelConfigs GetModelConfig"),
    (usage, "GetBudget"),
    (turns, "GetTurn"),
)


@dataclass
class Others:
    """The services behind the gateway. `says[Kind]` is the reply, or the error, to a message; `heard` is what was asked."""

    bus: MemoryBus
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    says: dict[type, Any] = field(default_factory=dict)
    heard: list[Any] = field(default_factory=list)

    def listen(self) -> None:
        for module, names in _ASKED:
            for name in names.split():
                kind: Any = getattr(module, name)
                self.bus.answer(kind, self._answer(kind))
        point = self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.says[GetJwks] = (Jwk(kid="a-key", x=base64.urlsafe_b64encode(point).rstrip(b"=").decode()),)
        self.says[ListRevoked] = Revocations(as_of=datetime.now(UTC))

    def _answer(self, kind: type) -> Callable[[Any], Awaitable[Any]]:
        async def answer(message: Any) -> Any:
            self.heard.append(message)
            reply = self.says[kind]
            if isinstance(reply, Exception):
                raise reply
            return reply

        return answer

    def last(self, kind: type) -> Any:
        return [message for message in self.heard if isinstance(message, kind)][-1]

    def token(self, user_id: int = 7, *, role: str = "USER", family: str = "a-family", **claims: Any) -> str:
        now = int(time.time())
        payload = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(user_id),
            "jti": f"{now}",
            "typ": "access",
            "fam": family,
            "role": role,
            "permissions": ["models:create"],
            "iat": now,
            "exp": now + 900,
            **claims,
        }
        return jwt.encode(payload, self.key, algorithm="EdDSA", headers={"kid": "a-key"})


@dataclass
class Edge:
    """A gateway in this process, a client of it, and the services behind it."""

    gateway: GatewayService
    client: httpx.AsyncClient
    others: Others
    hub: MemoryHub

    def signed_in(self, user_id: int = 7, **claims: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.others.token(user_id, **claims)}"}

    async def until(self, is_so: Callable[[], bool], within_s: float = 5.0) -> None:
        async with asyncio.timeout(within_s):
            while not is_so():  # noqa: ASYNC110 - what it waits for is others' state
                await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def at_the_edge() -> AsyncIterator[Edge]:
    hub = MemoryHub()
    others = Others(MemoryBus(hub, service="auth"))
    others.listen()
    await others.bus.start()
    gateway = GatewayService(GatewaySettings(node_env="test", port=0), MemoryBus(hub, service="gateway"))
    await gateway.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.http.port}", trust_env=False) as client:
        yield Edge(gateway, client, others, hub)
    await gateway.stop()
    await others.bus.close()
