"""Both buses pass the one suite; live messages may be lost on the way."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from parley_runtime import follow
from parley_runtime.testing import BusConformance, FollowConformance, TestHub


class TestMemoryBus(BusConformance):
    @pytest.fixture
    def hub(self, memory_hub: TestHub) -> TestHub:
        return memory_hub


class TestNatsBus(BusConformance):
    @pytest.fixture
    def hub(self, nats_hub: TestHub) -> TestHub:
        return nats_hub


class TestFollowingWhenLiveMessagesAreLost(FollowConformance):
    @pytest_asyncio.fixture(params=[0.1, 0.5, 1.0])
    async def hub(
        self, request: pytest.FixtureRequest, memory_hub: Any, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[TestHub]:
        monkeypatch.setattr(follow, "SILENCE_S", 0.2)
        memory_hub.hub.lose_live = request.param
        yield memory_hub
        await asyncio.sleep(0)
