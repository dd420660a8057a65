"""The turn log on NATS (reliability §4-§6): control by compare-and-set, deltas plainly, the log by batched direct get."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any

import msgspec
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from parley_contracts.turns import (
    Control,
    Generate,
    LogEntry,
    TurnClaim,
    TurnCommitted,
    TurnDelta,
    TurnFinal,
    TurnResult,
    decode_log_entry,
)
from parley_runtime.bus import (
    MAX_PAYLOAD_BYTES,
    ControlRefused,
    DeadLetter,
    LastControl,
    LiveMessage,
    LogUnreadable,
    OutcomeUnknown,
)
from parley_runtime.nats_client import LOST, Connection, unsubscribe
from parley_runtime.nats_durable import PUB_ACK, PUBLISH_TIMEOUT_S, ApiError
from parley_runtime.replies import sized

log = structlog.get_logger()

_PAGE = 1000
_PAGE_TIMEOUT_S = 3.0
_API_TIMEOUT_S = 2.0
_WRONG_LAST_SEQUENCE = 10071
_NO_MESSAGE = frozenset({10037, 10043, 10057})
"""No message found, sequence not found, cannot be deleted: it is not there."""


class _Stored(msgspec.Struct):
    subject: str
    seq: int
    data: bytes = b""


class _Found(msgspec.Struct):
    message: _Stored | None = None
    error: ApiError | None = None


class _Advisory(msgspec.Struct):
    stream_seq: int


_FOUND = msgspec.json.Decoder(_Found)
_ADVISORY = msgspec.json.Decoder(_Advisory)
_CONTROL: msgspec.json.Decoder[Control] = msgspec.json.Decoder(TurnClaim | TurnFinal)
_DELTA = msgspec.json.Decoder(TurnDelta)
_COMMITTED = msgspec.json.Decoder(TurnCommitted)


@lru_cache(maxsize=4096)
def _delta_subject(turn_id: str) -> str:
    # Checking and filling in cost as much as the rest of `say`; a turn says its subject hundreds of times.
    return TurnDelta.subject_for(turn_id=turn_id)


def _all_of(turn_id: str) -> str:
    return TurnDelta.subject_for(turn_id=turn_id).rpartition(".")[0] + ".*"


class Watch:
    """A subscription that its owner ends."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    async def close(self) -> None:
        await unsubscribe(self._subscription)


class _Page:
    """The messages of one batched get, as they come in."""

    def __init__(self) -> None:
        self.messages: list[Msg] = []
        self.end: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()


class NatsTurnLog:
    """`TurnLog` over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pages: dict[str, _Page] = {}
        self._page_count = 0
        self._inbox = ""
        self._unsaid = 0

    async def subscribe(self) -> None:
        """One inbox for all log reads: each page has its own last token."""
        self._inbox = self._connection.client.new_inbox()
        await self._connection.subscribe(f"{self._inbox}.*", self._hear_page)
        self._connection.on_reconnect.append(self._forget_pages)

    # --- control ---

    async def last_control(self, turn_id: str) -> LastControl:
        found = await self._get("TURNS", {"last_by_subj": TurnClaim.subject_for(turn_id=turn_id)})
        if found is None:
            return LastControl(0, None)
        try:
            return LastControl(found.seq, _CONTROL.decode(found.data))
        except msgspec.DecodeError as error:
            log.exception("undecodable_control", subject=found.subject)
            raise LogUnreadable(turn_id) from error

    async def append_control(self, entry: Control, *, expected_seq: int) -> int:
        payload = sized(entry.encode())
        # No Nats-Msg-Id: repeated with both headers, versions of the server answer differently (fact 3). The nonce decides.
        headers = {"Nats-Expected-Last-Subject-Sequence": str(expected_seq)}
        try:
            reply = await self._connection.request(entry.route(), payload, timeout_s=PUBLISH_TIMEOUT_S, headers=headers)
            ack = PUB_ACK.decode(reply.data)
        except (*LOST, msgspec.DecodeError) as error:
            raise OutcomeUnknown(repr(error)) from error
        if ack.error is None:
            return ack.seq
        if ack.error.err_code == _WRONG_LAST_SEQUENCE:
            raise ControlRefused(ack.error.description)
        raise OutcomeUnknown(f"{ack.error.err_code} {ack.error.description}")

    # --- deltas ---

    def say(self, delta: TurnDelta) -> None:
        payload = delta.encode()
        # A delta that found no room is missing in the log too: readers hold back what follows until it is said again, or
        # the final repairs it. Waiting here would stop every other turn of this router.
        if len(payload) > MAX_PAYLOAD_BYTES or not self._connection.say(_delta_subject(delta.turn_id), payload):
            if self._unsaid % 1000 == 0:
                log.warning("delta_unsaid", turn_id=delta.turn_id, attempt=delta.attempt, n=delta.n, before=self._unsaid)
            self._unsaid += 1

    # --- reading ---

    async def read(self, turn_id: str) -> list[LogEntry]:
        pattern = _all_of(turn_id)
        entries: list[LogEntry] = []
        seq = 1
        while True:
            messages, end = await self._read_page({"seq": seq, "batch": _PAGE, "next_by_subj": pattern})
            for msg in messages:
                try:
                    entries.append(decode_log_entry(msg.data))
                except msgspec.DecodeError:  # a newer version's: readers go on without it, the final repairs what is shown
                    log.warning("undecodable_log_entry", turn_id=turn_id)
            status = end.get("Status")
            if status == "404" or (status == "204" and end.get("Nats-Num-Pending", "0") == "0"):
                return entries
            if status != "204" or not messages:
                raise LogUnreadable(f"{turn_id}: {status} {end.get('Description', '')}")
            seq = int((messages[-1].headers or {})["Nats-Sequence"]) + 1

    async def _read_page(self, ask: dict[str, object]) -> tuple[list[Msg], dict[str, str]]:
        page = _Page()
        self._page_count += 1
        token = str(self._page_count)
        self._pages[token] = page
        try:
            said = self._connection.say("$JS.API.DIRECT.GET.TURNS", msgspec.json.encode(ask), reply=f"{self._inbox}.{token}")
            if not said:
                raise LogUnreadable("not connected")
            async with asyncio.timeout(_PAGE_TIMEOUT_S):
                return page.messages, await page.end
        except TimeoutError:
            raise LogUnreadable("no answer in time") from None
        finally:
            del self._pages[token]

    async def _hear_page(self, msg: Msg) -> None:
        page = self._pages.get(msg.subject.rpartition(".")[2])
        if page is None or page.end.done():
            return
        headers = msg.headers or {}
        if "Status" in headers:
            page.end.set_result(headers)
        else:
            page.messages.append(msg)

    def _forget_pages(self) -> None:
        # The middle of a page may be lost with the connection, and its end still arrive over the new one.
        for page in self._pages.values():
            if not page.end.done():
                page.end.set_exception(LogUnreadable("reconnected"))

    # --- watching ---

    async def watch(self, turn_id: str, callback: Callable[[LiveMessage], None]) -> Watch:
        decoders: dict[str, msgspec.json.Decoder[Any]] = {
            TurnDelta.subject_for(turn_id=turn_id): _DELTA,
            TurnClaim.subject_for(turn_id=turn_id): _CONTROL,
            TurnCommitted.subject_for(turn_id=turn_id): _COMMITTED,
        }

        async def hear(msg: Msg) -> None:
            # N13: decodes and hands over, nothing else; callbacks of a subscription run one after another.
            decoder = decoders.get(msg.subject)
            if decoder is None:
                return  # a result, a stop, or what a newer version says about turns
            try:
                callback(decoder.decode(msg.data))
            except msgspec.DecodeError:
                log.warning("undecodable_live_message", subject=msg.subject)

        return await self._watch(_all_of(turn_id), hear)

    async def watch_control(self, turn_id: str, callback: Callable[[Control], None]) -> Watch:
        async def hear(msg: Msg) -> None:
            try:
                callback(_CONTROL.decode(msg.data))
            except msgspec.DecodeError:
                log.warning("undecodable_live_message", subject=msg.subject)

        return await self._watch(TurnClaim.subject_for(turn_id=turn_id), hear)

    async def _watch(self, subject: str, hear: Callable[[Msg], Awaitable[None]]) -> Watch:
        watch = Watch(await self._connection.subscribe(subject, hear))
        try:
            await self._connection.barrier()
        except BaseException:
            await watch.close()
            raise
        return watch

    # --- commands and results ---

    async def find_command(self, turn_id: str) -> bool:
        return await self._get("COMMANDS", {"last_by_subj": Generate.subject_for(turn_id=turn_id)}) is not None

    async def forget_command(self, seq: int) -> None:
        deleted = await self._ask_api("$JS.API.STREAM.MSG.DELETE.COMMANDS", {"seq": seq, "no_erase": True})
        if deleted.error is not None and deleted.error.err_code not in _NO_MESSAGE:
            raise LogUnreadable(f"{deleted.error.err_code} {deleted.error.description}")

    async def find_result(self, turn_id: str) -> TurnResult | None:
        subject = TurnResult.subject_for(turn_id=turn_id)
        try:
            reply = await self._connection.request(f"$JS.API.DIRECT.GET.RESULTS.{subject}", b"", timeout_s=_API_TIMEOUT_S)
        except LOST as error:
            raise LogUnreadable(repr(error)) from error
        status = (reply.headers or {}).get("Status")
        if status == "404":
            return None
        if status is not None:
            raise LogUnreadable(f"{turn_id}: {status}")
        return TurnResult.decode(reply.data)

    async def read_dead_letter(self, advisory: bytes) -> DeadLetter:
        """The command an advisory speaks of; the advisory itself names neither its subject nor its turn (fact 13)."""
        seq = _ADVISORY.decode(advisory).stream_seq
        found = await self._get("COMMANDS", {"seq": seq})
        if found is None:
            return DeadLetter(seq, None, None)
        turn_id = found.subject.rpartition(".")[2]
        try:
            return DeadLetter(seq, Generate.decode(found.data), turn_id)
        except msgspec.DecodeError:
            log.exception("undecodable_dead_letter", seq=seq, turn_id=turn_id)
            return DeadLetter(seq, None, turn_id)

    async def _get(self, stream: str, ask: dict[str, object]) -> _Stored | None:
        """One stored message, read through the stream's leader: replicas lag (N23)."""
        found = await self._ask_api(f"$JS.API.STREAM.MSG.GET.{stream}", ask)
        if found.error is None:
            return found.message
        if found.error.err_code in _NO_MESSAGE:
            return None
        raise LogUnreadable(f"{found.error.err_code} {found.error.description}")

    async def _ask_api(self, subject: str, ask: dict[str, object]) -> _Found:
        try:
            reply = await self._connection.request(subject, msgspec.json.encode(ask), timeout_s=_API_TIMEOUT_S)
            return _FOUND.decode(reply.data)
        except (*LOST, msgspec.DecodeError) as error:
            raise LogUnreadable(repr(error)) from error
