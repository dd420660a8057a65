"""Provider: how one protocol is spoken. A pair of pure functions: a prompt to a request, bytes to events."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from parley_contracts.model_configs import ModelConfig
from parley_contracts.parts import ProviderEvent, ProviderSaidError
from parley_contracts.prompts import Params, PromptMessage


class HttpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent. `headers` may hold the key: never log them."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes


class Decoder(Protocol):
    """Turns the body of one 200 answer into events, however it is cut: also within a character.

    `Finished` is yielded only where the provider said why it ended; a body that ends without it broke off. Usage may
    follow it. After a `ProviderSaidError` nothing more is yielded.
    """

    bad_lines: int
    """Lines that held no JSON object and were skipped."""
    is_done: bool
    """The provider said that nothing more is coming (`[DONE]`): no need to wait for the body's end."""

    def feed(self, data: bytes) -> Iterable[ProviderEvent]: ...

    def end(self) -> Iterable[ProviderEvent]:
        """The body ended: what was held back comes out."""
        ...


class Provider(Protocol):
    """One protocol, without I/O."""

    def build_request(
        self,
        config: ModelConfig,
        key: str | None,
        prompt: Sequence[PromptMessage],
        params: Params,
        *,
        max_output_tokens: int,
        is_stream: bool,
    ) -> HttpRequest:
        """The request for this prompt.

        `params` are already those of the request over the session's over the config's; `max_output_tokens` stands in for
        their `max_tokens`, which is not read. Errors: UnsupportedParameter, for what this provider is known not to take;
        ProviderAuth, for a key that fits in no header.
        """
        ...

    def decoder(self, *, content_type: str) -> Decoder:
        """A decoder for one answer: a stream of events, or one JSON body, as its content type says."""
        ...

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderSaidError:
        """What an answer of status 400 and up says. `headers` are looked up in lower case."""
        ...
