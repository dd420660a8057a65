"""Pricing: tokens in, exact US dollars out. Pure.

The order (requirements 8.3): the seed's registry names, the price list of `genai-prices` as it was installed (its updater is
never started), our own list for what that lacks, a default. A price holds for an instant, so replaying a turn costs the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal
from functools import lru_cache, partial
from importlib.resources import files

import genai_prices
import msgspec
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice

from parley_contracts.parts import TokenUsage
from parley_contracts.turns import Attempt

SCALE = Decimal("0.000000000001")
"""Money is stored to 12 places: a list price of 6 places a million tokens stays exact."""
MAX_TOKENS = 1_000_000_000
"""No call uses more; a provider that says so is not believed, so that its figure fits every column."""

_MILLION = Decimal(1_000_000)
_LIST_NAMES = {"OPENAI": "openai", "CLAUDE": "anthropic", "GEMINI": "google", "CHATGLM": "zhipuai"}
# These vendors are not in the list, but others that host their models are, at other prices.
_NOT_LISTED = {"QWEN", "BAICHUAN"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What one call used, as prices count it: `cached` is part of `input`, `reasoning` is part of `output`."""

    input: int
    output: int
    cached: int = 0
    reasoning: int = 0

    @classmethod
    def of(cls, usage: TokenUsage) -> "Tokens":
        """What a provider said, made sound: nothing negative, no part larger than its whole."""
        prompt, output, reasoning = count(usage.input_tokens), count(usage.output_tokens), count(usage.reasoning_tokens)
        # xAI leaves its reasoning out of the output, but not out of the total.
        output = count(output + min(reasoning, max(count(usage.total_tokens) - prompt - output, 0)))
        return cls(
            input=prompt, output=output, cached=min(count(usage.cached_tokens), prompt), reasoning=min(reasoning, output)
        )


@dataclass(frozen=True, slots=True)
class Price:
    """How one model is priced at one instant, and where that stands."""

    version: str
    cost: Callable[[Tokens], Decimal]
    is_reasoning_apart: bool = False


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars for a million tokens; what has no price of its own costs what its whole costs."""

    input: Decimal
    output: Decimal
    cached: Decimal | None = None
    reasoning: Decimal | None = None

    def cost(self, tokens: Tokens) -> Decimal:
        cached = self.input if self.cached is None else self.cached
        reasoning = self.output if self.reasoning is None else self.reasoning
        return (
            (tokens.input - tokens.cached) * self.input
            + tokens.cached * cached
            + (tokens.output - tokens.reasoning) * self.output
            + tokens.reasoning * reasoning
        ) / _MILLION


class RateList(msgspec.Struct, frozen=True, kw_only=True):
    source: str
    models: dict[str, Rate]


class PriceTable(msgspec.Struct, frozen=True, kw_only=True):
    """Our own data: `prices.json`."""

    checked: str
    registry: RateList
    listed: RateList
    default: Rate


class Prices:
    """What models cost."""

    def __init__(self, table: PriceTable) -> None:
        self._registry = _prices_of(table.registry, f"registry/{table.checked}")
        self._listed = _prices_of(table.listed, f"parley/{table.checked}")
        self._default = Price("default", table.default.cost)

    def charge(self, attempt: Attempt, *, at: datetime) -> tuple[Decimal, str]:
        """What an attempt cost, and the version of the price it was reckoned by."""
        price = self._price(attempt.provider, attempt.model, at)
        return price.cost(Tokens.of(attempt.usage)).quantize(SCALE, ROUND_HALF_EVEN), price.version

    def estimate(self, *, provider: str, model: str, input_tokens: int, output_tokens: int, at: datetime) -> Decimal:
        """The most that a call may cost: nothing cached, and all of the output reasoning where that is dearer."""
        price = self._price(provider, model, at)
        tokens = Tokens(input=count(input_tokens), output=count(output_tokens))
        cost = price.cost(tokens)
        if price.is_reasoning_apart:
            cost = max(cost, price.cost(replace(tokens, reasoning=tokens.output)))
        return cost.quantize(SCALE, ROUND_CEILING)

    def _price(self, provider: str, model: str, at: datetime) -> Price:
        name, company = model.lower(), provider.upper()
        if (known := self._registry.get(name)) is not None:
            return known
        if company == "SIMULATOR" or name.partition("/")[0] == "simulator":
            return self._default
        if company not in _NOT_LISTED and (found := _find_in_list(_LIST_NAMES.get(company, company.lower()), name)) is not None:
            return _list_price(*found, at)
        return self._listed.get(name, self._default)


def load_prices() -> Prices:
    get_snapshot()  # 0.2 s, once and now: not in the first reservation
    data = files("parley_usage").joinpath("prices.json").read_bytes()
    return Prices(msgspec.json.decode(data, type=PriceTable))


def count(tokens: int | None) -> int:
    """A number of tokens that can be believed."""
    return min(max(tokens or 0, 0), MAX_TOKENS)


def most_output(budget_usd: Decimal, asked: int, cost: Callable[[int], Decimal]) -> int:
    """The largest number of output tokens up to `asked` whose `cost` is within the budget; -1 when not even none is."""
    fits, breaks = -1, asked + 1
    while breaks - fits > 1:
        middle = (fits + breaks) // 2
        if cost(middle) <= budget_usd:
            fits = middle
        else:
            breaks = middle
    return fits


def _prices_of(rates: RateList, version: str) -> Mapping[str, Price]:
    return {name: Price(version, rate.cost, rate.reasoning is not None) for name, rate in rates.models.items()}


@lru_cache(maxsize=4096)  # a miss reads the whole list, and model names are the users'
def _find_in_list(company: str, model: str) -> tuple[str, ModelInfo] | None:
    """The listed model of a company; else, for whoever offers another company's model, the one of that name."""
    for provider_id in (company, None):
        try:
            provider, info = get_snapshot().find_provider_model(model, None, provider_id, None)
        except LookupError:
            continue
        return f"genai-prices/{genai_prices.__version__}:{provider.id}/{info.id}"[:128], info
    return None


def _list_price(version: str, info: ModelInfo, at: datetime) -> Price:
    standing = info.get_prices(at)
    is_apart = getattr(standing, "output_reasoning_mtok", None) is not None
    return Price(version, partial(_list_cost, standing), is_apart)


def _list_cost(price: ModelPrice, tokens: Tokens) -> Decimal:
    return price.calc_price(
        genai_prices.Usage(
            input_tokens=tokens.input,
            cache_read_tokens=tokens.cached,
            output_tokens=tokens.output,
            output_reasoning_tokens=tokens.reasoning,
        )
    )["total_price"]
