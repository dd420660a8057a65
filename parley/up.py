"""`parley up`: everything on this machine. Servers that no setting names are embedded ones; secrets are made at first start.

All six services run in this process, or with `--split` each in its own. "All in one" is no mode of the code: only this
file knows.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from parley.embedded import ALL, EmbeddedServers
from parley.first_secrets import ensure_secrets
from parley.parts import Part, Tell, keep
from parley.run import Place, make, migrate_all, place_of
from parley.services import SERVICES
from parley.supervise import StartFailed
from parley_runtime import telemetry
from parley_runtime.nats_bus import provision
from parley_runtime.service import Service
from parley_runtime.settings import Settings

log = structlog.get_logger()

_PROVISION_S = 10.0
_URLS = {"nats": "nats_url", "postgres": "database_url", "valkey": "redis_url", "s3": "s3_endpoint_url"}


class LauncherSettings(BaseSettings):
    """What the launcher itself reads; a server that is named here is not embedded."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True)

    node_env: str = Field(default="development", description="`production` refuses weak or missing secrets.")
    host: str = Field(default="127.0.0.1", description="Address the public API listens on.")
    port: int = Field(default=3000, ge=0, le=65535, description="Port of the public API; 0 takes a free one.")
    parley_data_dir: Path = Field(default=Path(".parley"), description="Where `parley up` keeps data, secrets and logs.")
    nats_url: str = Field(default="", description="The NATS server; empty: embedded.")
    database_url: str = Field(default="", description="PostgreSQL; empty: embedded.", repr=False)
    redis_url: str = Field(default="", description="Valkey or Redis; empty: embedded.", repr=False)
    s3_endpoint_url: str = Field(default="", description="An S3-compatible store; empty: embedded.")
    simulator_url: str = Field(default="", description="The simulated provider; empty: started beside the services.")
    jwt_secret: str = Field(default="", description="Signs access tokens; empty: made at first start.", repr=False)
    seal_keys: str = Field(default="", description="Seal provider keys; empty: made at first start.", repr=False)
    log_level: str = Field(default="warning", description="How much is logged.")


@dataclass(frozen=True, slots=True)
class Plan:
    """What `parley up` was asked for."""

    is_split: bool = False
    replicas: dict[str, int] | None = None

    def names(self, kind: str) -> list[str]:
        count = (self.replicas or {}).get(kind, 1)
        return [kind] if count == 1 else [f"{kind}-{number}" for number in range(1, count + 1)]


class Installation:
    """One `parley up`: started in order, watched, stopped in reverse."""

    def __init__(self, settings: LauncherSettings, plan: Plan) -> None:
        self._settings = settings
        self._plan = plan
        self._data_dir = settings.parley_data_dir.absolute()
        self._servers = EmbeddedServers(
            self._data_dir, only=frozenset(name for name in ALL if not getattr(settings, _URLS[name]))
        )
        self._embedded = [name for name in ALL if not getattr(settings, _URLS[name])]
        self._parts: list[Part] = []
        self._services: list[Service] = []
        self._watches: list[asyncio.Task[None]] = []
        self._tell = Tell(self._data_dir / "services.json")

    async def start(self) -> None:
        """Raises StartFailed, pydantic's ValidationError or OSError; what was started is stopped by `stop`."""
        self._refuse_taken_port()
        addresses = await self._servers.start()
        os.environ.update(self._environment(addresses.nats_url, addresses.database_url, addresses.redis_url))
        if addresses.s3_endpoint_url:
            os.environ.update(
                S3_ENDPOINT_URL=addresses.s3_endpoint_url,
                S3_ACCESS_KEY_ID=addresses.s3_access_key_id,
                S3_SECRET_ACCESS_KEY=addresses.s3_secret_access_key,
                S3_BUCKET=addresses.s3_bucket,
            )
        settings = Settings()
        await asyncio.gather(self._start_simulator(), self._provision(settings), self._migrate(settings))
        if self._plan.is_split:
            await self._start_parts()
        else:
            await self._start_services()
        self._note_servers()
        self._tell()
        self._watches += [asyncio.create_task(keep(part, self._tell), name=f"keep-{part.name}") for part in self._parts]
        if self._embedded:
            self._watches.append(asyncio.create_task(self._keep_servers(), name="keep-servers"))

    def _environment(self, nats_url: str, database_url: str, redis_url: str) -> dict[str, str]:
        given = {"NATS_URL": nats_url, "DATABASE_URL": database_url, "REDIS_URL": redis_url}
        secrets: dict[str, str] = {}
        if self._settings.node_env != "production":
            known = {"JWT_SECRET": self._settings.jwt_secret, "SEAL_KEYS": self._settings.seal_keys}
            secrets = ensure_secrets(self._data_dir, known)
        return {name: value for name, value in given.items() if value} | secrets

    def _refuse_taken_port(self) -> None:
        if self._settings.port == 0:
            return
        try:
            socket.create_server((self._settings.host, self._settings.port)).close()
        except OSError as error:
            raise StartFailed(
                f"port {self._settings.port} cannot be used ({error.strerror}): end the program that listens there, or choose "
                "another port, e.g. PORT=3001."
            ) from None

    async def _start_simulator(self) -> None:
        if self._settings.simulator_url:
            return
        part = Part("simulator", "simulator", data_dir=self._data_dir, env={})
        self._parts.append(part)
        self._tell.parts.append(part)
        await part.start()
        if part.place is not None:
            os.environ["SIMULATOR_URL"] = f"http://127.0.0.1:{part.place.port}/v1"
            # Started again, it must be where the llm-router looks for it.
            part.pin("--port", str(part.place.port))

    async def _provision(self, settings: Settings) -> None:
        try:
            async with asyncio.timeout(_PROVISION_S):
                await provision(settings.nats_url)
        except (TimeoutError, OSError) as error:
            raise StartFailed(f"NATS at {settings.nats_url} does not answer ({error}): check NATS_URL.") from None

    async def _migrate(self, settings: Settings) -> None:
        try:
            await migrate_all(settings)
        except OSError as error:
            raise StartFailed(f"PostgreSQL does not answer ({error}): check DATABASE_URL.") from None

    async def _start_services(self) -> None:
        telemetry.configure_logging("parley", level=self._settings.log_level, log_format=_log_format())
        self._services = make(list(SERVICES), only_one_health_port=True)
        for service in self._services:
            await service.start()
            self._tell.places[service.name.replace("_", "-")] = place_of(service)

    async def _start_parts(self) -> None:
        telemetry.configure_logging("parley", level=self._settings.log_level, log_format=_log_format())
        started: list[Awaitable[None]] = []
        for kind in SERVICES:
            for number, name in enumerate(self._plan.names(kind)):
                # The first gateway has the port that was asked for, the others take free ones.
                env = {"PORT": "0"} if kind == "gateway" and number else {}
                part = Part(name, kind, data_dir=self._data_dir, env=env)
                self._parts.append(part)
                started.append(part.start())
        await asyncio.gather(*started)
        for part in self._parts:
            if part.place is not None and part.name.startswith("gateway"):
                part.pin_env(PORT=str(part.place.port))
        self._tell.parts = list(self._parts)

    def _note_servers(self) -> None:
        for name in self._embedded:
            self._tell.places[name] = Place(pid=self._servers.pid(name))

    async def _keep_servers(self) -> None:
        while True:
            name = await self._servers.exited()
            log.error("server_ended", server=name)
            try:
                await self._servers.restart(name)
            except StartFailed as error:
                log.error("server_not_started", server=name, reason=str(error))  # noqa: TRY400 - the reason says it all
                await asyncio.sleep(1)
            else:
                self._note_servers()
                self._tell()

    @property
    def address(self) -> str:
        gateway = next(
            (part.place for part in self._parts if part.name.startswith("gateway")), self._tell.places.get("gateway")
        )
        host = "127.0.0.1" if self._settings.host == "0.0.0.0" else self._settings.host  # noqa: S104 - compared, not bound
        return f"http://{host}:{gateway.port if gateway else self._settings.port}"

    @property
    def data_dir(self) -> Path:
        return self._data_dir

    async def stop(self) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await asyncio.gather(*(service.stop() for service in self._services))
        await asyncio.gather(*(part.stop() for part in self._parts))
        await self._servers.stop()


def _log_format() -> str:
    return os.environ.get("LOG_FORMAT") or ("text" if os.isatty(1) else "json")


BANNER = """\
Parley is up at {address}

  Make an account, which gives you an access token (the first one is the administrator):
    curl {address}/user/register -H 'content-type: application/json' \\
      -d '{{"email": "you@example.org", "username": "You", "password": "correct horse 1"}}'
  Ask something, streamed:
    curl -N {address}/v1/chat/completions -H "authorization: Bearer $TOKEN" -H 'content-type: application/json' \\
      -d '{{"model": "simulator", "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}'

  The API: {address}/docs    Data, logs and secrets: {data_dir}    Stop: Ctrl-C
"""


async def up(settings: LauncherSettings, plan: Plan) -> None:
    """Run until SIGTERM or Ctrl-C; a second one ends at once. Raises what `Installation.start` raises."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    installation = Installation(settings, plan)
    starting = asyncio.create_task(installation.start(), name="start")
    waiting = asyncio.create_task(stopping.wait(), name="stop")
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            print(BANNER.format(address=installation.address, data_dir=installation.data_dir), flush=True)
            await waiting
            print("Parley is stopping.", flush=True)
    finally:
        for task in (starting, waiting):
            task.cancel()
        await asyncio.gather(starting, waiting, return_exceptions=True)
        await installation.stop()
