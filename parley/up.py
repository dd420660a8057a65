"""`parley up`: all of Parley on this machine. Servers, simulated provider, streams, schemas, six services; then a greeting.

Owns the order: what is needed starts first and stops last. The services run in this process, or with `--split` as one
child process a replica; they do not know which. What an earlier launcher left behind is cleared away first.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module

import uvloop

from parley.embedded import Addresses, EmbeddedServers
from parley.fleet import Children, Plan, Replica, ServicesFile
from parley.greeting import greeting
from parley.inside import Inside
from parley.run import read
from parley.secrets_file import MAKERS, missing_secrets
from parley.services import SERVICES
from parley.settings import SERVERS_SET_BY, LauncherSettings, value_of
from parley.supervise import StartFailed, free_port, is_free
from parley_runtime.settings import Settings
from parley_runtime.telemetry import configure_logging

FIRST_HEALTH_PORT = 9100
SERVER_PAUSE_S = (0.2, 5.0)
HTTP_PORT_FIELD, LISTEN_FIELD = "port", "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    split: bool = False
    verbose: bool = False
    replicas: Mapping[str, int] = field(default_factory=dict)
    """Service → how many; one of each otherwise."""

    def names(self, service: str) -> list[str]:
        count = self.replicas.get(service, 1)
        return [service] if count == 1 else [f"{service}-{number}" for number in range(1, count + 1)]


def up(options: Options) -> int:
    return uvloop.run(_until_stopped(options))


async def _until_stopped(options: Options) -> int:
    """Start, wait for a signal, stop in order. A second signal kills what is left."""
    installation = Installation(options)
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    running = asyncio.create_task(_run(installation, stopping), name="parley-up")

    def stop() -> None:
        if stopping.is_set():
            running.cancel()
        stopping.set()

    for kind in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(kind, stop)
    try:
        await running
    except asyncio.CancelledError:
        return 1
    return 0


async def _run(installation: "Installation", stopping: asyncio.Event) -> None:
    starting = asyncio.create_task(installation.start())
    waiting = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await stopping.wait()
    finally:
        for task in (starting, waiting):
            task.cancel()
        await asyncio.wait({starting, waiting})
        await installation.stop()
    if starting.done() and not starting.cancelled():
        starting.result()


class Installation:
    """Everything that one `parley up` runs."""

    def __init__(self, options: Options) -> None:
        """Raises Misconfigured or SecretsMissing: nothing is started with settings that cannot be."""
        self._options = options
        self.settings = read(LauncherSettings)
        self.data_dir = self.settings.parley_data_dir.absolute()
        self._filled = missing_secrets(
            self.data_dir,
            {name: value for name in MAKERS if (value := value_of(name))},
            is_production=self.settings.node_env == "production",
        )
        os.environ.update(self._filled)
        for part in SERVICES.values():
            read(part.settings_class)
        embedded = frozenset(name for name, setting in SERVERS_SET_BY.items() if not self.settings.is_given(setting))
        self._servers = EmbeddedServers(self.data_dir, only=embedded)
        self._services = ServicesFile(self.data_dir / "services.json")
        self._children: Children | None = None
        self._inside: Inside | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._public_port = 0

    async def start(self) -> None:
        """Raises StartFailed or OSError, and leaves `stop` to the caller."""
        importing = asyncio.create_task(asyncio.to_thread(_import_all, split=self._options.split))
        addresses = await self._servers.start()
        self._services.forget()
        self._note_servers()
        self._tasks.append(asyncio.create_task(self._keep_servers(), name="keep-servers"))
        self._fill(addresses)
        ports = self._ports()
        self._children = Children(self.data_dir / "logs", self._servers.run_file, self._services, dict(os.environ), self._say)
        await self._start_simulator()
        await importing
        await self._prepare()
        if self._options.split:
            await self._children.start([self._plan(name, service, ports) for name, service in self._names()])
        else:
            self._log_inside()
            self._inside = Inside(self._services, self._say)
            await self._inside.start([(name, service, ports[name]) for name, service in self._names()])
        self._services.open()
        self._greet()

    async def stop(self) -> None:
        """Gateways first, so that nobody new comes in; servers last. Also after half a start, and never for long."""
        try:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._inside is not None:
                await self._inside.stop()
            if self._children is not None:
                names = self._children.names
                gateways = [name for name in names if name.startswith("gateway")]
                others = [name for name in names if name not in {*gateways, "simulator"}]
                for group in (gateways, others, ["simulator"]):
                    await self._children.stop(group)
        finally:
            if self._children is not None:
                self._children.kill_now()
            with contextlib.suppress(OSError):
                self._services.forget()
            await self._servers.stop()

    # --- settings -------------------------------------------------------------------------------------------------------

    def _fill(self, addresses: Addresses) -> None:
        """What the services need and nobody set: the embedded servers' addresses. In the environment, like yours."""
        known = {
            "NATS_URL": addresses.nats_url,
            "DATABASE_URL": addresses.database_url,
            "REDIS_URL": addresses.redis_url,
            "S3_ENDPOINT_URL": addresses.s3_endpoint_url,
            "S3_ACCESS_KEY_ID": addresses.s3_access_key_id,
            "S3_SECRET_ACCESS_KEY": addresses.s3_secret_access_key,
            "S3_BUCKET": addresses.s3_bucket,
        }
        self._filled |= {name: value for name, value in known.items() if value}
        os.environ.update(self._filled)

    def _names(self) -> list[tuple[str, str]]:
        """(`gateway-1`, `gateway`), in starting order."""
        return [(name, service) for service in SERVICES for name in self._options.names(service)]

    def _ports(self) -> dict[str, Replica]:
        """A health port for each replica, and a public one for each gateway: PORT for the first; with PORT=0 any."""
        chosen: dict[str, Replica] = {}
        used: set[int] = set()

        def choose(wanted: int) -> int:
            port = wanted if wanted and wanted not in used and is_free(wanted) else free_port(but=frozenset(used))
            used.add(port)
            return port

        gateway = read(SERVICES["gateway"].settings_class)
        host, public = str(getattr(gateway, LISTEN_FIELD)), int(getattr(gateway, HTTP_PORT_FIELD))
        self._public_port = public
        if public:
            _must_be_free(host, public)
        for index, (name, service) in enumerate(self._names()):
            port = None
            if service == "gateway":
                number = self._options.names(service).index(name)
                port = choose(public + number if public else 0)
            chosen[name] = Replica(port=port, health_port=choose(FIRST_HEALTH_PORT + index if public else 0))
        return chosen

    # --- parts ----------------------------------------------------------------------------------------------------------

    async def _start_simulator(self) -> None:
        """As a child, unless SIMULATOR_URL names another."""
        if value_of("SIMULATOR_URL") or self._children is None:
            return
        run_file = self._servers.run_file
        last = run_file.port("simulator")
        port = last if last and is_free(last) else free_port(but=run_file.all_ports())
        plan = Plan(
            name="simulator",
            arguments=("simulator", "--port", str(port)),
            ready_path="/v1/models",
            replica=Replica(port=port),
        )
        await self._children.start([plan])
        os.environ["SIMULATOR_URL"] = self._filled["SIMULATOR_URL"] = f"http://127.0.0.1:{port}/v1"
        self._children.env = dict(os.environ)

    async def _prepare(self) -> None:
        from parley.migrate import migrate_all

        await migrate_all(Settings())

    def _plan(self, name: str, service: str, ports: Mapping[str, Replica]) -> Plan:
        is_wished = service == "gateway" and name == self._options.names(service)[0] and self._public_port
        return Plan(name=name, arguments=(service,), ready_path="/readyz", replica=ports[name], may_move=not is_wished)

    def _note_servers(self) -> None:
        for name in self._servers.names:
            self._services.replicas[name] = Replica(pid=self._servers.pid(name), port=self._servers.port(name))
        self._services.write()

    async def _keep_servers(self) -> None:
        """Start a server again when it ends, on the same port and data; the services find it by themselves."""
        while True:
            name = await self._servers.exited()
            self._say(f"{name} ended; it is started again. Its log: {self.data_dir / 'logs' / name}.log.1")
            pause_s, last_pause_s = SERVER_PAUSE_S
            while True:
                try:
                    await self._servers.restart(name)
                    break
                except StartFailed as error:
                    self._say(f"{error} It is tried again.")
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, last_pause_s)
            self._note_servers()

    # --- talk -----------------------------------------------------------------------------------------------------------

    def _log_inside(self) -> None:
        """On a terminal a person reads: what is wrong, as text. Elsewhere a machine: everything, as JSON."""
        level, log_format = self.settings.log_level, self.settings.log_format
        if sys.stdout.isatty():
            log_format = log_format if self.settings.is_given("log_format") else "text"
            quiet = not (self._options.verbose or self.settings.is_given("log_level"))
            level = "warning" if quiet else level
        configure_logging("parley", level=level, log_format=log_format)

    def _say(self, line: str) -> None:
        print(f"parley: {line}", file=sys.stderr, flush=True)

    def _greet(self) -> None:
        gateways = [replica.port for name, replica in self._services.replicas.items() if name.startswith("gateway")]
        print(
            greeting(
                ports=[port for port in gateways if port],
                data_dir=self.data_dir,
                is_split=self._options.split,
                is_simulated=not (value_of("OPENAI_BASE_URL") or value_of("OPENAI_API_KEY")),
                models=_models(),
                replicas=self._services.replicas if self._options.verbose else {},
            ),
            flush=True,
        )


def _must_be_free(host: str, port: int) -> None:
    """Asked before anything is started on it, so that the way out is the only line one reads."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartFailed(
                f"port {port} is taken by another program: end that program, or choose another port, as in PORT={port + 1}."
            ) from None
        raise StartFailed(f"HOST={host} PORT={port} cannot be listened on: {error.strerror}.") from None


def _import_all(*, split: bool) -> None:
    """While the servers start. In one process all six are needed; with --split only what migrates."""
    import_module("parley.migrate")
    for part in SERVICES.values():
        if not split or part.package != "parley_gateway":  # it has no schema
            _ = part.service_class


def _models() -> str:
    """What one can ask, for the greeting; the llm-router has the last word."""
    if value_of("OPENAI_BASE_URL"):
        return f"{value_of('OPENAI_MODELS')} from {value_of('OPENAI_BASE_URL')}; simulator"
    if value_of("OPENAI_API_KEY"):
        return f"{value_of('OPENAI_MODELS') or 'those of OpenAI'}; simulator"
    return "a simulated one, which says so; set OPENAI_API_KEY or OPENAI_BASE_URL for a real one"
