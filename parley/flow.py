"""`parley flow`: who says what to whom, found in the code and written to docs/data-flow.md.

Who hears is asked of the services themselves: each is wired onto a bus that only records. Who says is read in their
source: whoever makes a message says it, since nothing else is done with one. So the page cannot be wrong by being old.
"""

import ast
import pkgutil
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import override

import parley_contracts
from parley.services import SERVICES, bus_name
from parley_contracts.message import Command, Durable, Event, Message, Query
from parley_contracts.streams import STREAMS, Stream
from parley_contracts.turns import TurnClaim, TurnCommitted, TurnDelta, TurnFinal
from parley_runtime.bus import Asks, DeadLetter, Taken
from parley_runtime.memory_bus import MemoryBus
from parley_runtime.memory_hub import MemoryHub
from parley_runtime.service import Service

M = TypeVar("M")
R = TypeVar("R")
E = TypeVar("E", bound=Event)
D = TypeVar("D", bound=Durable)

DEAD_LETTERS = "dead letters"
# Answered or read through the turn log, not by a registered handler: what such a call in a service's source means.
_LOG = (TurnClaim, TurnDelta, TurnFinal)
_READS: dict[str, tuple[type[Message], ...]] = {
    "Follower": (*_LOG, TurnCommitted),
    "read": _LOG,
    "last_control": (TurnClaim, TurnFinal),
    "watch_control": (TurnClaim, TurnFinal),
}
# Settings without which a service is not even wired; nothing is signed or sealed with them.
_FOR_WIRING: dict[str, dict[str, str]] = {
    "auth": {"jwt_secret": "only-wired-never-run-3f9c1d7e5b2a8640"},
    "llm-router": {"seal_keys": "k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="},
}


class RecordingBus(MemoryBus):
    """Writes down who hears what, and carries nothing."""

    def __init__(self, service: str) -> None:
        super().__init__(MemoryHub(), service)
        self.hears: list[str] = []

    @override
    def answer(self, kind: Asks[M, R], handler: Callable[[M], Awaitable[R]]) -> None:
        self.hears.append(getattr(kind, "__name__", str(kind)))

    @override
    def on(self, kind: type[E], handler: Callable[[E], Awaitable[None]]) -> None:
        self.hears.append(kind.__name__)

    @override
    def take(
        self, kind: type[D], handler: Callable[[D], Awaitable[Taken | None]], *, at_once: int = 16, keep_alive: bool = False
    ) -> None:
        self.hears.append(kind.__name__)

    @override
    def take_dead_letters(self, handler: Callable[[DeadLetter], Awaitable[None]]) -> None:
        self.hears.append(DEAD_LETTERS)


def wire(name: str) -> tuple[Service, RecordingBus]:
    """A service as it is run, but for its bus; no I/O happens."""
    bus = RecordingBus(bus_name(name))
    settings: Any = SERVICES[name].settings_class
    return SERVICES[name].service_class(settings(_env_file=None, **_FOR_WIRING.get(name, {})), bus), bus


def messages() -> list[type[Message]]:
    """Every class with a subject, in the order of subjects."""
    for module in pkgutil.walk_packages(parley_contracts.__path__, "parley_contracts."):
        import_module(module.name)
    return sorted(
        (kind for kind in _kinds(Message) if "subject" in kind.__dict__), key=lambda kind: (kind.subject, kind.__name__)
    )


def _kinds(kind: type[Message]) -> Iterator[type[Message]]:
    for heir in kind.__subclasses__():
        yield heir
        yield from _kinds(heir)


def said_and_read(package: str, makers: dict[str, str]) -> tuple[set[str], set[str]]:
    """The messages a package makes, and those it reads in the turn log. `makers`: function or class → message."""
    said: set[str] = set()
    read: set[str] = set()
    for tree in _trees(package):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name, owner = _called(node.func)
            if name in makers:
                said.add(makers[name])
            elif name in _READS and (name != "read" or owner == "turns"):
                read |= {kind.__name__ for kind in _READS[name]}
            elif name == "answer_one" and node.args:
                read.add(_called(node.args[0])[0])
    return said, read


def _called(node: ast.expr) -> tuple[str, str]:
    """`bus.turns.read` → (`read`, `turns`)."""
    match node:
        case ast.Name(id=name):
            return name, ""
        case ast.Attribute(value=owner, attr=name):
            return name, _called(owner)[0].removeprefix("_")
        case _:
            return "", ""


def _trees(package: str) -> Iterator[ast.Module]:
    folder = Path(import_module(package).__path__[0])
    for file in sorted(folder.rglob("*.py")):
        yield ast.parse(file.read_text())


def _makers(kinds: list[type[Message]]) -> dict[str, str]:
    """A message's class makes it, and so does a function of the contracts that returns one."""
    names = {kind.__name__ for kind in kinds}
    made = {name: name for name in names}
    for tree in _trees("parley_contracts"):
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name) and node.returns.id in names:
                made[node.name] = node.returns.id
    return made


def data_flow() -> str:
    """The page."""
    kinds = messages()
    makers = _makers(kinds)
    say: dict[str, list[str]] = defaultdict(list)
    hear: dict[str, list[str]] = defaultdict(list)
    for name, part in sorted(SERVICES.items()):
        said, read = said_and_read(part.package, makers)
        for message in said:
            say[message].append(name)
        for message in {*wire(name)[1].hears, *read}:
            hear[message].append(name)
    lines = [
        "# Data flow",
        "",
        "Every message on the bus, by its subject: who owns it, who says it, who hears it, how safely it is carried.",
        "Questions and commands are answered by one replica of their owner; an event is heard by every replica.",
        "",
        "| message | kind | subject | owner | said by | heard by | durability |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{kind.__name__}` | {_kind(kind)} | `{kind.subject}` | {_owner(kind)} | {_names(say[kind.__name__])} "
        f"| {_names(hear[kind.__name__])} | {_durability(kind)} |"
        for kind in kinds
    ]
    dead = _names(hear[DEAD_LETTERS])
    lines += ["", f"Commands that were delivered too often are dead letters, which {dead} hears: it ends their turns.", ""]
    lines += ["## Streams", "", "| stream | subjects | kept | in | when full |", "| --- | --- | --- | --- | --- |"]
    for spec in STREAMS:
        kept = "until taken, at most" if spec.retention == "workqueue" else ""
        full = {"new": "refuses new ones", "old": "drops the oldest"}[spec.discard]
        subjects = ", ".join(f"`{subject}`" for subject in spec.subjects)
        lines.append(f"| {spec.name} | {subjects} | {f'{kept} {_span(spec.max_age_s)}'.strip()} | {spec.storage} | {full} |")
    return "\n".join(lines) + "\n"


def _kind(kind: type[Message]) -> str:
    for base, word in ((Query, "query"), (Command, "command"), (Durable, "durable message"), (Event, "event")):
        if issubclass(kind, base):
            return word
    return "turn log"


def _owner(kind: type[Message]) -> str:
    first = kind.subject.partition(".")[0]
    return first.replace("_", "-") if first != "turn" else "the turn"


def _durability(kind: type[Message]) -> str:
    stream: Stream | None = getattr(kind, "stream", None)
    if stream is not None:
        return f"at least once ({stream})"
    if kind in _LOG:
        return f"stored ({Stream.TURNS})" + ("" if kind is TurnDelta else ", compare-and-set")
    return "at most once" if issubclass(kind, Event) else "answered or refused"


def _names(names: list[str]) -> str:
    return ", ".join(names) or "–"


def _span(seconds: float) -> str:
    for size, word in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} s"
