"""A model provider that says it is simulated: OpenAI chat completions over HTTP, scripted faults, and a meter.

It is the referee of the end-to-end tests: `simulator_script.py` decides what it says and when it breaks, this file
says it, and `GET /meter` tells what really happened. It shares no code with Parley's services, so that a fault of theirs
cannot hide in its figures.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, Literal
from urllib.parse import parse_qs

import uvloop

from parley.simulator_http import (
    JSON,
    App,
    Client,
    ClientClosed,
    Json,
    Message,
    Receive,
    Send,
    error_envelope,
    event,
    serve_app,
)
from parley.simulator_script import DELTAS, MODELS, BadRequest, Script, Step, plan, script_for

How = Literal["open", "finished", "client_closed", "cut", "refused", "error"]

SSE: Final = (b"content-type", b"text/event-stream; charset=utf-8")
KEPT_CALLS: Final = 20_000
KEPT_DELTAS: Final = 100_000  # of one call's text; an endless one would otherwise fill the memory
BATCH: Final = 16  # deltas written at once where no delay is asked for


@dataclass(slots=True, kw_only=True)
class Call:
    id: int
    model: str
    key: str | None
    prompt: str
    prompt_tokens: int
    limit: int | None
    stream: bool
    authorization_last4: str | None
    request: Json
    opened_at: float = field(default_factory=time.time)
    closed_at: float | None = None
    how: How = "open"
    tokens_generated: int = 0
    reasoning_tokens: int = 0
    pieces: list[str] = field(default_factory=list)

    def generated(self, step: Step) -> None:
        self.tokens_generated += 1
        if step.kind == "reasoning":
            self.reasoning_tokens += 1
        elif step.kind == "content" and len(self.pieces) < KEPT_DELTAS:
            self.pieces.append(step.text)

    def close(self) -> None:
        self.closed_at = time.time()
        self.pieces = ["".join(self.pieces)]

    def usage(self) -> Json:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens_generated,
            "total_tokens": self.prompt_tokens + self.tokens_generated,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }

    def shown(self) -> Json:
        hidden = {"prompt", "limit", "pieces"}
        shown = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in hidden}
        return shown | {"text": "".join(self.pieces)}


class Meter:
    def __init__(self) -> None:
        self.calls: deque[Call] = deque(maxlen=KEPT_CALLS)
        self.failed: Counter[str] = Counter()
        self.ids = count(1)  # not reset: a mark stays unique for the life of the process

    def reset(self) -> None:
        self.calls.clear()
        self.failed.clear()

    def report(self, key: str | None) -> Json:
        calls = [call for call in self.calls if key is None or call.key == key]
        totals = {
            "calls": len(calls),
            "prompt_tokens": sum(call.prompt_tokens for call in calls),
            "tokens_generated": sum(call.tokens_generated for call in calls),
            "how": Counter(call.how for call in calls),
        }
        return {"calls": [call.shown() for call in calls], "totals": totals}


def text_of(message: Json) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def tool_call(call: Call, step: Step) -> Json:
    function = {"name": step.text, "arguments": ""}
    return {"id": f"call_{call.id}_{step.nth}", "type": "function", "function": function}


class Simulator:
    def __init__(self) -> None:
        self.meter = Meter()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        client = Client(scope, receive, send)
        with contextlib.suppress(ClientClosed):
            match scope["method"], scope["path"].rstrip("/"):
                case "POST", "/v1/chat/completions":
                    await self.chat_completions(client)
                case "GET", "/v1/models":
                    models = [{"id": name, "object": "model", "created": 0, "owned_by": "simulated"} for name in MODELS]
                    await client.answer(200, {"object": "list", "data": models})
                case "GET", "/meter":
                    key = parse_qs(scope["query_string"].decode()).get("key", [None])[0]
                    await client.answer(200, self.meter.report(key))
                case "DELETE", "/meter":
                    self.meter.reset()
                    await client.answer(200, self.meter.report(None))
                case method, path:
                    await client.refuse(404, f"the simulator has no {method} {path}")

    async def chat_completions(self, client: Client) -> None:
        body = await client.body()
        try:
            call, script = self.opened(json.loads(body), dict(client.scope["headers"]))
        except (ValueError, BadRequest) as error:
            await client.refuse(400, str(error))
            return
        try:
            async with client.watched():
                if refusal := self.refusal(call, script):
                    call.how = "refused"
                    seconds = script.retry_after or (1 if refusal == 429 else None)  # noqa: PLR2004 - too many requests
                    headers = [] if seconds is None else [(b"retry-after", b"%d" % seconds)]
                    await client.refuse(refusal, f"[simulated] refused with {refusal}, as asked", *headers)
                elif call.stream:
                    await self.stream(client, call, script)
                else:
                    await self.whole(client, call, script)
        except ClientClosed:
            call.how = "client_closed" if call.how == "open" else call.how
        finally:
            call.close()

    def opened(self, request: Any, headers: dict[bytes, bytes]) -> tuple[Call, Script]:
        match request:
            case {"messages": [{}, *_] as messages, "model": str(model)} if all(isinstance(m, dict) for m in messages):
                pass
            case _:
                raise BadRequest("a chat completion needs a model and messages")
        limit = request.get("max_completion_tokens", request.get("max_tokens"))
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise BadRequest("max_tokens is a positive integer")
        asked = [place for place, message in enumerate(messages) if message.get("role") == "user"]
        prompt = text_of(messages[asked[-1]]) if asked else ""
        after_tool = any(message.get("role") == "tool" for message in messages[asked[-1] if asked else 0 :])
        script = script_for(model, prompt, after_tool=after_tool)
        call = Call(
            id=next(self.meter.ids),
            model=model,
            key=script.key,
            prompt=prompt,
            prompt_tokens=max(1, sum(len(text_of(message).split()) for message in messages)),
            limit=limit,
            stream=bool(request.get("stream")),
            authorization_last4=headers[b"authorization"].decode("latin-1")[-4:] if b"authorization" in headers else None,
            request=request,
        )
        self.meter.calls.append(call)
        return call, script

    def refusal(self, call: Call, script: Script) -> int | None:
        if script.fail_first:
            times, status = map(int, script.fail_first.split(":"))
            group = call.key or call.prompt
            if self.meter.failed[group] < times:
                self.meter.failed[group] += 1
                return status
        return script.error if script.error_after is None else None

    async def steps(self, client: Client, call: Call, script: Script) -> AsyncIterator[Step]:
        """The plan at its pace. Each delta has its due time, so that a slow machine catches up instead of falling behind."""
        now = asyncio.get_running_loop().time
        due = now() + script.first_delay_ms / 1000
        paced = bool(script.delay_ms or script.first_delay_ms)
        for step in plan(script, call.id, call.prompt, call.limit):
            if step.kind in DELTAS:
                if paced:
                    await client.pause(due - now())
                    due += script.delay_ms / 1000
                elif not call.tokens_generated % BATCH:
                    await client.pause(0)  # an endless answer leaves the loop time to see its client go
                call.generated(step)
            yield step

    async def stream(self, client: Client, call: Call, script: Script) -> None:
        chunk: Json = {
            "id": f"chatcmpl-sim-{call.id}",
            "object": "chat.completion.chunk",
            "created": int(call.opened_at),
            "model": call.model,
        }

        def choice(delta: Json, finish_reason: str | None = None) -> bytes:
            return event(chunk | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})

        # One JSON string is all that differs between two text deltas; the rest is written once.
        before, after = choice({"content": "@@"}).split(b'"@@"')
        paced = bool(script.delay_ms)
        await client.start(200, SSE, (b"cache-control", b"no-cache"))
        data = bytearray()
        async for step in self.steps(client, call, script):
            if step.kind in DELTAS and call.tokens_generated == 1:
                data += choice({"role": "assistant", "content": ""})
            match step.kind:
                case "content":
                    data += before + json.dumps(step.text).encode() + after
                case "reasoning":
                    data += choice({"reasoning_content": step.text})
                case "tool":
                    data += choice({"tool_calls": [{"index": step.nth} | tool_call(call, step)]})
                case "arguments":
                    data += choice({"tool_calls": [{"index": step.nth, "function": {"arguments": step.text}}]})
                case "garbage":
                    data += step.text.encode("utf-8", "surrogateescape")
                case "stall":
                    await client.write(data)
                    await client.pause()
                case "cut":
                    call.how = "cut"
                    await client.write(data)
                    await client.cut()
                case "error":
                    call.how = "error"
                    data += event(error_envelope(script.error or 500, "[simulated] failed in the stream, as asked"))
                    await client.write(data, last=True)
                    return
                case "finish":
                    data += b"" if script.no_finish else choice({}, step.text)
            if paced or len(data) > BATCH * len(before):
                await client.write(data)
                data.clear()
        if (call.request.get("stream_options") or {}).get("include_usage") and not script.no_usage:
            data += event(chunk | {"choices": [], "usage": call.usage()})
        await client.write(data + (b"" if script.no_done else b"data: [DONE]\n\n"), last=True)
        call.how = "finished"

    async def whole(self, client: Client, call: Call, script: Script) -> None:
        reasoning, tools, finish_reason, garbage = "", dict[int, Json](), "", ""
        async for step in self.steps(client, call, script):
            match step.kind:
                case "content":
                    pass  # the meter keeps it
                case "reasoning":
                    reasoning += step.text
                case "tool":
                    tools[step.nth] = tool_call(call, step)
                case "arguments":
                    tools[step.nth]["function"]["arguments"] += step.text
                case "garbage":
                    garbage = step.text.removeprefix("data: ")
                case "stall":
                    await client.start(200, JSON)
                    await client.pause()
                case "cut":
                    call.how = "cut"
                    await client.start(200, JSON)
                    await client.write(b'{"id": "chatcmpl-sim-')
                    await client.cut()
                case "error":
                    call.how = "error"
                    await client.refuse(script.error or 500, "[simulated] failed while answering, as asked")
                    return
                case "finish":
                    finish_reason = step.text
        message: Json = {"role": "assistant", "content": "".join(call.pieces) or None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if tools:
            message["tool_calls"] = list(tools.values())
        choice = {"index": 0, "message": message, "finish_reason": None if script.no_finish else finish_reason}
        answer: Json = {
            "id": f"chatcmpl-sim-{call.id}",
            "object": "chat.completion",
            "created": int(call.opened_at),
            "model": call.model,
            "choices": [choice],
        }
        if not script.no_usage:
            answer["usage"] = call.usage()
        if garbage:
            await client.start(200, JSON)
            await client.write(garbage.encode("utf-8", "surrogateescape"), last=True)
        else:
            await client.answer(200, answer)
        call.how = "finished"


def create_app() -> App:
    return Simulator()


async def serve(host: str = "127.0.0.1", port: int = 0, *, listening: Callable[[int], None] = lambda _port: None) -> None:
    """Serve until cancelled; with port 0 the system chooses, and `listening` is told."""
    await serve_app(create_app(), host, port, listening)


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m parley.simulator", description="A simulated model provider.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    args = parser.parse_args()
    serving = asyncio.ensure_future(
        serve(
            args.host,
            args.port,
            listening=lambda port: print(f"listening on http://{args.host}:{port}", flush=True),
        ),
    )
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


if __name__ == "__main__":
    uvloop.run(main())
