"""What the simulator says and when it breaks: one call's script, read from the model's name and the prompt. Pure.

A directive in the last user message (`[sim tokens=200 delay_ms=20 cut_after=7 key=abc]`) is obeyed by every model except
`simulator/fail-<status>`, `simulator/stall` and `simulator/cut-<k>`, which take only its `key`. Positions count content
deltas: `cut_after=7` breaks the connection when seven have been sent.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from typing import Any, Final, Literal, NamedTuple

MODELS: Final = (
    "simulator",
    "simulator/slow",
    "simulator/stall",
    "simulator/fail-429",
    "simulator/fail-500",
    "simulator/cut-5",
)
FILLER: Final = (
    "The same question always gets the same answer. ",
    "No tokens were bought to write this sentence. ",
    "Add a key of a real provider to hear a real one. ",
    "Every word you read was counted by a meter. ",
    "It streams, fails and stalls exactly as it is told. ",
)


class BadRequest(Exception):
    """The request cannot be read; the text is the answer's message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    tokens: int | None = None  # content deltas; None: the natural answer
    reasoning: int = 0
    tool: str = ""  # one name, or several with commas: parallel calls
    mark: bool = False
    seed: str = ""
    announce: bool = False  # the first numbered delta is "[simulated] "
    endless: bool = False
    delay_ms: float = 0
    first_delay_ms: float = 0
    stall_after: int | None = None
    cut_after: int | None = None
    error_after: int | None = None
    error: int | None = None
    bad_json_after: int | None = None
    bad_utf8_after: int | None = None
    fail_first: str = ""
    retry_after: int | None = None
    no_finish: bool = False
    no_done: bool = False
    no_usage: bool = False
    key: str | None = None


DIRECTIVE: Final = re.compile(r"\[sim((?:\s+\w+=[^\s\]]+)+)\s*\]")
FLAGS: Final = frozenset({"mark", "endless", "no_finish", "no_done", "no_usage"})
WORDS: Final = frozenset({"tool", "seed", "key", "fail_first"})
DELAYS: Final = frozenset({"delay_ms", "first_delay_ms"})
NUMBERS: Final = frozenset(Script.__dataclass_fields__) - FLAGS - WORDS - DELAYS - {"announce"}


def directive(prompt: str) -> dict[str, Any]:
    """The settings in the prompt's directive; an unknown or unreadable one is refused, since a typo would test nothing."""
    found = DIRECTIVE.search(prompt)
    settings: dict[str, Any] = {}
    for setting in found[1].split() if found else ():
        name, value = setting.split("=", 1)
        try:
            if name in FLAGS:
                settings[name] = bool(int(value))
            elif name in WORDS:
                settings[name] = value
            elif name in DELAYS:
                settings[name] = float(value)
            elif name in NUMBERS:
                settings[name] = int(value)
            else:
                raise BadRequest(f"the simulator knows no directive {name!r}")
            if name == "fail_first":
                _, _ = map(int, value.split(":"))
        except ValueError as error:
            raise BadRequest(f"the simulator cannot read the directive {setting!r}") from error
    return settings


def script_for(model: str, prompt: str, *, after_tool: bool) -> Script:
    settings = directive(prompt)
    if after_tool:  # the tool has answered: a second call of it would go round for ever
        settings.pop("tool", None)
    if "tool" in settings:
        settings.setdefault("tokens", 0)
    key = {name: value for name, value in settings.items() if name == "key"}
    if refused := re.fullmatch(r"simulator/fail-([45]\d\d)", model):
        return Script(error=int(refused[1]), **key)
    if cut := re.fullmatch(r"simulator/cut-(\d+)", model):
        return Script(tokens=int(cut[1]) + 1, cut_after=int(cut[1]), announce=True, **key)
    if model == "simulator/stall":
        return Script(stall_after=0, **key)
    if model == "simulator/slow":
        return replace(Script(tokens=600, delay_ms=100, announce="tokens" not in settings), **settings)
    if model.startswith("simulator/"):
        return Script(error=404, **key)
    return replace(Script(), **settings)


class Step(NamedTuple):
    kind: Literal["reasoning", "content", "tool", "arguments", "stall", "cut", "error", "garbage", "finish"]
    text: str = ""
    nth: int = 0  # of the tool calls


DELTAS: Final = frozenset({"reasoning", "content", "tool", "arguments"})


def content(script: Script, call_id: int, prompt: str) -> Iterator[str]:
    """The content deltas: numbered words where a script counts them, otherwise an answer that says what it is."""
    numbered = script.endless or script.tokens is not None
    if numbered:
        suffix = f".{script.seed} " if script.seed else " "
        deltas: Iterator[str] = (f"word{n}{suffix}" for n in count(1))
        if script.mark or script.announce:
            deltas = chain((f"<call-{call_id}> " if script.mark else "[simulated] ",), islice(deltas, 1, None))
        return deltas if script.endless else islice(deltas, script.tokens)
    said = DIRECTIVE.sub("", prompt).strip()[:400]
    start = zlib.crc32(f"{prompt}{script.seed}".encode(errors="replace"))
    filler = "".join(FILLER[(start + n) % len(FILLER)] for n in range(3))
    text = f"[simulated] You said: {said or 'nothing'}\n\nThis is a simulator, not a language model. {filler}"
    return chain((f"<call-{call_id}> ",) if script.mark else (), re.findall(r"\s*\S{1,16}|\s+$", text))


def said(script: Script, call_id: int, prompt: str) -> Iterator[Step]:
    for n in range(script.reasoning):
        yield Step("reasoning", f"think{n + 1} ")
    deltas = content(script, call_id, prompt)
    for position in count():
        if position == script.bad_json_after:
            yield Step("garbage", 'data: {"choices": [{"delta": {"content": "bro\n\n')
        if position == script.bad_utf8_after:
            yield Step("garbage", 'data: {"choices": [{"index": 0, "delta": {"content": "\udcff\udcfe"}}]}\n\n')
        if position == script.stall_after:
            yield Step("stall")
        if position == script.error_after:
            yield Step("error")
        if position == script.cut_after:
            yield Step("cut")
        delta = next(deltas, None)
        if delta is None:
            break
        yield Step("content", delta)
    for index, name in enumerate(filter(None, script.tool.split(","))):
        yield Step("tool", name, index)
        for fragment in ('{"ci', 'ty": "Pa', 'ris"}'):
            yield Step("arguments", fragment, index)


def plan(script: Script, call_id: int, prompt: str, limit: int | None) -> Iterator[Step]:
    """All that happens in one call, in order; `limit` is the request's `max_tokens`."""
    generated = 0
    for step in said(script, call_id, prompt):
        if step.kind in DELTAS:
            if generated == limit:
                yield Step("finish", "length")
                return
            generated += 1
        yield step
    yield Step("finish", "tool_calls" if script.tool else "stop")
