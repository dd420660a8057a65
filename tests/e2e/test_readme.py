"""The README's transcript, line by line as it stands there, against a running system."""

import json
import re
import subprocess
from pathlib import Path

from tests.e2e.harness import RunningParley

README = Path(__file__).parents[2] / "README.md"


def test_the_readmes_transcript_works_line_by_line(parley: RunningParley) -> None:
    transcript = README.read_text().split("## What it looks like")[1].split("## ")[0]
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", transcript, flags=re.DOTALL))
    script = commands.replace("http://127.0.0.1:3000", parley.gateways[0])
    ran = subprocess.run(["/bin/bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=True)  # noqa: S603
    shown = re.search(r"```\nretry: 1000\n(.*?)```", transcript, flags=re.DOTALL)
    assert shown is not None
    assert _kinds(ran.stdout) == _kinds(shown[1])
    assert '"content":"word1 word2 word3 word4 ","status":"SENT"' in ran.stdout
    charges = json.loads(ran.stdout[ran.stdout.rindex('{"charges"') :])
    assert charges["total"] in {0, 1}  # it is billed in the moment after it ended


def _kinds(text: str) -> list[str]:
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    return [event["type"] + event.get("content", "") for event in events]
