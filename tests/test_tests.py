"""The tests themselves: a name means one thing, and what is private is patched for a reason."""

import ast
from collections import defaultdict
from functools import cache

import pytest
from support import REPO

# The private names that tests patch. Faults are injected; for the rest there is no public way.
PATCHED = {
    "_PATIENCE": "a step that takes long",
    "_GROUPS": "the control groups of another machine",
    "_record": "a Hub, of the tests themselves, that goes away",
    "_backward": "an operation without a deterministic version, or without memory",
    "_WITHOUT_FLOAT64": "a device that this machine does not have",
    "_LOGITS": "more logits than fit into the memory of a test",
    "_maybe_log_save_evaluate": "watched: what a step of training waits for",
    "_AUGMENTATION": "an older version of ftkit",
}


@cache
def nodes() -> list[tuple[str, ast.AST]]:
    """All nodes of the tests' code, each with its file and line."""
    files = [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted((REPO / "tests").rglob("*.py"))]
    return [
        (f"{path.relative_to(REPO)}:{getattr(node, 'lineno', 0)}", node)
        for path, tree in files
        for node in [*tree.body, *(node for node in ast.walk(tree) if isinstance(node, ast.Call))]
    ]


def repeated(kind: str) -> dict[str, list[str]]:
    """The names that several functions of a kind, `fixture` or `test`, share, and where these are."""
    places = defaultdict(list)
    for place, node in nodes():
        if isinstance(node, ast.FunctionDef):
            fixture = any("pytest.fixture" in ast.unparse(decorator) for decorator in node.decorator_list)
            if fixture if kind == "fixture" else node.name.startswith("test_"):
                places[node.name].append(place)
    assert len(places) > 50
    return {name: where for name, where in places.items() if len(where) > 1}


@pytest.mark.parametrize("kind", ["fixture", "test"])
def test_no_two_share_a_name(kind):
    """A fixture that several files need is in conftest.py."""
    assert repeated(kind) == {}


def test_private_names_are_patched_for_a_reason_alone():
    found = set()
    for _, node in nodes():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            words = [word.value for word in node.args[:2] if isinstance(word, ast.Constant)]
            names = {str(word).rpartition(".")[2] for word in words}
            found |= {name for name in names if name.startswith("_") and not name.endswith("__")}
    assert found == PATCHED.keys()
