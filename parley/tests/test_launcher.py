import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from parley.__main__ import main
from parley.complaints import until_reachable
from parley.secrets_file import MAKERS, SecretsMissing, missing_secrets
from parley.settings import SERVERS_SET_BY
from parley.supervise import StartFailed, started_at

START_S = 60.0
STOP_S = 15.0
QUICK_STOP_S = 8.0
KNOWN = {"PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH"}


class Launched:
    """A `parley up` in a folder of its own."""

    def __init__(self, folder: Path, *arguments: str, **env: str) -> None:
        self.folder = folder
        self.process = command(folder, "up", *arguments, **{"PORT": "0", "ARGON2_MEMORY_KIB": "1024", **env})

    @property
    def data(self) -> Path:
        return self.folder / ".parley"

    @property
    def services(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = json.loads((self.data / "services.json").read_text())
        return found

    @property
    def url(self) -> str:
        name = next(name for name in self.services if name.startswith("gateway"))
        return f"http://127.0.0.1:{self.services[name]['port']}"

    async def up(self) -> None:
        deadline = time.monotonic() + START_S
        async with httpx.AsyncClient(trust_env=False) as client:
            while time.monotonic() < deadline:
                assert self.process.poll() is None, self.said()
                with contextlib.suppress(FileNotFoundError, ValueError, httpx.TransportError, KeyError, StopIteration):
                    if (await client.get(f"{self.url}/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.05)
        raise AssertionError(self.said())

    async def registers(self) -> httpx.Response:
        body = {"email": f"{time.monotonic_ns()}@example.org", "username": "Me", "password": "correct horse 1"}
        async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
            return await client.post(f"{self.url}/user/register", json=body)

    async def knows(self, person: dict[str, str]) -> bool:
        async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
            answer = await client.get(f"{self.url}/user/me", headers={"Authorization": f"Bearer {person['access_token']}"})
            return answer.status_code == 200

    async def stop(self) -> float:
        """How long it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        await asyncio.to_thread(self.process.wait, STOP_S)
        return time.monotonic() - began

    def said(self) -> str:
        return (self.folder / "out").read_text() + (self.folder / "err").read_text()

    def pids(self) -> dict[str, int]:
        return {name: known["pid"] for name, known in self.services.items()}


def command(folder: Path, *arguments: str, **env: str) -> "subprocess.Popen[bytes]":
    environment = {name: value for name, value in os.environ.items() if name in KNOWN} | env
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        return subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "parley", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )


@contextlib.asynccontextmanager
async def launched(folder: Path, *arguments: str, **env: str) -> AsyncIterator[Launched]:
    parley = Launched(folder, *arguments, **env)
    try:
        await parley.up()
        yield parley
    finally:
        if parley.process.poll() is None:
            parley.process.send_signal(signal.SIGTERM)
            try:
                parley.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                parley.process.kill()
                parley.process.wait()


async def ends(pids: dict[str, int], within_s: float) -> dict[str, int]:
    """Those that still run then."""
    deadline = time.monotonic() + within_s
    while True:
        left = {name: pid for name, pid in pids.items() if started_at(pid)}
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.05)


def elsewhere(folder: Path) -> Path:
    other = folder / "elsewhere"
    other.mkdir()
    return other


def refusal(folder: Path, *arguments: str, **env: str) -> tuple[int, str]:
    """The status and what it complains about."""
    process = command(folder, *arguments, **env)
    status = process.wait(START_S)
    return status, (folder / "err").read_text()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


async def test_one_command_runs_everything_and_one_signal_ends_it(tmp_path: Path) -> None:
    async with launched(tmp_path) as parley:
        assert (await parley.registers()).status_code == 201
        pids = parley.pids()
        assert {"nats", "postgres", "valkey", "s3", "simulator", "chat", "llm-router"} <= set(pids)
        assert pids["chat"] == pids["gateway"] == parley.process.pid
        async with httpx.AsyncClient(trust_env=False) as client:
            for port in [known["health_port"] for known in parley.services.values() if "health_port" in known]:
                assert (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
        assert parley.url in parley.said()
        status, line = await asyncio.to_thread(refusal, elsewhere(tmp_path), "up", PORT="0", PARLEY_DATA_DIR=str(parley.data))
        assert status == 1
        assert "is in use by another running Parley" in line
        assert await parley.stop() < QUICK_STOP_S
        assert parley.process.returncode == 0
        assert await ends(pids, 1) == {}
        assert not (parley.data / "services.json").exists()


async def test_a_killed_launcher_takes_its_parts_along_and_the_next_one_works(tmp_path: Path) -> None:
    async with launched(tmp_path) as first:
        person = (await first.registers()).json()
        pids = first.pids()
        first.process.kill()
        first.process.wait()
        assert await ends({"simulator": pids["simulator"]}, 5) == {}
        async with launched(tmp_path) as second:
            assert await second.knows(person), "what was stored is gone"
            assert await ends(pids, 1) == {}, "servers of the killed launcher still run"


async def test_split_gives_each_replica_a_process_and_starts_again_what_dies(tmp_path: Path) -> None:
    async with launched(tmp_path, "--split", "--gateways", "2") as parley:
        person = (await parley.registers()).json()
        before = parley.pids()
        assert {"gateway-1", "gateway-2", "chat", "auth"} <= set(before)
        assert len(set(before.values())) == len(before)
        os.kill(before["auth"], signal.SIGKILL)
        os.kill(before["nats"], signal.SIGKILL)
        deadline = time.monotonic() + 30
        while parley.pids()["auth"] == before["auth"] or (await parley.registers()).status_code != 201:
            assert time.monotonic() < deadline, parley.said()
            await asyncio.sleep(0.1)
        assert parley.pids()["nats"] != before["nats"]
        assert "auth was killed by SIGKILL; it is started again." in parley.said()
        assert (parley.data / "logs/auth.log.1").exists()
        after = parley.pids()
        parley.process.kill()
        parley.process.wait()
        ours = {name: pid for name, pid in after.items() if name not in SERVERS_SET_BY}
        assert await ends(ours, 5) == {}, "parts outlive their launcher"
        async with launched(tmp_path) as in_one_process:
            assert await in_one_process.knows(person)
            assert await ends(after, 1) == {}


def test_a_taken_port_is_one_line_with_the_way_out(tmp_path: Path, taken_port: int) -> None:
    status, line = refusal(tmp_path, "up", PORT=str(taken_port))
    assert status == 1
    assert line.startswith(f"parley: port {taken_port} is taken by another program: ")
    assert line.endswith(f"as in PORT={taken_port + 1}.\n")


@pytest.mark.parametrize(
    ("env", "status", "words"),
    [
        ({"PORT": "many"}, 2, ["PORT=many", "integer"]),
        ({"LOG_LEVEL": "loud"}, 2, ["LOG_LEVEL=loud", "'debug'"]),
        ({"TIMEZONE": "Mars"}, 2, ["TIMEZONE=Mars", "not a time zone"]),
        ({"PORT": "many", "SSE_HEARTBEAT_INTERVAL_MS": "1"}, 2, ["PORT=many", "SSE_HEARTBEAT_INTERVAL_MS=1"]),
        ({"JWT_SECRET": "too-short-a-one"}, 2, ["JWT_SECRET", "too short"]),
        ({"SEAL_KEYS": "nonsense-without-a-colon"}, 2, ["SEAL_KEYS"]),
        ({"NODE_ENV": "production"}, 2, ["JWT_SECRET and SEAL_KEYS", "openssl rand"]),
        ({"DATABASE_URL": "postgresql://me:hidden-word@127.0.0.1:1/x"}, 1, ["database 127.0.0.1:1/x", "DATABASE_URL"]),
        ({"DATABASE_URL": "nonsense"}, 1, ["DATABASE_URL"]),
        ({"NATS_URL": "nats://127.0.0.1:port"}, 2, ["NATS_URL=nats://127.0.0.1:port"]),
        ({"PARLEY_DATA_DIR": "/dev/null/x"}, 1, ["/dev/null/x", "may write to"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_one_line(tmp_path: Path, env: dict[str, str], status: int, words: list[str]) -> None:
    actual, line = refusal(tmp_path, "up", **{"PORT": "0", **env})
    assert line.startswith("parley: ")
    assert line.count("\n") == 1, line
    for word in words:
        assert word in line
    for secret in ("too-short-a-one", "nonsense-without-a-colon", "hidden-word"):
        assert secret not in line
    assert actual == status


async def test_nats_that_is_not_there_is_waited_for_and_then_named() -> None:
    said = r"NATS at 127\.0\.0\.1:1, localhost:1 could not be reached for 0 s \(.*\): is NATS_URL right\?"
    with pytest.raises(StartFailed, match=said):
        await until_reachable("nats://user:word@127.0.0.1:1,localhost:1", "NATS", "NATS_URL", within_s=0.3)


def test_the_secrets_of_an_installation_are_its_owners_alone(tmp_path: Path) -> None:
    first = missing_secrets(tmp_path / "a", {}, is_production=False)
    assert set(first) == set(MAKERS)
    assert (tmp_path / "a" / "secrets.env").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert missing_secrets(tmp_path / "a", {}, is_production=False) == first, "they stay the same"
    assert missing_secrets(tmp_path / "b", {}, is_production=False)["JWT_SECRET"] != first["JWT_SECRET"]
    assert missing_secrets(tmp_path / "a", {"JWT_SECRET": "mine"}, is_production=False) == {"SEAL_KEYS": first["SEAL_KEYS"]}
    assert missing_secrets(tmp_path / "c", dict.fromkeys(MAKERS, "mine"), is_production=True) == {}
    assert not (tmp_path / "c").exists()


def test_two_first_starts_at_once_agree_on_the_secrets(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: missing_secrets(tmp_path, {}, is_production=False), range(8)))
    assert all(secrets == made[0] for secrets in made)
    assert [file.name for file in tmp_path.iterdir()] == ["secrets.env"]


def test_one_secret_given_leaves_the_other_to_be_made(tmp_path: Path) -> None:
    with pytest.raises(SecretsMissing, match=r"but SEAL_KEYS is not set.*openssl") as told:
        missing_secrets(tmp_path, {"JWT_SECRET": "x" * 40}, is_production=True)
    assert "JWT_SECRET" not in str(told.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["up", "--gateways", "0"], ["run", "mail"], ["user", "create"], []])
def test_words_it_does_not_know_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: parley" in capsys.readouterr().err
