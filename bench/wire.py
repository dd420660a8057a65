"""What the fake provider and the load generator agree on: how a prompt asks for tokens, how a token bears its send time.

A token is `t<16 digits> `: the provider's CLOCK_MONOTONIC in nanoseconds when it was sent, which every process of the machine
shares. All tokens of a stream differ, and one is 18 bytes whoever carries it.
"""

import re

MODEL = "bench-model"
TOKEN = b"t%016d "
STAMP = re.compile(rb"t(\d{16}) ")
S0_DELTA = re.compile(rb'"delta":"((?:t\d{16} )+)"')
"""S0 says each piece twice, in `content` and in `delta`; only one of them counts."""
ASK = re.compile(rb"tokens=(\d+) every_ms=(-?\d+)")
BURST = -1
"""As `every_ms`: the whole answer in one write, as short answers come."""


def ask(tokens: int, every_ms: int) -> str:
    """The prompt for so many tokens, so far apart; 0 means as fast as they go, one a write."""
    return f"tokens={tokens} every_ms={every_ms}"
