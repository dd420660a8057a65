"""The suite that every bus must pass: `class TestMyBus(BusConformance)` with a fixture `hub` that is a `TestHub`.

Times are short: the hub is provisioned with `ACK_WAIT_S` and `MAX_DELIVER` for commands, buses say "in progress" every
`KEEP_ALIVE_S`.
"""

from parley_runtime.testing.durables import DurableConformance
from parley_runtime.testing.questions import AskConformance, EventConformance
from parley_runtime.testing.scene import ACK_WAIT_S, KEEP_ALIVE_S, MAX_DELIVER, TEST_CONSUMERS, TestHub, extract, inject
from parley_runtime.testing.turn_logs import FollowConformance, TurnLogConformance

__all__ = [
    "ACK_WAIT_S",
    "KEEP_ALIVE_S",
    "MAX_DELIVER",
    "TEST_CONSUMERS",
    "BusConformance",
    "FollowConformance",
    "TestHub",
    "extract",
    "inject",
]


class BusConformance(AskConformance, EventConformance, DurableConformance, TurnLogConformance, FollowConformance):
    """All of it."""
