"""A provider made of recordings, and the official OpenAI SDK as the judge of what a client makes of them.

`ReplayServer` answers a chat completion for the model `rec/<recording>` with that recording's status, headers and raw body.
`sdk_outcome` asks any base URL through the official SDK and folds the answer into the shape of a recording's `expected`.
"""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final, Self

import openai
import uvicorn

Message = MutableMapping[str, Any]
Json = dict[str, Any]

PREFIX: Final = "rec/"
COMPARED: Final = (
    "outcome",
    "text",
    "reasoning",
    "tool_calls",
    "finish_reason",
    "usage",
    "usage_raw",
    "model",
    "sdk_chunks",
    "error",
)


def openai_recordings(directory: Path) -> dict[str, Json]:
    """By id: the exchanges that an OpenAI client can be answered with."""
    recordings = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(directory.glob("*.json"))}
    return {name: one for name, one in recordings.items() if one["protocol"].startswith("openai")}


def streamed(recording: Json) -> bool:
    return "text/event-stream" in recording["response"]["headers"].get("content-type", "")


def to_openai_messages(recording: Json) -> Json:
    """The recorded request without model and stream; a plain question where the source kept no chat request."""
    body = (recording["request"] or {}).get("body") or {}
    if "messages" not in body:
        return {"messages": [{"role": "user", "content": "Hello"}]}
    return {name: value for name, value in body.items() if name not in {"model", "stream"}}


class ReplayServer:
    """`async with ReplayServer(directory, piece_size=7) as server`: `server.url` is a base URL for an OpenAI client."""

    def __init__(self, directory: Path, *, piece_size: int | None = None) -> None:
        self.recordings = openai_recordings(directory)
        self.piece_size = piece_size
        self.requests: list[Json] = []
        self.url = ""

    async def __aenter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        config = uvicorn.Config(
            self._answer,
            interface="asgi3",
            proxy_headers=False,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
        )
        self._server = uvicorn.Server(config)
        # Not `serve`: it would take the test run's signals.
        self._running = asyncio.create_task(self._server._serve([self._listener]))
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._server.should_exit = True
        await self._running

    async def _answer(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["method"] == "GET" and scope["path"].endswith("/requests"):
            response = _json_response(200, self.requests)
        elif scope["method"] == "POST" and scope["path"].endswith("/chat/completions"):
            asked = json.loads(body)
            self.requests.append({"path": scope["path"], "headers": headers, "body": asked})
            name = str(asked.get("model")).removeprefix(PREFIX)
            missing = {"error": {"message": f"no recording {name}", "type": "invalid_request_error", "code": "no_recording"}}
            response = self.recordings[name]["response"] if name in self.recordings else _json_response(404, missing)
        else:
            response = _json_response(404, {"error": {"message": f"nothing at {scope['path']}"}})
        await self._send(response, send)

    async def _send(self, response: Json, send: Callable[[Message], Awaitable[None]]) -> None:
        headers = [(name.encode(), str(value).encode()) for name, value in response["headers"].items()]
        await send({"type": "http.response.start", "status": response["status"], "headers": headers})
        data = response["body"].encode()
        size = self.piece_size or max(len(data), 1)
        for start in range(0, len(data), size):
            await send({"type": "http.response.body", "body": data[start : start + size], "more_body": True})
            await asyncio.sleep(0)  # each piece is written to the socket by itself
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _json_response(status: int, content: Any) -> Json:
    return {"status": status, "headers": {"content-type": "application/json"}, "body": json.dumps(content)}


async def sdk_outcome(
    base_url: str,
    body: Json,
    *,
    model: str,
    stream: bool,
    api_key: str = "test-key",
    timeout_s: float = 30,
) -> Json:
    """What the official SDK makes of the answer, in the shape of a recording's `expected`."""
    extra = {name: value for name, value in body.items() if name != "messages"}
    # Made here and not by the SDK, so that its connections are closed with this block and no proxy of the machine is used.
    http_client = openai.DefaultAsyncHttpxClient(timeout=timeout_s, trust_env=False)
    async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0, http_client=http_client) as client:
        fold = _Fold()
        try:
            answer: Any = await client.chat.completions.create(
                model=model,
                messages=body["messages"],
                stream=stream,
                extra_body=extra,
            )
            if stream:
                async for chunk in answer:
                    fold.add_chunk(chunk.model_dump(exclude_unset=True))
            else:
                fold.add_completion(answer.model_dump(exclude_unset=True))
        except openai.APIStatusError as error:
            return {"outcome": "error", "error": _refusal(error)}
        except openai.APIError as error:
            outcome = "error_midstream" if fold.chunks else "error"  # without a chunk: no connection, or it broke
            return fold.result() | {"outcome": outcome, "error": _broken(error)}
        return fold.result()


def differences(outcome: Json, expected: Json) -> Json:
    """What `outcome` has otherwise than the recording's `expected`: name → (got, expected). Empty when they agree."""
    names = [name for name in COMPARED if name in expected]
    got = {name: outcome.get(name) for name in names}
    return {name: (got[name], expected[name]) for name in names if got[name] != expected[name]}


class _Fold:
    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""
        self.calls: dict[int, Json] = {}
        self.finish_reason: str | None = None
        self.usage_raw: Json | None = None
        self.model: str | None = None
        self.chunks: int | None = None

    def add_chunk(self, chunk: Json) -> None:
        self.chunks = (self.chunks or 0) + 1
        self.model = chunk.get("model") or self.model
        self.usage_raw = chunk.get("usage") or self.usage_raw
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {}
            self.add_text(delta)
            for fragment in delta.get("tool_calls") or []:
                self.add_fragment(fragment)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def add_completion(self, completion: Json) -> None:
        self.model, self.usage_raw = completion.get("model"), completion.get("usage")
        choice = completion["choices"][0]
        self.add_text(choice["message"])
        for index, call in enumerate(choice["message"].get("tool_calls") or []):
            self.add_fragment(call | {"index": index})
        self.finish_reason = choice.get("finish_reason")

    def add_text(self, said: Json) -> None:
        self.text += said.get("content") or ""
        self.reasoning += said.get("reasoning_content") or said.get("reasoning") or ""

    def add_fragment(self, fragment: Json) -> None:
        index = fragment.get("index") or 0
        call = self.calls.setdefault(index, {"id": None, "name": None, "arguments": ""})
        function = fragment.get("function") or {}
        call["id"] = call["id"] or fragment.get("id")
        call["name"] = call["name"] or function.get("name")
        call["arguments"] += function.get("arguments") or ""

    def result(self) -> Json:
        return {
            "outcome": "ok",
            "text": self.text,
            "reasoning": self.reasoning,
            "tool_calls": [call | {"arguments_json": _parsed(call["arguments"])} for _, call in sorted(self.calls.items())],
            "finish_reason": self.finish_reason,
            "usage": _usage(self.usage_raw),
            "usage_raw": self.usage_raw,
            "model": self.model,
            "sdk_chunks": self.chunks,
        }


def _usage(raw: Json | None) -> Json | None:
    if raw is None:
        return None
    return {
        "input_tokens": raw.get("prompt_tokens"),
        "output_tokens": raw.get("completion_tokens"),
        "total_tokens": raw.get("total_tokens"),
        "cached_input_tokens": (raw.get("prompt_tokens_details") or {}).get("cached_tokens"),
        "reasoning_tokens": (raw.get("completion_tokens_details") or {}).get("reasoning_tokens"),
    }


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return None


def _refusal(error: openai.APIStatusError) -> Json:
    return {
        "http_status": error.status_code,
        "exception": type(error).__name__,
        "code": None if error.code is None else str(error.code),
        "type": error.type,
        "param": error.param,
        "body": error.body,
        "message": error.message,
        "retry_after": error.response.headers.get("retry-after"),
    }


def _broken(error: openai.APIError) -> Json:
    return {
        "http_status": None if isinstance(error, openai.APIConnectionError) else 200,
        "exception": type(error).__name__,
        "code": None if error.code is None else str(error.code),
        "type": error.type,
        "body": error.body,
        "message": error.message,
        "where": "raised by the official SDK while iterating",
    }
