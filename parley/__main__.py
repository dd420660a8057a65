"""`parley`: the command line. Reads words and decides nothing; each command is one file of this package."""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from parley.services import SERVICES


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 well, 1 it did not work, 2 it was asked wrongly."""
    options = _parser().parse_args(argv)
    from parley.complaints import FAILED, MISCONFIGURED, Misconfigured
    from parley.secrets_file import SecretsMissing
    from parley.supervise import StartFailed

    try:
        return int(options.run(options))
    except StartFailed as error:
        print(f"parley: {error}", file=sys.stderr)
        return FAILED
    except (Misconfigured, SecretsMissing) as error:
        print(f"parley: {error}", file=sys.stderr)
        return MISCONFIGURED
    except KeyboardInterrupt:
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="parley", description="The self-hosted backend of an AI chat platform.")
    commands = parser.add_subparsers(required=True, metavar="command")

    up = commands.add_parser("up", help="run everything on this machine")
    up.add_argument("--split", action="store_true", help="each service in a process of its own")
    up.add_argument("--verbose", action="store_true", help="log everything; list the parts and their ports")
    for name, part in SERVICES.items():
        up.add_argument(f"--{part.replicas}", type=_count, default=1, metavar="N", dest=name, help=f"{name}: how many (1)")
    up.set_defaults(run=_up)

    run = commands.add_parser("run", help="run one service, or the simulated model provider")
    run.add_argument("service", choices=[*SERVICES, "simulator"])
    run.add_argument("--host", default="127.0.0.1", help="simulator: address to listen on")
    run.add_argument("--port", type=int, default=0, help="simulator: port to listen on; 0 takes a free one")
    run.add_argument("--with-launcher", action="store_true", help="end when standard input does")
    run.set_defaults(run=_run)

    migrate = commands.add_parser("migrate", help="bring schemas and streams up to date")
    migrate.add_argument("--check", action="store_true", help="change nothing; exit 1 if a schema is behind")
    migrate.set_defaults(run=_migrate)

    user = commands.add_parser("user", help="make an account").add_subparsers(required=True, metavar="command")
    create = user.add_parser("create", help="make an account, also the first administrator's")
    create.add_argument("--email", required=True)
    create.add_argument("--username", help="unset: what stands before the @")
    create.add_argument("--role", required=True, metavar="ADMIN|USER", help="or another role of this installation")
    create.add_argument(
        "--password-stdin", action="store_true", help="read it from standard input; unset: one is made and shown"
    )
    create.set_defaults(run=_create_user)

    flow = commands.add_parser("flow", help="write docs/data-flow.md: who says what to whom")
    docs = commands.add_parser("docs", help="write all generated pages")
    for command, pages in ((flow, ["docs/data-flow.md"]), (docs, None)):
        command.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is stale")
        command.set_defaults(run=_docs, pages=pages)
    return parser


def _count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= 32:  # noqa: PLR2004 - more do not fit PostgreSQL's connections
        raise argparse.ArgumentTypeError("between 1 and 32")
    return count


def _up(options: argparse.Namespace) -> int:
    from parley.up import Options, up

    replicas = {name: getattr(options, name) for name in SERVICES}
    return up(Options(split=options.split, verbose=options.verbose, replicas=replicas))


def _run(options: argparse.Namespace) -> int:
    from parley.run import run_service, run_simulator

    if options.service == "simulator":
        return run_simulator(options.host, options.port, with_launcher=options.with_launcher)
    return run_service(options.service, with_launcher=options.with_launcher)


def _migrate(options: argparse.Namespace) -> int:
    from parley.migrate import migrate_all, outdated
    from parley.run import read
    from parley_runtime.settings import Settings

    settings = read(Settings)
    if not options.check:
        asyncio.run(migrate_all(settings))
        return 0
    lines = asyncio.run(outdated(settings))
    print("\n".join(lines) or "every schema is up to date")
    return 1 if lines else 0


def _create_user(options: argparse.Namespace) -> int:
    from parley.users import NewUser, create_user, read_password

    password = read_password() if options.password_stdin else None
    return create_user(NewUser(email=options.email, username=options.username, role=options.role, password=password))


def _docs(options: argparse.Namespace) -> int:
    from parley.generated import check_pages, write_pages

    return check_pages(options.pages) if options.check else write_pages(options.pages)


if __name__ == "__main__":
    sys.exit(main())
