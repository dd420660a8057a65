"""DIALECTS: every wire format of a stream, by the name that `format=` takes."""

from parley_gateway.dialects.dialect import Dialect
from parley_gateway.dialects.openai import OpenAIDialect
from parley_gateway.dialects.s0 import S0Dialect

DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (S0Dialect(), OpenAIDialect())}
