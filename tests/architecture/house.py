"""The files of the house, as the rules about them see them."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
OUTSIDE = frozenset({"node_modules", "dist", "data", "__pycache__"})
"""Folders that git ignores; those that begin with a dot are left out too, `.ci` excepted."""


def files(*suffixes: str) -> list[Path]:
    """Every file of ours whose name ends so; all without suffixes."""
    return [path for path in _walk(ROOT) if not suffixes or path.name.endswith(suffixes)]


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if path.name not in OUTSIDE and (not path.name.startswith(".") or path.name == ".ci"):
                yield from _walk(path)
        else:
            yield path


def is_test(path: Path) -> bool:
    return bool({"tests", "testing"} & set(path.relative_to(ROOT).parts)) or path.name == "conftest.py"


def shipped() -> list[Path]:
    """Python that users run."""
    return [path for path in files(".py") if not is_test(path) and path.relative_to(ROOT).parts[0] != "bench"]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))
