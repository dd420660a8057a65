"""The systems under test, each started on its one core: nothing at all (the direct call), LiteLLM's proxy, Parley."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.load import Work
from bench.processes import family, prefer, started_on
from bench.wire import MODEL

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".parley" / "bench"
LITELLM = "1.106.0"
SYSTEM_CORE, LOAD_CORE = 0, 1
_READY_S = 45.0
_STOP_S = 30.0
_INSTALL_S = 240.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Missing(Exception):
    """A system that cannot be measured here; the message says why."""


@dataclass(slots=True)
class System:
    """Something that answers chat completions."""

    name: str
    version: str
    port: int
    roots: dict[int, str] = field(default_factory=dict)
    headers: tuple[tuple[str, str], ...] = ()

    def pids(self) -> dict[int, str]:
        return family(self.roots)

    def work(self, tokens: int, every_ms: int, *, is_streamed: bool = True, sessions: Sequence[str] = ()) -> Work:
        """Stateless without `sessions`; with them stored turns, each client in sessions of its own."""
        return Work(
            port=self.port,
            path="/chat/completions" if sessions else "/v1/chat/completions",
            tokens=tokens,
            every_ms=every_ms,
            is_streamed=is_streamed,
            headers=self.headers,
            sessions=tuple(sessions),
        )


def get(port: int, path: str, headers: Sequence[tuple[str, str]] = ()) -> Any:
    return _call(urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=dict(headers)))


def _call(request: urllib.request.Request) -> Any:
    with _OPENER.open(request, timeout=30) as answer:
        return json.loads(answer.read() or b"null")


def _post(port: int, path: str, body: object, headers: dict[str, str]) -> Any:
    url = f"http://127.0.0.1:{port}{path}"
    data = json.dumps(body).encode()
    return _call(urllib.request.Request(url, data, {"content-type": "application/json", **headers}))


def _environment(**more: str) -> dict[str, str]:
    """Nothing of the caller's shell but what programs need to run, so that every run is alike."""
    return {
        name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH"}
    } | more


async def _until(check: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, within_s: float = _READY_S) -> None:
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(OSError, ValueError, KeyError):
            if await asyncio.to_thread(check):
                return
        if process.poll() is not None or time.monotonic() > deadline:
            words = await asyncio.to_thread(log.read_text, errors="replace")
            raise Missing(f"it did not start; its last words: {words.strip()[-600:]}")
        await asyncio.sleep(0.2)


async def _stop(process: subprocess.Popen[bytes], system: System | None = None) -> None:
    """Ask, wait, insist; then nothing of it is left, its servers included."""
    pids = system.pids() if system is not None else {}
    process.send_signal(signal.SIGTERM)
    try:
        await asyncio.to_thread(process.wait, _STOP_S)
    except subprocess.TimeoutExpired:
        for pid in {process.pid, *pids}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


@asynccontextmanager
async def fake_provider() -> AsyncIterator[System]:
    """The provider itself, called directly: what no proxy can be faster than."""
    with started_on(LOAD_CORE):
        process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [sys.executable, "-m", "bench.fake_provider"], cwd=ROOT, stdout=subprocess.PIPE
        )
    try:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        port = int(await asyncio.to_thread(process.stdout.readline))
        prefer({process.pid: "provider"})
        yield System("direct", "no proxy", port, {process.pid: "provider"})
    finally:
        await _stop(process)


# --- LiteLLM ------------------------------------------------------------------------------------------------------------


def _litellm_program(*, may_install: bool) -> Path:
    folder = CACHE / "litellm"
    program = folder / "bin" / "litellm"
    done = folder / f"installed-{LITELLM}"
    if done.exists():
        return program
    if not may_install:
        raise Missing("it is not installed: a full run installs it")
    shutil.rmtree(folder, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(folder / "bin" / "pip"), "install", "-q", f"litellm[proxy]=={LITELLM}"],
    ):
        try:
            ran = subprocess.run(  # noqa: S603 - fixed commands
                command, capture_output=True, text=True, timeout=_INSTALL_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Missing(f"pip could not install it: {error}") from error
        if ran.returncode:
            raise Missing(f"pip could not install it: {ran.stderr.strip()[-300:]}")
    done.touch()
    return program


@asynccontextmanager
async def litellm(provider_port: int, *, may_install: bool) -> AsyncIterator[System]:
    """LiteLLM's proxy as its documents start it: one worker, no database, one master key."""
    program = await asyncio.to_thread(_litellm_program, may_install=may_install)
    folder = Path(tempfile.mkdtemp(prefix="bench-litellm-"))
    params = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{provider_port}/v1", "api_key": "sk-fake"}
    config = {"model_list": [{"model_name": MODEL, "litellm_params": params}], "litellm_settings": {"telemetry": False}}
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    port, key = 20000 + secrets.randbelow(10000), f"sk-{secrets.token_hex(16)}"
    log = folder / "log"
    with started_on(SYSTEM_CORE), log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - it returns at once; the program is the one installed above
            [program, "--config", folder / "config.yaml", "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"],
            cwd=folder,
            # The price list is one of its own files: it would otherwise be fetched from outside.
            env=_environment(
                LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_LOG="ERROR", LITELLM_MODE="PRODUCTION", LITELLM_MASTER_KEY=key
            ),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    system = System("LiteLLM proxy", LITELLM, port, {process.pid: "litellm"}, (("authorization", f"Bearer {key}"),))
    try:
        await _until(lambda: bool(get(port, "/v1/models", system.headers)), process, log)
        yield system
    finally:
        await _stop(process, system)
        shutil.rmtree(folder, ignore_errors=True)


# --- Parley -------------------------------------------------------------------------------------------------------------


# What limits one user's requests would limit the load. What limits the machine is raised as far as the scenarios go.
_LIMITS = dict.fromkeys(
    (
        "RATE_REQUESTS_PER_MIN",
        "RATE_ANONYMOUS_PER_MIN",
        "RATE_LOGIN_PER_MIN",
        "RATE_TURNS_PER_MIN",
        "MAX_RUNNING_TURNS",
        "MODEL_MAX_REQUESTS_PER_MIN",
        "MODEL_MAX_ERRORS",
        "MAX_CONNECTIONS_PER_USER",
    ),
    "1000000",
) | {"LLM_ROUTER_MAX_TURNS": "2000", "MAX_STREAMS": "4000", "ACCESS_TOKEN_TTL_S": "86400"}


def _roots(data: Path, launcher: int) -> tuple[dict[int, str], int]:
    """Every process of an installation by name, and the gateway's port. A process of many services is `parley`."""
    roots = {launcher: "launcher"}
    services = json.loads((data / "services.json").read_text())
    names: dict[int, list[str]] = {}
    for name, known in services.items():
        names.setdefault(int(known["pid"]), []).append(name)
    with contextlib.suppress(OSError, ValueError):
        for name, known in json.loads((data / "run.json").read_text())["processes"].items():
            names.setdefault(int(known["pid"]), []).append(name)
    for pid, all_names in names.items():
        roots[pid] = all_names[0] if len(set(all_names)) == 1 else "parley"
    return roots, next(int(known["port"]) for name, known in services.items() if name.startswith("gateway"))


@asynccontextmanager
async def parley(provider_port: int, *, is_split: bool = False) -> AsyncIterator[System]:
    """`parley up` with its embedded servers, a user, and the fake provider as its one model."""
    folder = Path(tempfile.mkdtemp(prefix="bench-parley-"))
    os.chmod(folder, 0o711)  # noqa: PTH101, S103 - PostgreSQL runs as another user than root
    log, data = folder / "log", folder / "data"
    with started_on(SYSTEM_CORE), log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - it returns at once
            [sys.executable, "-m", "parley", "up", *(["--split"] if is_split else [])],
            cwd=folder,
            env=_environment(
                PORT="0",
                HEALTH_PORT="0",
                PARLEY_DATA_DIR=str(data),
                OPENAI_BASE_URL=f"http://127.0.0.1:{provider_port}/v1",
                OPENAI_API_KEY="sk-fake",
                OPENAI_MODELS=MODEL,
                MODEL_URL_ALLOW=f"http://127.0.0.1:{provider_port}",
                **_LIMITS,
            ),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    system = System("Parley, split" if is_split else "Parley", "this commit", 0, {process.pid: "launcher"})

    def is_ready() -> bool:
        system.roots, system.port = _roots(data, process.pid)
        get(system.port, "/readyz")
        return True

    try:
        await _until(is_ready, process, log)
        await asyncio.to_thread(_sign_up, system)
        yield system
    finally:
        await _stop(process, system)
        shutil.copy(log, CACHE / "parley.log")
        shutil.rmtree(folder, ignore_errors=True)


def _sign_up(system: System) -> None:
    person = {"email": f"{secrets.token_hex(6)}@example.org", "username": "Bench", "password": "correct horse 1"}
    token = _post(system.port, "/user/register", person, {})["access_token"]
    system.headers = (("authorization", f"Bearer {token}"),)


def open_sessions(system: System, count: int) -> list[str]:
    """Conversations for stored turns; opening them is not part of what is measured."""
    body = {"name": "Bench", "modelConfig": {"modelProvider": "OPENAI", "modelName": MODEL}}
    return [_post(system.port, "/chat/sessions", body, dict(system.headers))["data"]["id"] for _ in range(count)]
