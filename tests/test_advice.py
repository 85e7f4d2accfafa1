"""Settings that a message recommends lead to a run: each place that recommends some is visited, and followed.

A message that recommends settings carries them as data: `UserError(…, fix={…})` or, in the configuration,
`Advice(…, {…})`. A case in `tests/advice/` is the place of one such call, `<module>:<function>` (and `#2` for the
second in the same function), with a function that prepares the situation in a folder and returns the command line of
recipes/finetune.py, or a pair of another script's name and its command line, a list. The test runs it, expects the
message from that place, applies the fix as the user would, and runs again. A function of two arguments also gets
`monkeypatch`, for a machine with less of something.
"""

import ast
import importlib
import inspect
import json
import pkgutil
import sys

import advice
import pytest
from support import REPO, load_recipe_script, train

from ftkit import errors

CASES = {
    place: case
    for module in pkgutil.iter_modules(advice.__path__)
    for place, case in importlib.import_module(f"advice.{module.name}").CASES.items()
}


def _places() -> dict[tuple[str, int], str]:
    """The name of each call that carries a fix, by its file and each of its lines."""
    found: dict[tuple[str, int], str] = {}
    for path in sorted((REPO / "ftkit").rglob("*.py")):
        module, names = ".".join(path.relative_to(REPO / "ftkit").with_suffix("").parts), []
        for function, call in _calls(ast.parse(path.read_text(encoding="utf-8")), ""):
            carries = len(call.args) > 1 or any(word.arg == "fix" for word in call.keywords)
            if ast.unparse(call.func) in ("UserError", "Advice") and carries:
                names.append(f"{module}:{function}")
                number = names.count(names[-1])
                name = names[-1] if number == 1 else f"{names[-1]}#{number}"
                found |= {(str(path), line): name for line in range(call.lineno, call.end_lineno + 1)}
    return found


def _calls(node: ast.AST, function: str):
    for child in ast.iter_child_nodes(node):
        inner = child.name if isinstance(child, (ast.FunctionDef, ast.ClassDef)) else ""
        if isinstance(child, ast.Call):
            yield function, child
        yield from _calls(child, f"{function}.{inner}".strip("."))


PLACES = _places()


@pytest.fixture
def visited(monkeypatch):
    """The places whose messages were made, in order."""
    seen = []

    def noted(make):
        def made(self, *args, **kwargs):
            frame = sys._getframe(1)
            while frame.f_code.co_filename == errors.__file__ and frame.f_back:  # a subclass of UserError
                frame = frame.f_back
            seen.append(PLACES.get((frame.f_code.co_filename, frame.f_lineno)))
            return make(self, *args, **kwargs)

        return made

    monkeypatch.setattr(errors.UserError, "__init__", noted(errors.UserError.__init__))
    monkeypatch.setattr(errors.Advice, "__new__", noted(errors.Advice.__new__))
    return seen


def _run(script: str, arguments: list[str], folder) -> None:
    if script == "finetune":
        train(folder / "run", "--report_to", "none", *arguments)
    else:
        load_recipe_script(script).main(arguments)


def _followed(arguments: list[str], fix: dict) -> list[str]:
    """The command line with the settings of `fix` instead of what it says of their keys."""
    kept: list[str] = []
    skipping = False
    for word in arguments:
        if word.startswith("--"):
            skipping = word.removeprefix("--").partition("=")[0] in fix
        if not skipping:
            kept.append(word)
    for key, value in fix.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        if value is not None:
            kept += [f"--{key}", *(v if isinstance(v, str) else json.dumps(v) for v in values)]
    return kept


@pytest.mark.parametrize("place", CASES)
def test_following_advice_leads_to_a_run(place, tmp_path, visited, monkeypatch):
    case = CASES[place]
    machine = [monkeypatch] if len(inspect.signature(case).parameters) == 2 else []
    script, arguments = "finetune", case(tmp_path, *machine)
    if arguments and isinstance(arguments[-1], list):
        script, arguments = arguments
    arguments = list(map(str, arguments))
    with pytest.raises(errors.UserError) as refusal:
        _run(script, arguments, tmp_path)
    assert place in visited, f"{refusal.value}, from {visited}"
    assert refusal.value.fix, f"no settings came with: {refusal.value}"
    _run(script, _followed(arguments, refusal.value.fix), tmp_path)


def test_each_place_that_recommends_settings_has_a_case():
    places = set(PLACES.values())
    assert not places - CASES.keys(), "these need a case in tests/advice/"
    assert not CASES.keys() - places, "these no longer recommend a setting"
