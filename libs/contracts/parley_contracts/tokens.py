"""Token counts where no vocabulary is at hand: one heuristic, the same wherever Parley estimates."""

from collections.abc import Iterable

from parley_contracts.prompts import PromptMessage, TextContent

METHOD = "heuristic"
_PER_MESSAGE = 4
_PER_IMAGE = 85


def estimate_tokens(text: str) -> int:
    """About four characters of ASCII a token, one token for any other character (Chinese: close, never far below)."""
    if text.isascii():
        return -(-len(text) // 4)
    wide = sum(1 for character in text if not character.isascii())
    return wide + -(-(len(text) - wide) // 4)


def estimate_prompt_tokens(prompt: Iterable[PromptMessage]) -> int:
    """Tokens of a whole prompt, with a few for each message's frame."""
    total = 0
    for message in prompt:
        total += _PER_MESSAGE
        if isinstance(message.content, str):
            total += estimate_tokens(message.content)
        elif message.content:
            for part in message.content:
                total += estimate_tokens(part.text) if isinstance(part, TextContent) else _PER_IMAGE
        for call in message.tool_calls:
            total += estimate_tokens(call.name) + estimate_tokens(call.arguments)
    return total
