"""Pricing: what tokens cost, and by whose price."""

from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from parley_contracts.parts import TokenUsage
from parley_contracts.turns import Attempt
from parley_usage.pricing import MAX_TOKENS, Prices, PriceTable, Tokens, load_prices, most_output

AT = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
PRICES = load_prices()


def charge(provider: str, model: str, prices: Prices = PRICES, at: datetime = AT, **tokens: int | None) -> tuple[Decimal, str]:
    usage = TokenUsage(**{"input_tokens": 0, "output_tokens": 0, **tokens})  # type: ignore[arg-type]
    attempt = Attempt(
        attempt=1,
        provider=provider,
        model=model,
        usage=usage,
        is_estimated=False,
        method="provider",
        is_billable=True,
        is_success=True,
    )
    return prices.charge(attempt, at=at)


@pytest.mark.parametrize(("model", "per_1k"), [("qwen2.5", "0.001"), ("gemma-3", "0.0008"), ("gpt-4", "0.03")])
@pytest.mark.parametrize("provider", ["OPENAI", "QWEN", "SIMULATOR", "CUSTOM"])
def test_the_seeds_registry_names_cost_what_the_seed_says(model: str, per_1k: str, provider: str) -> None:
    cost, version = charge(provider, model, input_tokens=600, output_tokens=400)
    assert cost == Decimal(per_1k)
    assert version == "registry/2026-11-26"


def test_an_unknown_model_costs_the_default() -> None:
    assert charge("CUSTOM", "my own", input_tokens=1000) == (Decimal("0.001"), "default")
    assert charge("OPENAI", "", output_tokens=1) == (Decimal("0.000001"), "default")
    assert charge("", "\x00 no such model", output_tokens=1)[1] == "default"


@pytest.mark.parametrize("model", ["simulator", "simulator/slow", "simulator/cut-7"])
def test_the_simulator_costs_the_default(model: str) -> None:
    assert charge("SIMULATOR", model, input_tokens=500, output_tokens=500) == (Decimal("0.001"), "default")


@pytest.mark.parametrize(
    ("provider", "model", "cost"),
    [
        ("OPENAI", "gpt-4o-mini", "0.00018"),  # 600 × 0.15 + 400 × 0.075 + 100 × 0.6
        ("CLAUDE", "claude-sonnet-4-5", "0.00342"),  # 600 × 3 + 400 × 0.3 + 100 × 15
        ("CUSTOM", "deepseek-chat", "0.0003"),  # found by its name: 600 × 0.27 + 400 × 0.07 + 100 × 1.1
        ("OPENAI", "claude-sonnet-4-5", "0.00342"),  # another company's model behind an OpenAI-compatible address
        ("QWEN", "qwen-max", "0.001856"),  # our own list: 600 × 1.6 + 400 × 0.64 + 100 × 6.4
    ],
)
def test_cached_tokens_are_part_of_the_input_and_priced_once(provider: str, model: str, cost: str) -> None:
    found, version = charge(provider, model, input_tokens=1000, cached_tokens=400, output_tokens=100)
    assert found == Decimal(cost)
    assert version != "default"


def test_a_price_that_depends_on_the_hour_is_that_of_the_turns_hour() -> None:
    day, _ = charge("CUSTOM", "deepseek-chat", input_tokens=1000)
    night, _ = charge("CUSTOM", "deepseek-chat", at=AT.replace(hour=20), input_tokens=1000)
    assert night < day


def test_a_price_version_names_the_list_its_version_and_the_model() -> None:
    assert charge("OPENAI", "gpt-4o-mini-2024-07-18")[1] == "genai-prices/0.2.3:openai/gpt-4o-mini"
    assert charge("QWEN", "qwen-turbo")[1] == "parley/2026-11-26"


def test_reasoning_is_part_of_the_output_and_priced_once() -> None:
    plain, _ = charge("OPENAI", "o1", input_tokens=10, output_tokens=100)
    assert charge("OPENAI", "o1", input_tokens=10, output_tokens=100, reasoning_tokens=80)[0] == plain


def test_reasoning_with_a_price_of_its_own_is_priced_by_it() -> None:
    cost, _ = charge("PERPLEXITY", "sonar-deep-research", output_tokens=1000, reasoning_tokens=400)
    assert cost == Decimal("0.006")  # 600 × 8 + 400 × 3


def test_reasoning_that_is_only_in_the_total_is_paid() -> None:
    apart = charge("CUSTOM", "grok-4", input_tokens=100, output_tokens=20, reasoning_tokens=300, total_tokens=420)
    within = charge("CUSTOM", "grok-4", input_tokens=100, output_tokens=320, reasoning_tokens=300, total_tokens=420)
    assert apart == within


def test_an_estimate_takes_the_dearer_of_output_and_reasoning() -> None:
    table = {
        "checked": "today",
        "registry": {"source": "", "models": {"thinker": {"input": "1", "output": "2", "reasoning": "10"}}},
        "listed": {"source": "", "models": {}},
        "default": {"input": "1", "output": "1"},
    }
    prices = Prices(msgspec.convert(table, PriceTable))
    estimate = prices.estimate(provider="", model="thinker", input_tokens=100, output_tokens=10, at=AT)
    assert estimate == Decimal("0.0002")
    assert charge("", "thinker", prices, input_tokens=100, output_tokens=10, reasoning_tokens=10)[0] == estimate


def test_every_price_we_ship_is_positive_and_says_where_it_stands() -> None:
    prices = PRICES._registry | PRICES._listed  # type: ignore[operator]
    assert len(prices) >= 5
    for name, price in prices.items():
        for tokens in (Tokens(input=1, output=0), Tokens(input=0, output=1), Tokens(input=1, output=0, cached=1)):
            assert 0 < price.cost(tokens) < Decimal("0.001"), name
        assert price.cost(Tokens(input=1, output=0, cached=1)) <= price.cost(Tokens(input=1, output=0)), name


def test_every_listed_model_can_be_priced_and_no_version_is_too_long() -> None:
    for provider in get_snapshot().providers:
        for model in provider.models:
            cost, version = charge(provider.id, model.id, input_tokens=1000, cached_tokens=10, output_tokens=1000)
            assert cost >= 0
            assert len(version) <= 128


@given(
    tokens=st.fixed_dictionaries(
        {name: st.integers(-(10**20), 10**20) for name in ("input_tokens", "output_tokens")},
        optional={
            name: st.none() | st.integers(-(10**20), 10**20) for name in ("cached_tokens", "reasoning_tokens", "total_tokens")
        },
    ),
    model=st.sampled_from(["gpt-4", "gpt-4o", "claude-sonnet-4-5", "gemini-2.5-pro", "qwen-max", "who knows"]),
)
def test_no_figure_of_a_provider_makes_a_charge_negative_or_fails(tokens: dict[str, int | None], model: str) -> None:
    cost, _ = charge("CUSTOM", model, **tokens)  # type: ignore[arg-type]  # `at` is not among them
    assert cost.is_finite()
    assert 0 <= cost < Decimal(10) ** 12


@given(
    prompt=st.integers(0, MAX_TOKENS),
    asked=st.integers(0, 100_000),
    model=st.sampled_from(["gpt-4", "gpt-4o", "gemini-2.5-pro", "sonar-deep-research", "who knows"]),
    part=st.integers(0, 120),
)
def test_what_a_budget_pays_is_the_most_that_fits(prompt: int, asked: int, model: str, part: int) -> None:
    def cost(output: int) -> Decimal:
        return PRICES.estimate(provider="CUSTOM", model=model, input_tokens=prompt, output_tokens=output, at=AT)

    budget = cost(asked) * part / 100
    tokens = most_output(budget, asked, cost)
    assert tokens == -1 or cost(tokens) <= budget
    assert tokens == asked or cost(tokens + 1) > budget


def test_an_estimate_is_never_less_than_the_charge_for_as_much() -> None:
    for model in ("gpt-4o", "claude-sonnet-4-5", "gemini-2.5-pro", "sonar-deep-research", "o1", "qwen-max"):
        estimate = PRICES.estimate(provider="CUSTOM", model=model, input_tokens=5000, output_tokens=500, at=AT)
        for cached, reasoning in ((0, 0), (5000, 0), (0, 500), (100, 250)):
            cost, _ = charge(
                "CUSTOM", model, input_tokens=5000, output_tokens=500, cached_tokens=cached, reasoning_tokens=reasoning
            )
            assert cost <= estimate
