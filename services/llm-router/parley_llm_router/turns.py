"""Turns: all that this router runs. Takes Generate, hears GatewayAlive; says TurnResult. Drains when the router stops."""

import asyncio
import secrets
from dataclasses import dataclass, field

import structlog
from prometheus_client import Gauge

from parley_contracts.errors import DeadlinePassed, Overloaded, ParleyError, ServiceUnavailable, UpstreamInterrupted
from parley_contracts.parts import FinishReason
from parley_contracts.reader import Gap, Reading, step
from parley_contracts.turns import Attempt, Generate, LogEntry, TurnClaim, TurnFinal, result_of
from parley_llm_router.attempts import abandoned
from parley_llm_router.claims import Begin, Fenced, GiveUp, Over, decide
from parley_llm_router.gateways import Gateways
from parley_llm_router.generate import Generation, HandedOver, Interruption
from parley_llm_router.means import Means
from parley_llm_router.registry import Registry
from parley_runtime.bus import LastControl, Taken
from parley_runtime.telemetry import bound

log = structlog.get_logger()

RUNNING = Gauge("parley_turns_running", "Turns this router runs")

_LEAVE_S = 5.0
_WATCH_S = 0.5
_RESULT_PAUSES_S = (0.5, 1.0, 2.0, 5.0)


@dataclass(slots=True)
class Running:
    """A turn here. A second delivery of its command waits for `taken` too: its run lives, so nobody need begin again."""

    began_at: float
    taken: asyncio.Future[Taken]
    generation: Generation | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a router that takes a command knows of the turn."""

    last: LastControl
    reading: Reading = field(default_factory=Reading)
    earlier: tuple[Attempt, ...] = ()


class Turns:
    name = "turns"

    def __init__(self, means: Means, registry: Registry, gateways: Gateways, *, drain_s: float) -> None:
        self._means = means
        self._registry = registry
        self._gateways = gateways
        self._drain_s = drain_s
        self._running: dict[str, Running] = {}
        self._is_leaving = asyncio.Event()

    # --- one command ---

    async def generate(self, command: Generate) -> Taken:
        with bound(turn_id=command.turn_id, user_id=command.user_id):
            running = self._running.get(command.turn_id)
            if running is not None:
                log.info("turn_delivered_again")
                return await asyncio.shield(running.taken)
            loop = asyncio.get_running_loop()
            running = self._running[command.turn_id] = Running(self._means.clock.monotonic(), loop.create_future())
            RUNNING.inc()
            try:
                taken = await self._taken(command, running)
            except BaseException as error:
                running.taken.set_exception(error if isinstance(error, Exception) else HandedOver())
                running.taken.exception()  # nobody may be waiting
                raise
            else:
                running.taken.set_result(taken)
                return taken
            finally:
                RUNNING.dec()
                del self._running[command.turn_id]

    async def _taken(self, command: Generate, running: Running) -> Taken:
        try:
            final = await self._final(command, running)
            await self._state_result(command, final)
        except Fenced as fenced:
            if not isinstance(fenced.last.entry, TurnFinal):
                return Taken.LEFT  # its successor has the command
            await self._state_result(command, fenced.last.entry)
        except HandedOver:
            return Taken.AGAIN
        return Taken.DONE

    async def _final(self, command: Generate, running: Running) -> TurnFinal:
        """The final that stands in the end."""
        last = await self._means.claims.last(command.turn_id)
        decision = decide(last.entry)
        if isinstance(decision, Over):
            return decision.final
        found = await self._found(command, last)
        try:
            generation = running.generation = await self._begun(command, decision, found)
        except (ServiceUnavailable, HandedOver):
            raise  # our database is down, or we leave: the command comes again
        except ParleyError as error:
            return await self._refused(command, found, error)
        except Exception:
            log.exception("turn_unfit")
            return await self._refused(command, found, ParleyError())
        return await generation.run()

    async def _found(self, command: Generate, last: LastControl) -> Found:
        if last.entry is None:
            return Found(last)
        entries = await self._means.bus.turns.read(command.turn_id)
        return Found(last, read_all(entries), abandoned(entries, command.prompt))

    async def _begun(self, command: Generate, decision: Begin | GiveUp, found: Found) -> Generation:
        """A run of this turn. Raises the ParleyError that ends it before anyone is called."""
        if self._is_leaving.is_set():
            raise HandedOver
        if command.deadline_at <= self._means.clock.now():
            raise DeadlinePassed
        if isinstance(decision, GiveUp) or (found.reading.has_shown and not command.restart_after_text):
            raise UpstreamInterrupted
        config, key = await self._registry.open(command.model_config_id, command.model, command.user_id)
        if decision.after is not None:
            log.warning("turn_taken_over", run=decision.run, attempt=decision.attempt)
        return Generation(self._means, command, config, key, begin=decision, last=found.last, earlier=found.earlier)

    async def _refused(self, command: Generate, found: Found, error: ParleyError) -> TurnFinal:
        """End the turn without calling anyone; what was shown of it stays."""
        log.info("turn_refused", error=error.code)
        claim = found.last.entry if isinstance(found.last.entry, TurnClaim) else None
        attempt = claim.attempt if claim is not None else 0
        final = TurnFinal(
            turn_id=command.turn_id,
            attempt=attempt,
            n=found.reading.next,
            answer=found.reading.answer(),
            finish_reason=FinishReason.ERROR,
            usage=next((row.usage for row in found.earlier if row.attempt == attempt), None),
            error=error.body(),
            attempts=found.earlier,
            ended_at=self._means.clock.now(),
            nonce=secrets.token_hex(16),
        )
        over = {claim.nonce} if claim is not None else set[str]()
        await self._means.claims.put(final, seq=found.last.seq, over=over)
        return final

    async def _state_result(self, command: Generate, final: TurnFinal) -> None:
        """As often as it takes: the command stays until its result is stored."""
        result = result_of(command, final)
        tries = 0
        while True:
            try:
                await self._means.bus.publish(result)
            except (Overloaded, ServiceUnavailable) as error:
                pause_s = _RESULT_PAUSES_S[min(tries, len(_RESULT_PAUSES_S) - 1)]
                log.warning("result_unstored", error=error.code, again_in_s=pause_s)
                if await self._leaves_within(pause_s):
                    raise HandedOver from None
                tries += 1
            else:
                return

    async def _leaves_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._is_leaving.wait()
        except TimeoutError:
            return False

    # --- all of them ---

    def after_reconnect(self) -> None:
        self._gateways.missed()
        for running in self._running.values():
            if running.generation is not None:
                running.generation.look(say_again=True)

    async def watch_gateways(self) -> None:
        """A loop of the service: ends stateless turns that nobody holds."""
        await asyncio.sleep(_WATCH_S)  # never the test's clock: a loop that does not wait holds up everything
        if not self._gone():
            self._gateways.forget_old()
            return
        try:
            await self._means.bus.check()  # cut off ourselves, we would hear nobody
        except (TimeoutError, ConnectionError):
            return
        for generation in self._gone():
            log.info("turn_abandoned", turn_id=generation.command.turn_id, gateway_id=generation.command.gateway_id)
            generation.interrupt(Interruption.STOPPED)

    def _gone(self) -> list[Generation]:
        return [
            running.generation
            for running in self._running.values()
            if running.generation is not None and self._gateways.is_gone(running.generation.command, since=running.began_at)
        ]

    # --- life ---

    async def open(self) -> None:
        pass

    async def check(self) -> int:
        return len(self._running)

    async def close(self) -> None:
        """Let running turns end; those that take too long are handed over, with all they said said."""
        if not await self._wait(self._drain_s):
            log.warning("turns_handed_over", count=len(self._running))
        self._is_leaving.set()
        for running in list(self._running.values()):
            if running.generation is not None:
                running.generation.interrupt(Interruption.LEAVING)
        await self._wait(_LEAVE_S)
        await self._means.tasks.finish(1.0)

    async def _wait(self, seconds: float) -> bool:
        if self._running:
            await asyncio.wait([running.taken for running in self._running.values()], timeout=seconds)
        return not self._running


def read_all(log_entries: list[LogEntry]) -> Reading:
    """What every reader has been shown of a turn so far."""
    reading = Reading()
    for entry in log_entries:
        stepped = step(reading, entry, stored=True)
        if not isinstance(stepped, Gap):
            reading = stepped[0]
    return reading
