"""What can train is one table: nothing else in ftkit knows the forms of `train`."""

import ast

import pytest
from support import REPO

from ftkit.methods.trainable import KINDS, check_train, kind_of, stage_name

# For each kind that is no word: a value of `train`, and the name of its stage.
FORMS = {
    "a mapping `last: n`": ({"last": 2}, "last-2"),
    "a list of module names": (["stem", "stages.*"], "chosen"),
}
UNKNOWN = ["heads", "", None, 3, [], ["stem", 1], {"last": 0}, {"last": True}, {"last": 1, "first": 1}, {"first": 1}]
WORDS = {kind.written for kind in KINDS if kind.fits is None}


EXAMPLES = {word: word for word in WORDS} | {written: train for written, (train, _) in FORMS.items()}


def test_every_kind_has_one_row():
    assert [kind.written for kind in KINDS if kind.written not in WORDS] == list(FORMS), "a new form needs an example"
    assert {kind_of(train).written: train for train in EXAMPLES.values()} == EXAMPLES


@pytest.mark.parametrize("train", UNKNOWN, ids=str)
def test_other_values_are_refused_with_the_valid_ones(train):
    *some, last = (kind.written for kind in KINDS)
    assert check_train(train, has_adapters=False) == f"{train!r} is not one of {', '.join(some)}, or {last}"


def test_stages_are_named_by_what_trains():
    assert {word: stage_name(word) for word in WORDS} == {word: word for word in WORDS}
    assert [stage_name(train) for train, _ in FORMS.values()] == [name for _, name in FORMS.values()]


def test_only_what_is_saved_with_adapters_trains_beside_them():
    beside = {written for written, train in EXAMPLES.items() if check_train(train, has_adapters=True) is None}
    alone = {written for written, train in EXAMPLES.items() if check_train(train, has_adapters=False) is None}
    assert beside == {kind.written for kind in KINDS if kind.saved_with_adapters} >= {"head", "adapters"}
    assert alone == {kind.written for kind in KINDS if not kind.needs_adapters} >= {"head", "all"}
    assert "expected head or adapters" in check_train("all", has_adapters=True)
    assert "needs a method that adds them" in check_train("adapters", has_adapters=False)


def comparisons(source: str) -> list[str]:
    """The lines of a file that compare the value of `train` with one of its forms."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            written = WORDS & {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            operands, written = node.args[:1], True
        elif isinstance(node, ast.Match):
            operands, written = [node.subject], True
        else:
            continue
        if written and any(ast.unparse(operand).endswith(("train", "['train']")) for operand in operands):
            found.append(f"{node.lineno}: {ast.unparse(node)[:80]}")
    return found


@pytest.mark.parametrize(
    "source",
    ['stage.train == "head"', 'train not in ("bias", "norm")', 'stage["train"] == "all"', "isinstance(train, dict)",
     'match train:\n  case "all": pass'],
)  # fmt: skip
def test_a_comparison_is_found(source):
    assert comparisons(source)


def test_no_other_module_compares_what_trains():
    found = {
        place: comparisons(path.read_text(encoding="utf-8"))
        for path in sorted([*(REPO / "ftkit").rglob("*.py"), *(REPO / "recipes").rglob("*.py")])
        if (place := str(path.relative_to(REPO))) != "ftkit/methods/trainable.py"
    }
    assert {place: lines for place, lines in found.items() if lines} == {}
