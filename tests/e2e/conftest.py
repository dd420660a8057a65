"""One installation for all tests that leave it whole: two gateways, two routers, every service its own process."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.e2e.harness import Person, RunningParley


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def parley() -> AsyncIterator[RunningParley]:
    folder = Path(tempfile.mkdtemp(prefix="parley-e2e-"))
    running = await RunningParley.start(
        folder, "--split", "--gateways", "2", "--routers", "2", SSE_HEARTBEAT_INTERVAL_MS="1000"
    )
    running.admin = await running.register()  # the first account of an installation is its ADMIN
    yield running
    await running.admin.close()
    await running.stop()
    shutil.rmtree(folder)


@pytest_asyncio.fixture(loop_scope="session")
async def person(parley: RunningParley) -> AsyncIterator[Person]:
    await parley.until_ready()
    someone = await parley.register()
    yield someone
    await someone.close()
