"""Window: a session's messages in, a prompt out that fits the model and the bus. Pure (requirements 2.7.2)."""

from collections.abc import Sequence

import msgspec

from parley_contracts.errors import MessagesTooLong
from parley_contracts.prompts import PromptMessage
from parley_contracts.sessions import MessageRole, MessageStatus
from parley_contracts.tokens import estimate_prompt_tokens
from parley_contracts.turns import Generate
from parley_runtime.bus import MAX_PAYLOAD_BYTES

_SPARE_BYTES = 4096
_encoder = msgspec.json.Encoder()


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A stored message, as far as a model is shown it."""

    id: str
    role: MessageRole
    text: str
    status: MessageStatus

    @property
    def is_shown(self) -> bool:
        """An answer that is still coming, or one that failed or was stopped before its first word, says nothing."""
        return bool(self.text) and self.status is not MessageStatus.SENDING


def build_prompt(
    *,
    system_prompt: str | None,
    history: Sequence[Said],
    content: str,
    max_messages: int,
    max_tokens: int | None,
    max_bytes: int,
) -> tuple[PromptMessage, ...]:
    """The system prompt, then as many of the last `max_messages` messages as fit, `content` being the last and newest.

    `max_tokens` None: the model's context is not known. Raises MessagesTooLong when the new message alone does not fit.
    """
    head = (PromptMessage(role="system", content=system_prompt),) if system_prompt else ()
    new = PromptMessage(role="user", content=content)
    tokens = estimate_prompt_tokens((*head, new))
    size = sum(_size(message) for message in (*head, new))
    if (max_tokens is not None and tokens > max_tokens) or size > max_bytes:
        raise MessagesTooLong
    kept: list[PromptMessage] = []
    shown = [said for said in history if said.is_shown]
    for said in reversed(shown[-(max_messages - 1) :] if max_messages > 1 else []):
        message = PromptMessage(role=said.role, content=said.text)
        tokens += estimate_prompt_tokens((message,))
        size += _size(message)
        if (max_tokens is not None and tokens > max_tokens) or size > max_bytes:
            break
        kept.append(message)
    return (*head, *reversed(kept), new)


def with_prompt(
    command: Generate,
    *,
    system_prompt: str | None,
    history: Sequence[Said],
    content: str,
    max_messages: int,
    max_tokens: int | None,
) -> Generate:
    """`command` with the prompt it is for, no larger than the bus takes."""
    prompt = build_prompt(
        system_prompt=system_prompt,
        history=history,
        content=content,
        max_messages=max_messages,
        max_tokens=max_tokens,
        max_bytes=MAX_PAYLOAD_BYTES - _SPARE_BYTES - len(msgspec.structs.replace(command, prompt=()).encode()),
    )
    return msgspec.structs.replace(command, prompt=prompt)


def _size(message: PromptMessage) -> int:
    return len(_encoder.encode(message)) + 1
