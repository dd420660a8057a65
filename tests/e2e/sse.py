"""A client as careful clients are: reads server-sent events, remembers the last id, resumes where it was cut."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One event: its JSON, its id when it has one, its raw text."""

    data: dict[str, Any]
    id: str | None
    raw: str


async def sse_events(response: httpx.Response) -> AsyncIterator[SseEvent | str]:
    """Events of a response; comments come as strings (`: ping`)."""
    pending = ""
    async for chunk in response.aiter_text():
        pending += chunk
        while "\n\n" in pending:
            block, pending = pending.split("\n\n", 1)
            lines = block.split("\n")
            data = [line[6:] for line in lines if line.startswith("data: ")]
            ids = [line[4:] for line in lines if line.startswith("id: ")]
            if data and data[0] == "[DONE]":
                yield SseEvent({"type": "[DONE]"}, None, block)
            elif data:
                yield SseEvent(json.loads(data[0]), ids[-1] if ids else None, block)
            else:
                for line in lines:
                    if line.startswith(":"):
                        yield line


@dataclass
class Reader:
    """What a client of the S0 dialect shows, by its reset and snapshot rules."""

    text: str = ""
    last_id: str | None = None
    resets: int = 0
    turn_id: str | None = None
    session_id: str | None = None
    ended: dict[str, Any] | None = None
    kinds: list[str] = field(default_factory=list)

    def show(self, event: SseEvent) -> None:
        kind = event.data["type"]
        self.kinds.append(kind)
        if event.id is not None:
            self.last_id = event.id
        match kind:
            case "start":
                self.turn_id = event.data["turnId"]
                self.session_id = event.data["sessionId"]
            case "content":
                self.text += event.data["content"]
            case "reset":
                self.text = ""
                self.resets += 1
            case "snapshot":
                self.text = event.data["content"]
            case "done" | "error":
                self.ended = event.data
