"""What is measured: one stream at a time, paced streams, streams as fast as they go, whole answers, idle."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from typing_extensions import override

from bench.load import Clients, Pairs, Watch, Work, one_at_a_time
from bench.processes import Busy, cpu_s, memory_mb, off_core, rss_mb
from bench.systems import LOAD_CORE, SYSTEM_CORE, System, get, open_sessions

PACED_TOKENS, PACED_MS = 100, 20
IDLE_MS = 8_000
_SETTLED_S = 8.0


@dataclass(slots=True)
class Sample:
    """One measurement: so many clients for a few seconds."""

    system: str
    scenario: str
    clients: int
    window_s: float
    tokens_per_s: float
    offered_per_s: float
    answers_per_s: float
    delay_ms: dict[str, float]
    first_ms: dict[str, float]
    starved: int
    errors: dict[str, int]
    cpu_s: dict[str, float]
    load_core_busy: float
    foreign: float
    memory_mb: dict[str, float] = field(default_factory=dict)
    rss_mb: float = 0.0

    @property
    def cpu_total_s(self) -> float:
        return sum(self.cpu_s.values())

    @property
    def cpu_ms_per_1000_tokens(self) -> float:
        tokens = self.tokens_per_s * self.window_s
        return self.cpu_total_s * 1e6 / tokens if tokens else 0.0

    @property
    def cpu_ms_per_answer(self) -> float:
        answers = self.answers_per_s * self.window_s
        return self.cpu_total_s * 1e3 / answers if answers else 0.0


@dataclass(slots=True)
class FirstToken:
    """One stream at a time: what the proxy adds to the time to the first token, in ms, pair by pair."""

    system: str
    scenario: str
    requests: int
    direct_p50: float
    added_p50: float
    added_p95: float
    there_p50: float
    back_p50: float
    errors: dict[str, int]


def percentiles(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    last = len(ordered) - 1
    return {name: ordered[round(last * at)] / scale for name, at in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1))}


class SystemWatch(Watch):
    """Reads the processes, the provider's meter and the cores as the window opens and closes."""

    def __init__(self, system: System, provider: System, *, with_memory: bool) -> None:
        self._system = system
        self._provider = provider
        self._with_memory = with_memory
        self.cpu: dict[str, float] = {}
        self.memory: dict[str, float] = {}
        self.rss = self.load_core = self.foreign = self.sent = 0.0

    @override
    async def begin(self) -> None:
        pids = self._pids = {} if self._system is self._provider else self._system.pids()
        if off := off_core(pids, SYSTEM_CORE):
            raise RuntimeError(f"not on core {SYSTEM_CORE} alone: {', '.join(off)}")
        self._sent = (await self._meter())["tokens"]
        self._busy = Busy.now()
        self._load_cpu = self._load_s()
        self._cpu = cpu_s(pids)

    @override
    async def end(self) -> None:
        spent = cpu_s(self._system.pids() if self._pids else {})
        busy = Busy.now()
        self.cpu = {name: used - self._cpu.get(name, 0.0) for name, used in spent.items()}
        lasted = busy.at_s - self._busy.at_s
        self.load_core = busy.share(self._busy, LOAD_CORE)
        ours = self._load_s() - self._load_cpu + sum(self.cpu.values())
        everyone = sum(busy.share(self._busy, core) for core in (SYSTEM_CORE, LOAD_CORE))
        self.foreign = max(0.0, everyone - ours / lasted)
        self.sent = (await self._meter())["tokens"] - self._sent
        if self._with_memory:
            self.memory, self.rss = memory_mb(self._pids), rss_mb(self._pids)

    async def _meter(self) -> Any:
        return await asyncio.to_thread(get, self._provider.port, "/stats")

    def _load_s(self) -> float:
        return time.process_time() + sum(cpu_s(self._provider.roots).values())


async def measure(
    system: System, provider: System, scenario: str, work: Work, clients: int, *, ramp_s: float, window_s: float
) -> Sample:
    watch = SystemWatch(system, provider, with_memory=system is not provider)
    load = Clients(work, clients)
    lasted = await load.run(ramp_s=ramp_s, settle_s=1.0, window_s=window_s, watch=watch)
    window = load.window
    await settled(system, provider)
    offered = clients * 1000 / work.every_ms if work.every_ms > 0 else watch.sent / lasted
    return Sample(
        system=system.name,
        scenario=scenario,
        clients=clients,
        window_s=lasted,
        tokens_per_s=len(window.delays_ns) / lasted,
        offered_per_s=offered,
        answers_per_s=window.answered / lasted,
        delay_ms=percentiles(window.delays_ns, 1e6),
        first_ms=percentiles(window.first_ns, 1e6),
        starved=clients - len(window.heard),
        errors=dict(window.errors),
        cpu_s=watch.cpu,
        load_core_busy=watch.load_core,
        foreign=watch.foreign,
        memory_mb=watch.memory,
        rss_mb=watch.rss,
    )


async def settled(system: System, provider: System) -> None:
    """Wait until what was asked is over, at the provider and in the system; not for ever."""
    deadline = time.monotonic() + _SETTLED_S
    while time.monotonic() < deadline:
        before = sum(cpu_s(system.pids()).values())
        await asyncio.sleep(0.3)
        used = sum(cpu_s(system.pids()).values()) - before
        meter = await asyncio.to_thread(get, provider.port, "/stats")
        if meter["open"] == 0 and used <= 0.04:  # noqa: PLR2004 - a few clock ticks: idle, heartbeats apart
            return


async def first_token(system: System, provider: System, requests: int, *, is_stored: bool = False) -> FirstToken:
    sessions = await asyncio.to_thread(open_sessions, system, requests // 10 + 3) if is_stored else ()
    direct, proxied = provider.work(3, 0), system.work(3, 0, sessions=sessions)
    pairs: Pairs = await one_at_a_time(direct, proxied, requests)
    added = percentiles([there - here for here, there in zip(pairs.direct, pairs.proxied, strict=True)])
    return FirstToken(
        system=system.name,
        scenario="stored" if is_stored else "stateless",
        requests=len(pairs.direct),
        direct_p50=statistics.median(pairs.direct or [0.0]),
        added_p50=added.get("p50", 0.0),
        added_p95=added.get("p95", 0.0),
        there_p50=statistics.median(pairs.there or [0.0]),
        back_p50=statistics.median(pairs.back or [0.0]),
        errors=dict(pairs.errors),
    )


async def paced(system: System, provider: System, clients: int, window_s: float, *, is_stored: bool = False) -> Sample:
    """Streams of 100 tokens, 20 ms apart; begun evenly over the two seconds that a stream lasts."""
    sessions = await asyncio.to_thread(open_sessions, system, clients) if is_stored else ()
    work = replace(system.work(PACED_TOKENS, PACED_MS, sessions=sessions), clients=clients)
    scenario = "paced, stored" if is_stored else "paced"
    return await measure(system, provider, scenario, work, clients, ramp_s=2.0, window_s=window_s)


async def unpaced(system: System, provider: System, window_s: float) -> Sample:
    return await measure(system, provider, "unpaced", system.work(200, 0), 32, ramp_s=0.5, window_s=window_s)


async def whole(system: System, provider: System, window_s: float) -> Sample:
    """Short answers without streaming: eight tokens, which the provider says in one go."""
    work = system.work(8, -1, is_streamed=False)
    return await measure(system, provider, "non-streaming", work, 32, ramp_s=0.5, window_s=window_s)


async def idle(system: System, provider: System, streams: int, window_s: float) -> Sample:
    """What it costs to be there, with so many streams open that say nothing."""
    if streams:
        work = system.work(2, IDLE_MS)
        return await measure(system, provider, "idle", work, streams, ramp_s=2.0 + streams / 500, window_s=window_s)
    watch = SystemWatch(system, provider, with_memory=True)
    await watch.begin()
    await asyncio.sleep(window_s)
    await watch.end()
    return Sample(
        system=system.name,
        scenario="idle",
        clients=0,
        window_s=window_s,
        tokens_per_s=0,
        offered_per_s=0,
        answers_per_s=0,
        delay_ms={},
        first_ms={},
        starved=0,
        errors={},
        cpu_s=watch.cpu,
        load_core_busy=watch.load_core,
        foreign=watch.foreign,
        memory_mb=watch.memory,
        rss_mb=watch.rss,
    )
