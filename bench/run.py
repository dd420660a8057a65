"""`make bench`: Parley beside a direct call and LiteLLM, in one run, each alone on one core. Writes bench/results/.

python -m bench.run            everything, three rounds, under 15 minutes
python -m bench.run --quick    one round of the essentials, under 90 seconds
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import uvloop

from bench import scenarios
from bench.processes import prefer
from bench.report import Run, markdown, now
from bench.scenarios import FirstToken, Sample
from bench.systems import CACHE, LOAD_CORE, ROOT, Missing, System, fake_provider, litellm, parley

Found = Sample | FirstToken
Step = Callable[[System, System], Awaitable[Found]]


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of everything one run does."""

    kind: str
    rounds: int
    requests: int
    window_s: float
    levels: tuple[int, ...]
    peer_levels: tuple[int, ...]
    direct_levels: tuple[int, ...]
    stored_levels: tuple[int, ...]
    idle_streams: tuple[int, ...]
    with_split: bool
    at_most_s: float


FULL = Extent(
    kind="full",
    rounds=3,
    requests=200,
    window_s=4.0,
    levels=(1, 20, 50, 100, 200, 250, 300, 500),
    peer_levels=(20, 50, 100),
    direct_levels=(1, 100, 500),
    stored_levels=(100,),
    idle_streams=(1000,),
    with_split=True,
    at_most_s=14 * 60,
)
QUICK = Extent(
    kind="quick",
    rounds=1,
    requests=40,
    window_s=1.5,
    levels=(20, 100),
    peer_levels=(20,),
    direct_levels=(),
    stored_levels=(),
    idle_streams=(),
    with_split=False,
    at_most_s=80,
)


@dataclass(frozen=True, slots=True)
class Planned:
    """A system to start, what is measured of it once, and what in every round; `rounds`: not as many as usual."""

    starting: AbstractAsyncContextManager[System]
    once: list[Step]
    steps: list[Step]
    rounds: int | None = None


class Bench:
    """One run: every step of every system, as many rounds as the extent says, as long as time is left."""

    def __init__(self, extent: Extent) -> None:
        self.run = Run(extent.kind, now())
        self._extent = extent
        self._began = time.monotonic()

    def _is_late(self, what: str) -> bool:
        if time.monotonic() - self._began < self._extent.at_most_s:
            return False
        self.run.notes.append(f"the time was over: left out {what}")
        return True

    async def _do(self, system: System, provider: System, step: Step) -> None:
        found = await step(system, provider)
        if isinstance(found, Sample):
            self.run.samples.append(found)
            said = f"{found.clients:5} clients {found.tokens_per_s:9,.0f} tokens/s {found.answers_per_s:7,.0f} answers/s"
            said += f"  p99 {found.delay_ms.get('p99', 0):7.1f} ms  starved {found.starved}"
            said += f"  CPU {found.cpu_ms_per_1000_tokens:.0f} ms/1,000 tokens"
        else:
            self.run.firsts.append(found)
            said = f"first token: {found.added_p50:.2f} ms more than direct, p95 {found.added_p95:.2f}"
        errors = f"  {found.errors}" if found.errors else ""
        print(f"{time.monotonic() - self._began:5.0f} s  {found.system:14} {found.scenario:14} {said}{errors}", flush=True)

    async def measure(
        self, system: System, provider: System, once: list[Step], steps: list[Step], *, rounds: int | None = None
    ) -> None:
        self.run.versions[system.name] = system.version
        for step in once:
            await self._do(system, provider, step)
        for number in range(rounds or self._extent.rounds):
            if self._is_late(f"{system.name}, round {number + 1}"):
                return
            for step in steps:
                await self._do(system, provider, step)

    async def other(self, provider: System, name: str, what: Planned) -> None:
        if self._is_late(name):
            return
        try:
            async with what.starting as system:
                await self.measure(system, provider, what.once, what.steps, rounds=what.rounds)
        except (Missing, OSError) as error:  # not there, or gone in the middle: the others are measured all the same
            self.run.missing[name] = str(error)
            print(f"missing: {name}: {error}", flush=True)

    async def everything(self, *, with_peers: bool) -> None:
        extent, window_s = self._extent, self._extent.window_s

        def paced(*levels: int, is_stored: bool = False) -> list[Step]:
            return [partial(scenarios.paced, clients=n, window_s=window_s, is_stored=is_stored) for n in levels]

        first = partial(scenarios.first_token, requests=extent.requests)
        fast: list[Step] = [partial(scenarios.unpaced, window_s=window_s), partial(scenarios.whole, window_s=window_s)]
        idle: Step = partial(scenarios.idle, streams=0, window_s=2.0)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
        async with fake_provider() as provider:
            await self.measure(provider, provider, [], [*paced(*extent.direct_levels), *fast], rounds=1)
            stored: list[Step] = [partial(first, is_stored=True), *paced(*extent.stored_levels, is_stored=True)]
            asleep: list[Step] = [partial(scenarios.idle, streams=n, window_s=2.0) for n in extent.idle_streams]
            mine = Planned(parley(provider.port), [idle], [first, *stored, *fast, *paced(*extent.levels)])
            await self.other(provider, "Parley", mine)
            if extent.with_split:
                starting = parley(provider.port, is_split=True)
                apart = Planned(starting, [idle, *asleep], [first, *stored, *fast, *paced(100, 200)], rounds=1)
                await self.other(provider, "Parley, split", apart)
            if with_peers:
                starting = litellm(provider.port, may_install=extent is FULL)
                await self.other(
                    provider,
                    "LiteLLM proxy",
                    Planned(starting, [idle], [first, *(fast if extent is FULL else fast[1:]), *paced(*extent.peer_levels)]),
                )

    def write(self) -> Path:
        CACHE.mkdir(parents=True, exist_ok=True)
        name = f"{self.run.began:%Y-%m-%d}-{self.run.kind}"
        raw = {"samples": [asdict(s) for s in self.run.samples], "firsts": [asdict(f) for f in self.run.firsts]}
        (CACHE / f"{name}.json").write_text(json.dumps(raw, indent=1))
        path = ROOT / "bench" / "results" / f"{name}.md"
        path.write_text(markdown(self.run))
        return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure Parley beside a direct call and LiteLLM.")
    parser.add_argument("--quick", action="store_true", help="one round of the essentials, under 90 seconds")
    parser.add_argument("--no-peers", action="store_true", help="leave LiteLLM out")
    parser.add_argument("--commit", default="", help="what PYTHONPATH points to, where that is not this checkout")
    asked = parser.parse_args()
    if not sys.platform.startswith("linux") or len(os.sched_getaffinity(0)) < 2:  # noqa: PLR2004
        sys.exit("The benchmark needs Linux and two cores: one for the system, one for load and provider.")
    CACHE.mkdir(parents=True, exist_ok=True)
    os.sched_setaffinity(0, {LOAD_CORE})
    prefer({os.getpid(): "load"})
    bench = Bench(QUICK if asked.quick else FULL)
    bench.run.commit = asked.commit
    try:
        uvloop.run(bench.everything(with_peers=not asked.no_peers))
    finally:
        if bench.run.samples:
            print(f"\n{bench.write().relative_to(ROOT)}")


if __name__ == "__main__":
    main()
