"""Gateway: the public API. Asks every service, says Generate for stateless turns, GatewayAlive and ConnectionsCounted.

Hears what auth revokes (FamilyRevoked, RightsChanged, ApiKeyRevoked, KeysChanged).
"""

import socket

import structlog
import uvicorn
from fastapi import FastAPI

from parley_contracts.ids import new_id
from parley_gateway.app import create_app
from parley_gateway.authenticate import Authenticator
from parley_gateway.edge import Edge
from parley_gateway.limits import Limits
from parley_gateway.model_configs import ModelConfigs
from parley_gateway.presence import Connections
from parley_gateway.revocations import RevocationList
from parley_gateway.settings import GatewaySettings
from parley_gateway.turn_stream import TurnStreams
from parley_runtime.bus import Bus
from parley_runtime.clock import Clock, SystemClock
from parley_runtime.health import serve_asgi
from parley_runtime.service import Service

log = structlog.get_logger()


class HttpServer:
    """The public port. Closing it lets open streams run for `drain_s`, then cuts them; clients hold a resume id."""

    name = "http"

    def __init__(self, app: FastAPI, settings: GatewaySettings) -> None:
        self._app = app
        self._settings = settings
        self._serving: tuple[uvicorn.Server, object] | None = None
        self.port = settings.port

    async def open(self) -> None:
        """Raises OSError when the port is taken."""
        listener = socket.create_server((self._settings.host, self._settings.port), backlog=2048)
        self.port = listener.getsockname()[1]
        server, task = await serve_asgi(
            self._app,
            listener,
            name="gateway-http",
            http="httptools",
            date_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=max(1, int(self._settings.drain_s)),
        )
        self._serving = (server, task)
        self._task = task

    async def check(self) -> None:
        if self._serving is None or not self._serving[0].started:
            raise ConnectionError("does not listen")

    async def close(self) -> None:
        if self._serving is not None:
            self._serving[0].should_exit = True
            await self._task


class GatewayService(Service):
    def __init__(self, settings: GatewaySettings, bus: Bus, clock: Clock | None = None) -> None:
        clock = clock or SystemClock()
        gateway_id = new_id()
        connections = Connections(bus, gateway_id, clock)
        revocations = RevocationList(bus, clock)
        revocations.listeners.append(lambda: connections.close_if(lambda principal: revocations.refusal(principal) is not None))
        streams = TurnStreams(bus, gateway_id, clock, beat_s=settings.sse_heartbeat_interval_ms / 1000)
        limits = Limits(settings, bus, clock)
        self.edge = Edge(
            gateway_id=gateway_id,
            settings=settings,
            bus=bus,
            clock=clock,
            authenticator=Authenticator(bus, clock, revocations),
            connections=connections,
            streams=streams,
            limits=limits,
            configs=ModelConfigs(bus, clock),
            readiness=lambda: self,
        )
        self.http = HttpServer(create_app(self.edge), settings)
        super().__init__(
            "gateway",
            bus,
            settings,
            owns=(streams, limits),
            serves=(self.http,),
            loops=(
                streams.say_alive,
                connections.tell_all,
                connections.tell_gone,
                revocations.keep_learning,
                limits.keep_released,
                limits.keep_looking,
            ),
        )
