"""The five streams and their consumers as data: the page that `provision` makes true (reliability 2.3, 2.5)."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

MIB = 1024 * 1024
GIB = 1024 * MIB
HOUR_S = 3600.0


class Stream(StrEnum):
    COMMANDS = "COMMANDS"
    TURNS = "TURNS"
    RESULTS = "RESULTS"
    ACTIVITY = "ACTIVITY"
    DEAD_LETTERS = "DEAD_LETTERS"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSpec:
    """What a stream keeps, for how long, and what happens when it is full."""

    name: Stream
    subjects: tuple[str, ...]
    retention: Literal["limits", "workqueue"] = "limits"
    storage: Literal["file", "memory"] = "file"
    max_age_s: float
    max_bytes: int
    discard: Literal["old", "new"] = "old"
    allow_direct: bool = False
    duplicate_window_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSpec:
    """A durable pull consumer with explicit acknowledgement; named for the service that takes from it."""

    stream: Stream
    durable: str
    ack_wait_s: float
    max_deliver: int
    max_ack_pending: int = 10_000


STREAMS: tuple[StreamSpec, ...] = (
    StreamSpec(
        name=Stream.COMMANDS,
        subjects=("llm_router.generate.*",),
        retention="workqueue",
        max_age_s=HOUR_S,
        max_bytes=GIB,
        discard="new",
    ),
    StreamSpec(
        name=Stream.TURNS,
        subjects=("turn.*.control", "turn.*.delta"),
        max_age_s=HOUR_S,  # the resume window
        max_bytes=2 * GIB,
        allow_direct=True,
    ),
    StreamSpec(
        name=Stream.RESULTS,
        subjects=("turn.*.result",),
        max_age_s=7 * 24 * HOUR_S,
        max_bytes=2 * GIB,
        discard="new",
        allow_direct=True,
    ),
    StreamSpec(
        name=Stream.ACTIVITY,
        subjects=("activity.reported.*",),
        storage="memory",
        max_age_s=300.0,
        max_bytes=64 * MIB,
    ),
    StreamSpec(
        name=Stream.DEAD_LETTERS,
        subjects=(
            "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.COMMANDS.*",
            "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.COMMANDS.*",
        ),
        max_age_s=7 * 24 * HOUR_S,
        max_bytes=64 * MIB,
    ),
)

CONSUMERS: tuple[ConsumerSpec, ...] = (
    # The router says "in progress" every 1.5 s, so 5 s of silence means that it is dead.
    ConsumerSpec(stream=Stream.COMMANDS, durable="llm_router", ack_wait_s=5.0, max_deliver=6),
    ConsumerSpec(stream=Stream.RESULTS, durable="chat", ack_wait_s=30.0, max_deliver=-1),
    ConsumerSpec(stream=Stream.RESULTS, durable="usage", ack_wait_s=30.0, max_deliver=-1),
    ConsumerSpec(stream=Stream.DEAD_LETTERS, durable="chat", ack_wait_s=30.0, max_deliver=-1),
    ConsumerSpec(stream=Stream.ACTIVITY, durable="activity", ack_wait_s=30.0, max_deliver=5),
)
