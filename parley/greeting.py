"""What `parley up` says when all is up: where it is, a question to try, where the data lies, how to stop."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from parley.fleet import Replica


def greeting(
    *, ports: Sequence[int], data_dir: Path, is_split: bool, is_simulated: bool, models: str, replicas: Mapping[str, Replica]
) -> str:
    """`replicas` are listed when there are any."""
    url = f"http://127.0.0.1:{ports[0]}"
    # The simulator says all at once unless told otherwise, and here one wants to see it stream.
    question = "What is Parley?" + (" [sim delay_ms=40]" if is_simulated else "")
    rest = "".join(f", http://127.0.0.1:{port}" for port in ports[1:])
    lines = [
        f"Parley is up: {url}{rest}",
        "",
        "Try it (register, then ask and watch the answer stream):",
        f"  TOKEN=$(curl -s {url}/user/register -H 'Content-Type: application/json' \\",
        '    -d "{\\"email\\":\\"$(date +%s)@example.org\\",\\"username\\":\\"Me\\",\\"password\\":\\"correct horse 1\\"}" \\',
        '    | sed \'s/.*"access_token":"\\([^"]*\\)".*/\\1/\')',
        f"  curl -N '{url}/chat/completions' -H \"Authorization: Bearer $TOKEN\" \\",
        "    -H 'Content-Type: application/json' \\",
        f'    -d \'{{"stream":true,"messages":[{{"role":"USER","content":"{question}"}}]}}\'',
        "",
    ]
    lines += [
        f"Models  {models}",
        f"Data    {data_dir} (logs in {data_dir / 'logs'})" if is_split else f"Data    {data_dir}",
        "Stop    Ctrl-C",
    ]
    if replicas:
        lines += ["", "Processes" if is_split else "Parts"]
        lines += [f"  {name:<14} {_where(replica)}" for name, replica in sorted(replicas.items())]
    return "\n".join(lines)


def _where(replica: Replica) -> str:
    shown = {"pid": replica.pid, "port": replica.port, "health": replica.health_port}
    return "  ".join(f"{name} {value}" for name, value in shown.items() if value)
