"""`parley user create`, as an operator types it, beside a real `parley up`."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from parley.tests.test_launcher import KNOWN, launched
from parley.users import new_password


def create(folder: Path, *arguments: str, said: str = "", **env: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name in KNOWN} | env
    return subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "parley", "user", "create", *arguments],
        cwd=folder,
        env=environment,
        input=said,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


async def test_an_operator_makes_the_first_administrator_and_others_with_nobody_logged_in(tmp_path: Path) -> None:
    async with launched(tmp_path, BOOTSTRAP_ADMIN="false") as parley, httpx.AsyncClient(trust_env=False, timeout=20) as client:

        async def logs_in(email: str, password: str) -> httpx.Response:
            return await client.post(f"{parley.url}/user/login", json={"email": email, "password": password})

        made = create(tmp_path, "--email", "Root@example.org", "--role", "ADMIN")
        assert (made.returncode, made.stderr) == (0, "")
        account, shown = made.stdout.splitlines()
        assert account.startswith("user 1: ")
        assert account.endswith("ADMIN")
        password = shown.removeprefix("password, shown this once: ")
        admin = (await logs_in("root@example.org", password)).json()
        page = await client.get(f"{parley.url}/api/users", headers={"Authorization": f"Bearer {admin['access_token']}"})
        assert page.status_code == 200, "an administrator, though BOOTSTRAP_ADMIN=false"
        words = ("--email", "me@example.org", "--username", "Me", "--role", "USER", "--password-stdin")
        made = create(tmp_path, *words, said="correct horse 1\n")
        assert made.stdout == "user 2: me@example.org, called Me, USER\n"
        assert (await logs_in("me@example.org", "correct horse 1")).status_code == 200
        you = ("--email", "you@example.org", "--role")
        for refused, word in (
            (create(tmp_path, *words, said="correct horse 1\n"), "mail"),
            (create(tmp_path, *you, "KING"), "ole"),
            (create(tmp_path, *you, "USER", "--password-stdin", said="x"), "too short"),
        ):
            assert (refused.returncode, refused.stdout) == (1, "")
            assert refused.stderr.startswith("parley: ")
            assert word in refused.stderr
            assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("env", "words"),
    [({}, "no Parley runs on "), ({"NATS_URL": "nats://127.0.0.1:1"}, "NATS at 127.0.0.1:1 could not be reached")],
)
def test_with_nobody_there_it_is_one_line(tmp_path: Path, env: dict[str, str], words: str) -> None:
    tried = create(tmp_path, "--email", "me@example.org", "--role", "USER", **env)
    assert (tried.returncode, tried.stdout) == (1, "")
    assert tried.stderr.startswith(f"parley: {words}")
    assert tried.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_auth_it_is_one_line_too(tmp_path: Path, nats_url: str) -> None:
    tried = create(tmp_path, "--email", "me@example.org", "--role", "USER", NATS_URL=nats_url)
    assert (tried.returncode, tried.stdout) == (1, "")
    assert tried.stderr.startswith("parley: auth does not answer")
    assert tried.stderr.count("\n") == 1


def test_a_made_password_is_long_and_never_the_same() -> None:
    made = {new_password() for _ in range(100)}
    assert len(made) == 100
    assert {len(password) for password in made} == {23}
