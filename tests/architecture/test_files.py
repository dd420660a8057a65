"""Where things are and what they may hold: names that say something, one place for NATS, nothing half done."""

import ast
import json
import re
import tomllib
from importlib import import_module

from parley.services import SERVICES
from parley_llm_router.providers import PROVIDERS
from parley_runtime.service import Service
from parley_runtime.settings import Settings
from tests.architecture.house import ROOT, files, is_test, named, shipped, tree

DRAWERS = {"utils", "util", "common", "base", "core", "helpers", "helper", "misc", "shared"}
UNDONE = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "NotImplemented" + "Error")))
# A path that only one machine has: a home, a checkout, a cache.
MACHINE_PATH = re.compile(r"(?<![\w.~])/(?:work|root|home|Users|opt)/[\w.-]+")
TEXT = (".py", ".md", ".toml", ".yaml", ".yml", ".lock", ".json", ".sh", "Makefile", "run", ".example", ".txt")
RECORDINGS = ROOT / "services/llm-router/tests/recordings"


def test_no_file_is_a_drawer() -> None:
    assert [named(path) for path in files() if path.stem in DRAWERS or path.parent.name in DRAWERS] == []


def test_nothing_is_left_undone() -> None:
    assert [named(path) for path in files(".py") if UNDONE.search(path.read_text())] == []


def test_nats_is_spoken_in_the_nats_files_of_the_runtime_only() -> None:
    speakers = {named(path) for path in shipped() if "nats" in imports(tree(path))}
    assert all(re.fullmatch(r"libs/runtime/parley_runtime/nats_\w+\.py", name) for name in speakers), speakers


def imports(module: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_no_service_is_known_outside_the_launcher_and_itself() -> None:
    packages = {part.package for part in SERVICES.values()}
    for path in shipped():
        own = path.relative_to(ROOT).parts
        if own[0] == "parley":
            continue
        others = packages & imports(tree(path)) - set(own)
        assert not others, f"{named(path)} imports {others}"


def test_every_service_can_be_found_by_its_name() -> None:
    for name, part in SERVICES.items():
        kind = part.service_class
        assert isinstance(kind, type), name
        assert issubclass(kind, Service), name
        assert issubclass(part.settings_class, Settings), name
        folder = ROOT / "services" / name
        assert (folder / part.package / "service.py").exists(), f"{name} is not in services/{name}"
        if part.migrations:
            assert import_module(part.migrations[0]).__path__, name
            assert (folder / part.package / "migrations" / "env.py").exists(), name


def test_every_provider_protocol_has_recorded_traffic() -> None:
    recorded = {str(json.loads(path.read_text())["protocol"]).partition("-")[0] for path in RECORDINGS.glob("*.json")}
    assert set(PROVIDERS) <= recorded


def test_no_committed_file_knows_the_machine_it_was_written_on() -> None:
    found = {
        f"{named(path)}: {match[0]}"
        for path in files(*TEXT)
        if not is_test(path)
        for match in [MACHINE_PATH.search(path.read_text(errors="replace"))]
        if match
    }
    assert found == set()


def test_no_committed_file_names_a_package_registry() -> None:
    names = re.compile("pypi" + r"\.org|index" + r"-url|--" + r"index\b")
    locked = [path for path in files(".lock", ".toml", "Makefile", "run") if names.search(path.read_text())]
    assert [named(path) for path in locked] == []


def test_everything_that_is_needed_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    locked, for_development = pins("requirements.lock"), pins("requirements-dev.lock")
    assert {bare(name) for name in project["project"]["dependencies"]} <= set(locked)
    assert {bare(name) for name in project["dependency-groups"]["dev"]} <= set(for_development)
    assert locked.items() <= for_development.items(), "development runs on what users run on"


def pins(name: str) -> dict[str, str]:
    """Package → version, markers included."""
    found = re.findall(r"^([\w.-]+)(?:\[[^]]*])?==(.+?) \\$", (ROOT / name).read_text(), re.MULTILINE)
    return {bare(package): version for package, version in found}


def bare(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-").replace(".", "-")
