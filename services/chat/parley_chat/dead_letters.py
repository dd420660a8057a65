"""Dead letters: commands that were delivered too often. Their turns end with an error, stateless ones too."""

from dataclasses import dataclass

import structlog
from prometheus_client import Counter

from parley_chat.ending import Ending
from parley_chat.turn_store import TurnStore
from parley_contracts.errors import ParleyError
from parley_contracts.parts import FinishReason
from parley_contracts.tokens import estimate_prompt_tokens
from parley_contracts.turns import Generate
from parley_runtime.bus import Bus, DeadLetter
from parley_runtime.database import Database

log = structlog.get_logger()

DEAD_LETTERS = Counter("parley_dead_letters", "Commands that were delivered too often, or terminated.")


@dataclass(frozen=True, slots=True)
class DeadLetters:
    database: Database
    bus: Bus
    ending: Ending

    async def bury(self, letter: DeadLetter) -> None:
        """End its turn, then delete it. What raises here comes again."""
        log.error("dead_letter", seq=letter.seq, turn_id=letter.turn_id)
        if letter.turn_id is not None:
            command = letter.command or await self._stored(letter.turn_id)
            tokens = estimate_prompt_tokens(command.prompt) if command is not None else 0
            error = ParleyError().body()
            final = await self.ending.end(letter.turn_id, reason=FinishReason.ERROR, error=error, input_tokens=tokens)
            if command is not None:
                await self.ending.state(command, final)
        await self.bus.turns.forget_command(letter.seq)
        DEAD_LETTERS.inc()

    async def _stored(self, turn_id: str) -> Generate | None:
        """The command of a letter that cannot be read. None: nobody knows whose turn it was; its readers see the final."""
        async with self.database.transaction() as tx:
            turn = await TurnStore(tx).get_open(turn_id)
        return None if turn is None else turn.command()
