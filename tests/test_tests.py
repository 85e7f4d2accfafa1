"""The tests themselves: a name means one thing, wherever it is read."""

import ast
from collections import defaultdict

from support import REPO


def places_of(kind: str) -> dict[str, list[str]]:
    """Where the functions of a kind, `fixture` or `test`, are defined, by their names."""
    places = defaultdict(list)
    for path in sorted((REPO / "tests").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            fixture = any("pytest.fixture" in ast.unparse(decorator) for decorator in node.decorator_list)
            if fixture if kind == "fixture" else node.name.startswith("test_"):
                places[node.name].append(f"{path.relative_to(REPO)}:{node.lineno}")
    return places


def test_a_fixture_is_defined_once():
    """Where several files need it, conftest.py has it."""
    assert {name: places for name, places in places_of("fixture").items() if len(places) > 1} == {}


def test_no_two_tests_share_a_name():
    assert {name: places for name, places in places_of("test").items() if len(places) > 1} == {}


def test_the_functions_are_found():
    assert "digits_run" in places_of("fixture") and "test_the_functions_are_found" in places_of("test")
