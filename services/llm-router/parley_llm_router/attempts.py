"""Attempts: what each provider call of a turn used, counted where the provider did not say (reliability §9.2). Pure."""

from collections.abc import Iterable, Sequence

from parley_contracts.model_configs import ModelConfig
from parley_contracts.parts import Answer, Part, TokenUsage
from parley_contracts.prompts import PromptMessage
from parley_contracts.tokens import METHOD, estimate_prompt_tokens, estimate_tokens
from parley_contracts.turns import Attempt, LogEntry, TurnClaim, TurnDelta

INTERRUPTED = "upstream_interrupted"
_NOTHING = TokenUsage(input_tokens=0, output_tokens=0)


def counted(prompt: Sequence[PromptMessage], answer: Answer) -> TokenUsage:
    """Tokens by the heuristic: a provider's deltas hold one token, or many, so counting deltas would tell less."""
    said = (answer.text, answer.reasoning, *(call.name + call.arguments for call in answer.tool_calls))
    output = sum(estimate_tokens(text) for text in said)
    return TokenUsage(input_tokens=estimate_prompt_tokens(prompt), output_tokens=output)


def attempt_of(
    claim: TurnClaim,
    config: ModelConfig,
    *,
    usage: TokenUsage | None,
    estimate: TokenUsage | None,
    error_code: str | None,
    is_billable: bool,
    duration_ms: int,
    first_token_ms: int | None,
) -> Attempt:
    """`usage` is the provider's; else `estimate` counts, or nothing where the provider took no prompt."""
    return Attempt(
        attempt=claim.attempt,
        provider=config.provider,
        model=config.name,
        model_config_id=config.id,
        usage=usage or estimate or _NOTHING,
        is_estimated=usage is None,
        method="provider" if usage is not None else METHOD,
        is_billable=is_billable,
        is_success=error_code is None,
        error_code=error_code,
        duration_ms=duration_ms,
        first_token_ms=first_token_ms,
    )


def abandoned(log: Iterable[LogEntry], prompt: Sequence[PromptMessage]) -> tuple[Attempt, ...]:
    """The attempts of routers that died, counted from what the log holds of them. Nobody pays for those."""
    claims: list[TurnClaim] = []
    parts: dict[int, list[Part]] = {}
    for entry in log:
        match entry:
            case TurnClaim(attempt=number):
                claims = [claim for claim in claims if claim.attempt != number] + [entry]
                parts[number] = []
            case TurnDelta(attempt=number, n=n) if number in parts and n <= len(parts[number]):
                parts[number] += entry.parts[len(parts[number]) - n :]
            case _:
                pass
    return tuple(
        Attempt(
            attempt=claim.attempt,
            provider=claim.provider,
            model=claim.model,
            model_config_id=claim.model_config_id,
            usage=counted(prompt, Answer.of(parts[claim.attempt])),
            is_estimated=True,
            method=METHOD,
            is_billable=False,
            is_success=False,
            error_code=INTERRUPTED,
        )
        for claim in claims
    )
