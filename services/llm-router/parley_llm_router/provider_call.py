"""One provider call: opens it, reads it into parts, and says how it ended. It knows no turns and no bus."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import httpx
import structlog
from prometheus_client import Counter

from parley_contracts.model_configs import ModelConfig
from parley_contracts.parts import (
    Finished,
    FinishReason,
    Part,
    ProviderEvent,
    ProviderSaidError,
    Reasoning,
    Text,
    TokenUsage,
    ToolCall,
)
from parley_llm_router.failover import Failure, broke_off, failure_raised, failure_said, fell_silent
from parley_llm_router.providers.provider import Decoder, HttpRequest, Provider

log = structlog.get_logger()

BAD_LINES = Counter("parley_provider_bad_lines", "Lines of providers that held no JSON object and were skipped", ["provider"])

USAGE_GRACE_S = 5.0
"""After its finish reason a provider has this long to state its usage."""
_LINGER_S = 1.0
_BYTES_A_TOKEN = 12  # three times what a token of text in any language takes: only a provider that ignores its limit gets there
_ERROR_BODY_BYTES = 64 * 1024
_FIRST_ERROR = 300


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is complete, or was cut at its limit."""

    reason: FinishReason


Outcome: TypeAlias = Ended | Failure


class ProviderCall:
    """A call under way. `outcome` is set once; the task goes on a moment to give the connection back.

    `hear` gets each part as it comes, and none after `outcome` is set. Its owner calls `overdue` at `due_at`.
    """

    def __init__(
        self, client: httpx.AsyncClient, provider: Provider, config: ModelConfig, *, hear: Callable[[Part], None]
    ) -> None:
        self._client = client
        self._provider = provider
        self._config = config
        self._hear = hear
        self._now = asyncio.get_running_loop().time
        self._task: asyncio.Task[object] | None = None
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.usage: TokenUsage | None = None
        self.is_sent = False
        self._finished: FinishReason | None = None
        self._is_counted = False
        self._bytes = 0
        self._byte_limit = 0
        self._max_idle_s = 0.0
        self._due_by = 0.0
        self._data_at = 0.0

    async def run(self, request: HttpRequest, *, max_output_tokens: int, max_idle_s: float, timeout_s: float) -> None:
        """Raises nothing: how it went is the outcome."""
        self._task = asyncio.current_task()
        self._byte_limit = max_output_tokens * _BYTES_A_TOKEN
        self._max_idle_s = max_idle_s
        self._data_at = self._now()
        self._due_by = self._data_at + timeout_s
        try:
            if not self.outcome.done():
                await self._answered(request)
        except asyncio.CancelledError:
            self._settle(fell_silent())  # by `_end`, which has settled it; or by the end of this process
        except Exception as error:  # noqa: BLE001 - whatever a library raises, the call has failed
            log.info("provider_call_failed", provider=self._config.provider, error=f"{type(error).__name__}: {error}"[:300])
            is_charged = self.is_sent and not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            self._settle(failure_raised(error, is_charged=is_charged))

    @property
    def due_at(self) -> float:
        if self._finished is not None:
            return min(self._data_at + USAGE_GRACE_S, self._due_by)
        return min(self._data_at + self._max_idle_s, self._due_by)

    def overdue(self) -> None:
        """Its time is over: whatever it came to, it has ended."""
        self._end(Ended(self._finished) if self._finished is not None else fell_silent())

    def close(self) -> None:
        """Nobody wants the rest; harmless when it has ended."""
        self._end(fell_silent())

    def _end(self, outcome: Outcome) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)
            if self._task is not None:
                self._task.cancel()

    def _settle(self, outcome: Outcome) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    async def _answered(self, request: HttpRequest) -> None:
        outgoing = self._client.build_request(request.method, request.url, headers=request.headers, content=request.body)
        self.is_sent = True
        response = await self._client.send(outgoing, stream=True)
        try:
            self._data_at = self._now()
            if response.status_code >= _FIRST_ERROR:
                self._settle(await self._refused(response))
            else:
                await self._read(response)
        finally:
            await response.aclose()

    async def _refused(self, response: httpx.Response) -> Failure:
        body = bytearray()
        async for data in response.aiter_raw():
            body += data
            if len(body) >= _ERROR_BODY_BYTES:
                break
        said = self._provider.decode_error(response.status_code, response.headers, bytes(body))
        return self._failed(said, is_charged=False)

    def _failed(self, said: ProviderSaidError, *, is_charged: bool) -> Failure:
        log.warning(
            "provider_failed",
            provider=self._config.provider,
            model=self._config.name,
            status=said.status,
            code=said.code,
            said=said.message[:300],
        )
        return failure_said(said, self._config, is_charged=is_charged)

    async def _read(self, response: httpx.Response) -> None:
        decoder = self._provider.decoder(content_type=response.headers.get("content-type", ""))
        chunks = response.aiter_raw()
        async for data in chunks:
            self._data_at = self._now()
            for event in decoder.feed(data):
                self._take(event)
            if decoder.is_done or self._is_counted or self.outcome.done():
                break
        else:
            for event in decoder.end():
                self._take(event)
        self._note_bad_lines(decoder)
        self._settle(Ended(self._finished) if self._finished is not None else broke_off())
        if self._finished is not None:
            # The last bytes are on their way: read, they leave a connection that can be used again.
            with contextlib.suppress(TimeoutError, httpx.HTTPError):
                async with asyncio.timeout(_LINGER_S):
                    async for _ in chunks:
                        pass

    def _take(self, event: ProviderEvent) -> None:
        if self.outcome.done():
            return
        match event:
            case Text(text):
                self._hear(event)
                self._count(text)
            case Reasoning(text):
                self._hear(event)
                self._count(text)
            case ToolCall():
                self._hear(event)
                self._count(event.arguments)
            case TokenUsage():
                self.usage = event
                self._is_counted = self._finished is not None  # figures before the end may be those of half an answer
            case Finished(reason):
                self._finished = reason
            case ProviderSaidError():
                self._settle(self._failed(event, is_charged=True))

    def _count(self, text: str) -> None:
        self._bytes += len(text) if text.isascii() else len(text.encode())
        if self._bytes > self._byte_limit:
            log.warning("provider_ignores_limit", provider=self._config.provider, model=self._config.name)
            self._settle(Ended(FinishReason.LENGTH))

    def _note_bad_lines(self, decoder: Decoder) -> None:
        if decoder.bad_lines:
            log.warning("provider_bad_lines", provider=self._config.provider, count=decoder.bad_lines)
            BAD_LINES.labels(provider_label(self._config.provider)).inc(decoder.bad_lines)


_LABELS = frozenset({"OPENAI", "CLAUDE", "GEMINI", "QWEN", "BAICHUAN", "CHATGLM", "SIMULATOR"})


def provider_label(provider: str) -> str:
    """A metric's label: users may name providers as they like, and each label would be kept for ever."""
    return provider if provider in _LABELS else "CUSTOM"
