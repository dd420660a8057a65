"""`parley user create`: an account made by whoever runs this installation, asked of auth over NATS like everything else.

It needs no administrator, so it also makes the first one. NATS is yours by NATS_URL, else that of the `parley up` which
runs on the data directory.
"""

import asyncio
import secrets
import string
import sys
from dataclasses import dataclass

from parley.complaints import until_reachable
from parley.run import bus_of, read
from parley.settings import SERVERS_SET_BY, LauncherSettings
from parley.supervise import StartFailed, running_port
from parley_contracts.accounts import User
from parley_contracts.errors import ParleyError, ServiceUnavailable
from parley_contracts.users import CreateUser
from parley_runtime.settings import Settings
from parley_runtime.telemetry import configure_logging

OPERATOR = "monitor"
"""The operator's name on the bus: a user of NATS with an inbox of its own, to which services answer."""
NATS_S = 1.0
ANSWER_S = 15.0  # a password is hashed, and others may wait for theirs
_SIGNS = "".join(sign for sign in string.ascii_letters + string.digits if sign not in "0O1lI")
_GROUPS, _GROUP = 4, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class NewUser:
    """`password` None: make one, and print it."""

    email: str
    username: str | None
    role: str
    password: str | None


def create_user(new: NewUser) -> int:
    settings = read(LauncherSettings)
    configure_logging("parley", level="critical", log_format=settings.log_format)  # one line tells it all
    password = new.password if new.password is not None else new_password()
    command = CreateUser(actor_id=None, email=new.email, username=new.username, role=new.role, password=password)
    user = asyncio.run(_ask(command, settings.model_copy(update={"nats_url": nats_url(settings)})))
    print(f"user {user.id}: {user.email}, called {user.username}, {user.role}")
    if new.password is None:
        print(f"password, shown this once: {password}")
    return 0


def read_password() -> str:
    """The first line of standard input: in arguments, everybody on the machine could read it."""
    return sys.stdin.readline().rstrip("\r\n")


def new_password() -> str:
    """About 115 bits, easy to read out, and what every policy wants of it."""
    while True:
        groups = ("".join(secrets.choice(_SIGNS) for _ in range(_GROUP)) for _ in range(_GROUPS))
        password = "-".join(groups)
        if any(sign.isdigit() for sign in password) and any(sign.isalpha() for sign in password):
            return password


def nats_url(settings: LauncherSettings) -> str:
    """Raises StartFailed when nobody said where NATS is and no `parley up` runs here."""
    if settings.is_given(SERVERS_SET_BY["nats"]):
        return settings.nats_url
    data_dir = settings.parley_data_dir.absolute()
    port = running_port(data_dir, "nats")
    if port is None:
        raise StartFailed(
            f"no Parley runs on {data_dir}: start it with `parley up`, or say where it is by PARLEY_DATA_DIR or NATS_URL."
        )
    return f"nats://127.0.0.1:{port}"


async def _ask(command: CreateUser, settings: Settings) -> User:
    await until_reachable(settings.nats_url, "NATS", "NATS_URL", within_s=NATS_S)
    bus = bus_of(OPERATOR, settings)
    try:
        await bus.start()
        return await bus.ask(command, timeout_s=ANSWER_S)
    except ServiceUnavailable:
        raise StartFailed(
            "auth does not answer: does Parley run? Look whether the account exists before you repeat this."
        ) from None
    except ParleyError as error:
        raise StartFailed(str(error)) from None
    finally:
        await bus.close()
