"""What is generated is fresh, and holds everything."""

import os
import re

import pytest

from parley.generated import MARK, PAGES, check_pages, settings, stale_pages
from parley.services import SERVICES
from parley.settings import SERVERS_SET_BY, LauncherSettings
from parley_runtime.settings import Settings
from tests.architecture.house import ROOT


def test_generated_pages_are_fresh() -> None:
    assert stale_pages() == [], "make docs"


def test_a_stale_page_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PAGES, "docs/errors.md", lambda: "another text")
    assert check_pages(["docs/errors.md"]) == 1
    assert capsys.readouterr().err == "docs/errors.md is stale: make docs\n"


@pytest.mark.parametrize("name", list(PAGES))
def test_a_generated_page_says_so(name: str) -> None:
    assert MARK in (ROOT / name).read_text()


def test_env_example_has_every_setting_once_and_sets_none() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    listed = [match[1] for line in lines if (match := re.match(r"#([A-Z0-9_]+)=", line))]
    fields = {name.upper() for part in SERVICES.values() for name in part.settings_class.model_fields}
    fields |= {name.upper() for kind in (Settings, LauncherSettings) for name in kind.model_fields}
    assert len(listed) == len(set(listed))
    assert set(listed) == fields
    assert [line for line in lines if line and not line.startswith("#")] == []


def test_no_secret_has_a_default_that_works() -> None:
    for setting in settings():
        if setting.is_secret and not setting.name.endswith("_URL"):
            assert setting.default == "", setting.name


def test_each_embedded_server_gives_way_to_one_setting() -> None:
    assert set(SERVERS_SET_BY.values()) <= set(LauncherSettings.model_fields)


def test_an_empty_line_in_env_sets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NATS_URL", "S3_ENDPOINT_URL"):
        monkeypatch.setitem(os.environ, name, "")
    found = LauncherSettings()
    assert not found.is_given("nats_url")
    assert not found.is_given("s3_endpoint_url")
