"""Parts of a running installation that are processes of their own: started, watched, started again when they die."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import structlog

from parley.run import Place
from parley.supervise import Child, Command, StartFailed

log = structlog.get_logger()

START_S = 60.0
_STOP_S = 10.0
_PAUSES_S = (0.1, 0.5, 1.0, 2.0, 5.0)
_HEALTHY_S = 30.0


class Part:
    """One process of ours: `parley run <kind>`. It says where it is in a file of its own, and ends when the launcher does."""

    def __init__(
        self, name: str, kind: str, *, data_dir: Path, env: Mapping[str, str], arguments: tuple[str, ...] = ()
    ) -> None:
        self.name = name
        self.place: Place | None = None
        self._state_file = data_dir / "parts" / f"{name}.json"
        self._log = data_dir / "logs" / f"{name}.log"
        self._command = Command(
            argv=(
                *(sys.executable, "-m", "parley", "run", kind, *arguments),
                *("--with-launcher", "--state-file", str(self._state_file)),
            ),
            cwd=str(Path.cwd()),
            env={**os.environ, **env},
            holds_stdin=True,
        )
        self._child: Child | None = None

    def pin(self, *arguments: str) -> None:
        """Started again, it gets these arguments too, e.g. the port it has now."""
        argv = (*self._command.argv, *arguments)
        self._command = replace(self._command, argv=argv)

    def pin_env(self, **env: str) -> None:
        """Started again, it gets these settings."""
        self._command = replace(self._command, env={**self._command.env, **env})

    async def start(self) -> None:
        """Ready when this returns. Raises StartFailed, with the reason the process gave."""
        self._state_file.parent.mkdir(exist_ok=True)
        self._log.parent.mkdir(exist_ok=True)
        self._state_file.unlink(missing_ok=True)
        self._child = child = Child(self._command, self._log)
        deadline = asyncio.get_running_loop().time() + START_S
        while not self._state_file.exists():
            if not child.alive:
                raise StartFailed(f"{self.name} did not start: {child.last_words()} The log is {self._log}.")
            if asyncio.get_running_loop().time() > deadline:
                await child.kill()
                raise StartFailed(f"{self.name} was not ready within {START_S:.0f} s. The log is {self._log}.")
            await asyncio.sleep(0.02)
        self.place = msgspec.json.decode(self._state_file.read_bytes(), type=Place)

    async def stop(self) -> None:
        if self._child is not None:
            await self._child.stop(signal.SIGTERM, _STOP_S)

    async def ended(self) -> None:
        while self._child is not None and not await self._child.exited(within_s=3600):
            pass

    @property
    def status(self) -> int | None:
        return self._child.status if self._child is not None else None


async def keep(part: Part, tell: "Tell") -> None:
    """Start a part again whenever it ends, sooner if it had been well."""
    failures = 0
    while True:
        began = asyncio.get_running_loop().time()
        await part.ended()
        failures = 0 if asyncio.get_running_loop().time() - began > _HEALTHY_S else failures + 1
        log.warning("part_ended", part=part.name, status=part.status)
        await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S)) - 1] if failures else 0)
        try:
            await part.start()
        except StartFailed as error:
            log.error("part_not_started", part=part.name, reason=str(error))  # noqa: TRY400 - the reason says it all
        else:
            log.warning("part_started_again", part=part.name)
            tell()


class Tell:
    """`services.json`: where everything is, for whoever operates or tests this installation."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.places: dict[str, Place] = {}
        self.parts: list[Part] = []

    def __call__(self) -> None:
        places = {**self.places, **{part.name: part.place for part in self.parts if part.place is not None}}
        new = self._path.with_suffix(".new")
        new.write_bytes(msgspec.json.format(msgspec.json.encode(places)))
        new.replace(self._path)
