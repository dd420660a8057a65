"""The command line: reads words, decides nothing."""

import argparse
import sys
from pathlib import Path

import uvloop
from pydantic import ValidationError

from parley.services import SERVICES
from parley.supervise import StartFailed

REPLICATED = {"gateway": "gateways", "llm-router": "routers", "chat": "chats", "usage": "usages", "auth": "auths"}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="parley", description="The self-hosted backend of an AI chat platform.")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    up = commands.add_parser("up", help="run everything on this machine")
    up.add_argument("--split", action="store_true", help="each service in a process of its own")
    for kind, option in REPLICATED.items():
        up.add_argument(f"--{option}", type=int, default=1, metavar="N", help=f"replicas of {kind}; needs --split")
    run = commands.add_parser("run", help="run one service; everything else is named by settings")
    run.add_argument("service", choices=[*SERVICES, "simulator"])
    run.add_argument("--port", type=int, default=0, help="of the simulator; 0: a free one")
    run.add_argument("--state-file", type=Path, help="where to say, once ready, which ports it has")
    run.add_argument("--with-launcher", action="store_true", help="end when standard input does")
    commands.add_parser("migrate", help="bring the database up to date, and make the streams on NATS")
    return top


def main() -> None:
    arguments = parser().parse_args()
    try:
        uvloop.run(_run(arguments))
    except StartFailed as error:
        sys.exit(f"parley: {error}")
    except ValidationError as error:
        sys.exit("\n".join(f"parley: {line}" for line in explained(error)))
    except OSError as error:
        sys.exit(f"parley: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


async def _run(arguments: argparse.Namespace) -> None:
    from parley.run import migrate_all, run_service, run_simulator

    command: str = arguments.command
    match command:
        case "up":
            from parley.up import LauncherSettings, Plan, up

            replicas = {kind: getattr(arguments, option) for kind, option in REPLICATED.items()}
            if not arguments.split and any(count != 1 for count in replicas.values()):
                raise StartFailed("replicas need processes of their own: add --split.")
            await up(LauncherSettings(), Plan(is_split=arguments.split, replicas=replicas))
        case "run" if arguments.service == "simulator":
            await run_simulator(arguments.port, state_file=arguments.state_file, with_launcher=arguments.with_launcher)
        case "run":
            await run_service(arguments.service, state_file=arguments.state_file, with_launcher=arguments.with_launcher)
        case "migrate":
            from parley_runtime.nats_bus import provision
            from parley_runtime.settings import Settings

            settings = Settings()
            await provision(settings.nats_url)
            await migrate_all(settings)
        case _:
            raise StartFailed(f"there is no command {command}.")


def explained(error: ValidationError) -> list[str]:
    """One line for each setting that is wrong: its name, what is wrong with it, never a secret's value."""
    lines = []
    for problem in error.errors(include_url=False):
        name = ".".join(str(part) for part in problem["loc"]).upper() or error.title
        shown = "" if any(word in name for word in ("SECRET", "KEY", "URL", "PASSWORD")) else f" (it is {problem['input']!r})"
        lines.append(f"{name}: {problem['msg']}{shown}. Set it in the environment or in .env.")
    return lines


if __name__ == "__main__":
    main()
