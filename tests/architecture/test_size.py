"""What is too long is not read. Medians look after themselves; it is the tails that hurt."""

import ast

from tests.architecture.house import files, named, tree

MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 80


def test_no_file_is_longer_than_one_reads_at_a_time() -> None:
    lengths = {named(path): len(path.read_text().splitlines()) for path in files(".py")}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES_OF_A_FILE} == {}


def test_no_function_is_longer_than_a_page() -> None:
    long = {
        f"{named(path)}:{node.lineno} {node.name}": lines
        for path in files(".py")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MOST_LINES_OF_A_FUNCTION
    }
    assert long == {}
