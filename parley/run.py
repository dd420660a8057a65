"""Running services in this process: settings read, bus connected, logs configured; until SIGTERM."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from parley import simulator
from parley.services import SERVICES
from parley_runtime import telemetry
from parley_runtime.database import migrate
from parley_runtime.nats_bus import NatsBus
from parley_runtime.service import Service, run
from parley_runtime.settings import Settings


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a running part is: told to the launcher, and to whoever reads `services.json`."""

    pid: int
    port: int | None = None
    health_port: int | None = None


def make(names: Sequence[str], *, only_one_health_port: bool = False) -> list[Service]:
    """Wire the named services, each with a connection of its own. Raises pydantic's ValidationError."""
    services = []
    for name in names:
        settings = SERVICES[name].make_settings()
        if only_one_health_port and len(names) > 1:
            settings = settings.model_copy(update={"health_port": 0})
        bus = NatsBus(
            name.replace("-", "_"),
            url=settings.nats_url,
            inject=telemetry.inject,
            extract=telemetry.extract,
            on_closed=_give_up,
        )
        services.append(SERVICES[name].make(settings, bus))
    return services


def _give_up() -> None:
    # The bus closed for good (N3): nothing this process says reaches anyone, so whoever supervises it starts another.
    sys.stderr.write("parley: the connection to NATS is closed for good; this process ends\n")
    os.kill(os.getpid(), signal.SIGTERM)


def place_of(service: Service) -> Place:
    http = getattr(service, "http", None)
    return Place(pid=os.getpid(), port=http.port if http is not None else None, health_port=service.health.port)


async def run_service(name: str, *, state_file: Path | None = None, with_launcher: bool = False) -> None:
    """`parley run <service>`. `with_launcher`: end when standard input does, since the launcher holds its other side."""
    settings = SERVICES[name].make_settings()
    telemetry.configure_logging(name, level=settings.log_level, log_format=settings.log_format)
    [service] = make([name])
    if with_launcher:
        _end_with_launcher(lambda: os.kill(os.getpid(), signal.SIGTERM))
    await run([service], on_ready=lambda: _tell(state_file, place_of(service)))


async def run_simulator(port: int, *, state_file: Path | None = None, with_launcher: bool = False) -> None:
    """`parley run simulator`: the provider that says it is none."""
    loop = asyncio.get_running_loop()
    serving = asyncio.ensure_future(
        simulator.serve("127.0.0.1", port, listening=lambda at: _tell(state_file, Place(pid=os.getpid(), port=at)))
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, serving.cancel)
    if with_launcher:
        _end_with_launcher(serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def _tell(state_file: Path | None, place: Place) -> None:
    if state_file is not None:
        new = state_file.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(place))
        new.replace(state_file)


def _end_with_launcher(end: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()

    def read() -> None:
        if not os.read(0, 1024):
            loop.remove_reader(0)
            end()

    loop.add_reader(0, read)


async def migrate_all(settings: Settings) -> None:
    """Bring every service's schema up to date."""
    for kind in SERVICES.values():
        if kind.schema is not None:
            await migrate(settings.database_url.get_secret_value(), kind.package, kind.schema)
