"""Means: what all turns of a router share, and how long things may take."""

from dataclasses import dataclass

from parley_llm_router.claims import Claims
from parley_llm_router.failover import Pauses
from parley_llm_router.http_client import HttpClients
from parley_llm_router.publisher import Publisher
from parley_runtime.bus import Bus
from parley_runtime.clock import Clock
from parley_runtime.tasks import Tasks


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take, in seconds."""

    timeout_s: float
    max_idle_s: float
    request_timeout_s: float
    pauses: Pauses
    max_output_tokens: int


@dataclass(frozen=True, slots=True)
class Means:
    """What all turns of a router share."""

    bus: Bus
    claims: Claims
    publisher: Publisher
    clients: HttpClients
    clock: Clock
    limits: Limits
    tasks: Tasks
