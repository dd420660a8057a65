"""`parley run <service>`: one service in this process, as containers run it and as `parley up --split` does."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable
from typing import TypeVar

import uvloop
from pydantic import ValidationError

from parley.complaints import FAILED, Misconfigured, from_validation, until_reachable
from parley.services import SERVICES, bus_name
from parley.supervise import StartFailed
from parley_runtime import service as lives
from parley_runtime.nats_bus import NatsBus
from parley_runtime.service import Service
from parley_runtime.settings import Settings
from parley_runtime.telemetry import configure_logging, extract, inject

S = TypeVar("S", bound=Settings)

NATS_S = 10.0


def read(kind: type[S], **chosen: object) -> S:
    """Settings from the environment and .env; `chosen` go first. Raises Misconfigured."""
    try:
        return kind(**chosen)  # type: ignore[arg-type]  # fields of a class known at run time only
    except ValidationError as error:
        raise from_validation(error, kind) from None


def bus_of(name: str, settings: Settings, **more: object) -> NatsBus:
    """The bus of one replica, named in the server's lists for where it runs."""
    instance = f"{socket.gethostname()}-{os.getpid()}"
    return NatsBus(
        bus_name(name),
        url=settings.nats_url,
        instance=instance,
        inject=inject,
        extract=extract,
        **more,  # type: ignore[arg-type]
    )


def build(name: str, settings: Settings, bus: NatsBus) -> Service:
    """Wire a service. Raises Misconfigured for what its parts find wrong in the settings."""
    try:
        return SERVICES[name].service_class(settings, bus)
    except ValueError as error:
        raise Misconfigured(str(error)) from error


def run_service(name: str, *, with_launcher: bool = False) -> int:
    """Until SIGTERM. Ends with 1 when its connection to NATS is closed for good, so that its supervisor starts it again."""
    settings = read(SERVICES[name].settings_class)
    configure_logging(bus_name(name), level=settings.log_level, log_format=settings.log_format)
    return uvloop.run(_run(name, settings, with_launcher=with_launcher))


async def _run(name: str, settings: Settings, *, with_launcher: bool) -> int:
    status = 0
    if with_launcher:
        end_with_launcher(lambda: signal.raise_signal(signal.SIGTERM))

    def end() -> None:
        nonlocal status
        status = FAILED
        signal.raise_signal(signal.SIGTERM)

    await until_reachable(settings.nats_url, "NATS", "NATS_URL", within_s=NATS_S)
    service = build(name, settings, bus_of(name, settings, on_closed=end))
    try:
        await lives.run([service])
    except OSError as error:
        raise taken(service, settings, error) from error
    return status


def taken(service: Service, settings: Settings, error: OSError) -> StartFailed:
    """A port that cannot be listened on, as a line that names the way out."""
    port = getattr(settings, "port", None)
    if error.errno != errno.EADDRINUSE:
        return StartFailed(f"{service.name} did not start: {error}")
    health = f"HEALTH_PORT={settings.health_port}"
    wrong = health if port is None else f"PORT={port} or {health}"
    return StartFailed(f"{service.name} did not start: {wrong} is taken by another program; choose another port.")


def run_simulator(host: str, port: int, *, with_launcher: bool = False) -> int:
    """The simulated provider, which shares nothing with the services but this command."""
    from parley import simulator

    def say(actual: int) -> None:
        print(f"the simulated provider listens on http://{host}:{actual}/v1", flush=True)

    async def serve() -> None:
        serving = asyncio.ensure_future(simulator.serve(host, port, listening=say))
        for kind in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(kind, serving.cancel)
        if with_launcher:
            end_with_launcher(serving.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await serving

    try:
        uvloop.run(serve())
    except OSError as error:
        raise StartFailed(f"the simulator cannot listen on {host}:{port}: {error.strerror}; choose another --port.") from None
    return 0


def end_with_launcher(end: Callable[[], object]) -> None:
    """Call `end` when standard input ends: the launcher holds its other side, and lets go even by kill -9."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        if not os.read(0, 1024):
            loop.remove_reader(0)
            end()

    loop.add_reader(0, read)
