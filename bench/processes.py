"""Processes as the kernel sees them: whose CPU time, how much memory, on which core. Linux only, like the benchmark."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
_AHEAD = "-19"


@contextlib.contextmanager
def started_on(core: int) -> Iterator[None]:
    """What is started within runs on `core`, and so does all that it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def prefer(pids: Mapping[int, str]) -> None:
    """Ahead of whatever else the machine runs, where we may say so. For load and provider, whose delay would be the system's.

    Not for the system: a process it starts later, such as each of PostgreSQL's, would come behind those it has.
    """
    for pid in pids:
        with contextlib.suppress(OSError):
            (_PROC / str(pid) / "autogroup").write_text(_AHEAD)
        with contextlib.suppress(OSError):
            for thread in (_PROC / str(pid) / "task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), int(_AHEAD))


def _stat(pid: int) -> list[str] | None:
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def family(roots: Mapping[int, str]) -> dict[int, str]:
    """`roots` and all that descends from them, each under its nearest named ancestor's name."""
    parents = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            parents[int(entry.name)] = int(stat[1])
    named: dict[int, str] = {}
    for pid in parents:
        at = pid
        while at in parents and at not in roots:
            at = parents[at]
        if at in roots:
            named[pid] = roots[at]
    return named


def off_core(pids: Mapping[int, str], core: int) -> list[str]:
    """Those that could run on another core than `core`."""
    off = []
    for pid, name in pids.items():
        with contextlib.suppress(ProcessLookupError):
            if os.sched_getaffinity(pid) != {core}:
                off.append(f"{name} ({pid})")
    return off


def cpu_s(pids: Mapping[int, str]) -> dict[str, float]:
    """Seconds of CPU by name, ended and reaped children included."""
    spent: dict[str, float] = {}
    for pid, name in pids.items():
        if (stat := _stat(pid)) is not None:
            spent[name] = spent.get(name, 0.0) + sum(map(int, stat[11:15])) * _TICK_S
    return spent


def memory_mb(pids: Mapping[int, str]) -> dict[str, float]:
    """Proportional set size by name: pages that several processes share count once, so these can be added."""
    held: dict[str, float] = {}
    for pid, name in pids.items():
        with contextlib.suppress(OSError):
            for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    held[name] = held.get(name, 0.0) + int(line.split()[1]) / 1024
    return held


def rss_mb(pids: Mapping[int, str]) -> float:
    """The sum of all resident set sizes: shared pages count as often as they are shared."""
    page = os.sysconf("SC_PAGE_SIZE") / 2**20
    return sum(int(stat[21]) * page for pid in pids if (stat := _stat(pid)) is not None)


@dataclass(frozen=True, slots=True)
class Busy:
    """CPU time of the cores at one moment, ours or not."""

    at_s: float
    cores: Mapping[int, float]

    @classmethod
    def now(cls) -> "Busy":
        cores = {}
        for line in (_PROC / "stat").read_text().splitlines():
            name, *ticks = line.split()
            if name.startswith("cpu") and name != "cpu":
                user, nice, system, _idle, _wait, irq, softirq, *_ = map(int, ticks)
                cores[int(name[3:])] = (user + nice + system + irq + softirq) * _TICK_S
        return cls(time.monotonic(), cores)

    def share(self, before: "Busy", core: int) -> float:
        return (self.cores[core] - before.cores[core]) / (self.at_s - before.at_s)
