import re
from pathlib import Path

import asyncpg
import pytest

from parley.__main__ import main
from parley.migrate import make_schemas, outdated, schemas
from parley_runtime.settings import Settings


@pytest.fixture
def settings(database_url: str, nats_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("NATS_URL", nats_url)
    monkeypatch.chdir(tmp_path)
    return Settings()


async def test_migrate_makes_every_schema_and_check_says_what_is_missing(settings: Settings) -> None:
    names = sorted(schema for _, schema in schemas().values())
    assert names == ["activity", "auth", "chat", "llm_router", "usage"]
    before = await outdated(settings)
    assert sorted(line.partition(":")[0] for line in before) == names
    assert all(re.fullmatch(r"\w+: at nothing, needs \d+\w*", line) for line in before)
    await make_schemas(settings)
    await make_schemas(settings)
    assert await outdated(settings) == []


async def test_check_names_a_schema_that_is_behind(settings: Settings) -> None:
    await make_schemas(settings)
    connection = await asyncpg.connect(settings.database_url.get_secret_value())
    await connection.execute("DELETE FROM usage.alembic_version")
    await connection.close()
    [line] = await outdated(settings)
    assert line.startswith("usage: at nothing")


def test_a_database_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hidden-word@127.0.0.1:1/x")
    assert main(["migrate", "--check"]) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("parley: the database 127.0.0.1:1/x cannot be used")
    assert "hidden-word" not in complaint
