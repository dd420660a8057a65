"""A running Parley, as a test drives it: through the public API, and through its processes' pids.

Started by the launcher like any installation, every service a process of its own; the simulated provider's meter is the
referee, since it shares no code with Parley.
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.sse import Reader, SseEvent, sse_events

START_S = 60.0
PASSWORD = "correct horse 1"
NO_LIMITS = dict.fromkeys(
    ("RATE_REQUESTS_PER_MIN", "RATE_ANONYMOUS_PER_MIN", "RATE_LOGIN_PER_MIN", "RATE_TURNS_PER_MIN", "MAX_RUNNING_TURNS"),
    "1000000",
)
"""All tests come from one address, and some ask hundreds of times."""


@dataclass
class RunningParley:
    """One installation in a temporary folder. `services` maps a process's name (`gateway-1`, `nats`) to what is known of it."""

    folder: Path
    launcher: subprocess.Popen[bytes]
    services: dict[str, dict[str, Any]] = field(default_factory=dict)
    admin: "Person | None" = None

    @classmethod
    async def start(cls, folder: Path, *arguments: str, **env: str) -> "RunningParley":
        log = (folder / "launcher.log").open("ab")
        environment = {
            **{name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH"}},
            "PORT": "0",
            "PARLEY_DATA_DIR": str(folder / "data"),
            "NODE_ENV": "test",
            **NO_LIMITS,
            **env,
        }
        launcher = subprocess.Popen(  # noqa: ASYNC220, S603 - it returns at once; the command is ours
            [sys.executable, "-m", "parley", "up", *arguments],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()
        parley = cls(folder, launcher)
        try:
            await parley.until_ready()
        except BaseException:
            await parley.stop()
            raise
        return parley

    # --- processes ------------------------------------------------------------------------------------------------------

    @property
    def state_file(self) -> Path:
        return self.folder / "data" / "services.json"

    def refresh(self) -> None:
        self.services = json.loads(self.state_file.read_text())

    async def until_ready(self) -> None:
        """Every gateway and every service answers `/readyz` with 200, also what was just started again."""
        deadline = time.monotonic() + START_S
        async with httpx.AsyncClient(trust_env=False) as client:
            while time.monotonic() < deadline:
                if self.launcher.poll() is not None:
                    raise RuntimeError(f"the launcher ended:\n{self.launcher_log()}")
                with contextlib.suppress(FileNotFoundError, json.JSONDecodeError, httpx.TransportError, KeyError):
                    self.refresh()
                    ready = [*self.gateways, *self.health_pages]
                    if self.gateways and all([(await client.get(f"{url}/readyz")).is_success for url in ready]):
                        return
                await asyncio.sleep(0.1)
        raise RuntimeError(f"not ready after {START_S} s:\n{self.launcher_log()}")

    def launcher_log(self) -> str:
        return (self.folder / "launcher.log").read_text()[-4000:]

    @property
    def gateways(self) -> list[str]:
        return [
            f"http://127.0.0.1:{known['port']}" for name, known in sorted(self.services.items()) if name.startswith("gateway")
        ]

    @property
    def health_pages(self) -> list[str]:
        return [f"http://127.0.0.1:{known['health_port']}" for known in self.services.values() if "health_port" in known]

    @property
    def simulator_url(self) -> str:
        return f"http://127.0.0.1:{self.services['simulator']['port']}"

    def pid(self, name: str) -> int:
        self.refresh()
        return int(self.services[name]["pid"])

    def names(self, service: str) -> list[str]:
        """The replicas of a service, by name."""
        self.refresh()
        return sorted(name for name in self.services if name == service or name.rpartition("-")[0] == service)

    def kill(self, name: str, kind: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pid(name), kind)

    def kill_all(self, service: str, kind: signal.Signals = signal.SIGKILL) -> None:
        for name in self.names(service):
            self.kill(name, kind)

    async def stop(self) -> None:
        self.launcher.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self.launcher.wait, 60)
        finally:
            self.launcher.kill()
            self.launcher.wait()

    # --- the referee ----------------------------------------------------------------------------------------------------

    async def meter(self, key: str) -> list[dict[str, Any]]:
        """The provider's own record of the calls whose prompt bears `key=`."""
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"{self.simulator_url}/meter", params={"key": key})
            calls: list[dict[str, Any]] = answer.json()["calls"]
            return calls

    # --- people ---------------------------------------------------------------------------------------------------------

    async def register(self, *, gateway: int = 0) -> "Person":
        email = f"{secrets.token_hex(6)}@example.org"
        client = httpx.AsyncClient(base_url=self.gateways[gateway], timeout=60, trust_env=False)
        answer = await client.post("/user/register", json={"email": email, "username": "Someone", "password": PASSWORD})
        assert answer.status_code == 201, answer.text
        tokens = answer.json()
        client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
        me = (await client.get("/user/me")).json()
        return Person(self, client, email, me["id"], tokens)


@dataclass
class Person:
    """A signed-in user and what they can do, on any gateway."""

    parley: RunningParley
    client: httpx.AsyncClient
    email: str
    id: int
    tokens: dict[str, Any]

    async def close(self) -> None:
        await self.client.aclose()

    def on(self, gateway: int) -> httpx.AsyncClient:
        """The same user at another gateway; close it."""
        return httpx.AsyncClient(
            base_url=self.parley.gateways[gateway], timeout=60, trust_env=False, headers=dict(self.client.headers)
        )

    async def session(self, model: str = "simulator", **fields: Any) -> str:
        body = {"name": "A talk", "modelConfig": {"modelProvider": "SIMULATOR", "modelName": model}, **fields}
        answer = await self.client.post("/chat/sessions", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["data"]["id"])

    @asynccontextmanager
    async def asks(self, session_id: str | None, text: str, *, gateway: int = 0, **fields: Any) -> AsyncIterator["Stream"]:
        """Ask in a session, streamed in S0's dialect."""
        body = {"messages": [{"role": "USER", "content": text}], "stream": True, **fields}
        if session_id is not None:
            body["sessionId"] = session_id
        async with self.on(gateway) as client, client.stream("POST", "/chat/completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
            assert response.status_code == 200, response.text
            yield Stream(response)

    @asynccontextmanager
    async def resumes(self, turn_id: str, last_id: str | None, *, gateway: int, reader: Reader) -> AsyncIterator["Stream"]:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        async with (
            self.on(gateway) as client,
            client.stream("GET", f"/chat/turns/{turn_id}/events", params={"format": "s0"}, headers=headers) as response,
        ):
            if response.status_code != 200:
                await response.aread()
            assert response.status_code == 200, response.text
            yield Stream(response, reader)

    async def answers(self, session_id: str) -> list[dict[str, Any]]:
        """The assistant's stored messages of a session."""
        answer = await self.client.get(f"/chat/sessions/{session_id}")
        assert answer.status_code == 200, answer.text
        return [message for message in answer.json()["data"]["messages"] if message["role"] == "ASSISTANT"]

    async def charges(self, turn_id: str) -> list[dict[str, Any]]:
        answer = await self.client.get("/api/usage/charges", params={"turnId": turn_id})
        assert answer.status_code == 200, answer.text
        charges: list[dict[str, Any]] = answer.json()["charges"]
        return charges

    async def budget(self) -> dict[str, Any]:
        answer = await self.client.get("/api/usage/budget")
        assert answer.status_code == 200, answer.text
        budget: dict[str, Any] = answer.json()
        return budget


class Stream:
    """One open S0 stream, read as far as a test says."""

    def __init__(self, response: httpx.Response, reader: Reader | None = None) -> None:
        self.reader = reader or Reader()
        self.pings = 0
        self._events = sse_events(response)

    async def next(self) -> SseEvent | None:
        async for event in self._events:
            if isinstance(event, str):
                self.pings += 1
                continue
            self.reader.show(event)
            return event
        return None

    async def reads_words(self, count: int) -> None:
        """Read until at least `count` words are shown."""
        while len(self.reader.text.split()) < count:
            assert await self.next() is not None, f"the stream closed after {self.reader.text!r}"

    async def reads_to_the_end(self) -> Reader:
        """Read until the stream closes; it must have ended in the dialect's own way."""
        while await self.next() is not None:
            pass
        return self.reader


async def eventually(check: Callable[[], Awaitable[bool]], *, within_s: float, every_s: float = 0.1) -> None:
    """Wait for something that becomes true by itself."""
    deadline = time.monotonic() + within_s
    while not await check():
        assert time.monotonic() < deadline, f"not so within {within_s} s"
        await asyncio.sleep(every_s)


def words(count: int) -> str:
    """What the simulator says to `tokens=count`."""
    return "".join(f"word{number} " for number in range(1, count + 1))
