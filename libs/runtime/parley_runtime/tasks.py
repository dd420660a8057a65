"""Tasks that are held: each has an owner and an end."""

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any


class Tasks:
    """The running tasks of one owner. What a task raises is its own matter: give it coroutines that catch."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def spawn(self, work: Coroutine[Any, Any, Any], *, context: Context | None = None) -> None:
        # The loop holds tasks weakly, so one that nobody holds may vanish in the middle of its work.
        task = asyncio.create_task(work, context=context)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def finish(self, timeout_s: float) -> int:
        """Wait until all have ended, then cancel those that have not; returns how many those were."""
        me = asyncio.current_task()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while (running := self._running - {me}) and loop.time() < deadline:
            await asyncio.wait(running, timeout=deadline - loop.time())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=1.0)
        return len(running)
