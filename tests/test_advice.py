"""Settings that a message recommends lead to a run: each place that recommends some is visited, and followed.

A message that recommends settings carries them as data: `UserError(…, fix={…})` or, in the configuration,
`Advice(…, {…})`. A case in `tests/advice/` is the place of one such call, `<module>:<function>` (and `#2` for the
second in the same function), with a function that prepares the situation in a folder and returns the command line of
recipes/finetune.py, or a pair of another script's name and its command line, a list. The test runs it, expects the
message from that place, applies the fix as the user would, and runs again. A case may set environment variables; a
function of two arguments also gets `monkeypatch`, for a machine with less of something.

What the configuration refuses is only read again by the quick tests, and run by the slow ones.
"""

import ast
import importlib
import inspect
import json
import os
import pkgutil
import sys
from unittest import mock

import advice
import pytest
from support import REPO, load_recipe_script, train

from ftkit import errors
from ftkit.owners import parse_config

CASES = {
    place: case
    for module in pkgutil.iter_modules(advice.__path__)
    for place, case in importlib.import_module(f"advice.{module.name}").CASES.items()
}


def _places() -> tuple[dict[tuple[str, int], str], set[str]]:
    """The name of each call that carries a fix, by its file and each of its lines; and which are of `Advice`."""
    found: dict[tuple[str, int], str] = {}
    of_configuration = set()
    for path in sorted((REPO / "ftkit").rglob("*.py")):
        module, names = ".".join(path.relative_to(REPO / "ftkit").with_suffix("").parts), []
        for function, call in _calls(ast.parse(path.read_text(encoding="utf-8")), ""):
            carries = len(call.args) > 1 or any(word.arg == "fix" for word in call.keywords)
            if ast.unparse(call.func) in ("UserError", "Advice", "Unusable") and carries:
                names.append(f"{module}:{function}")
                number = names.count(names[-1])
                name = names[-1] if number == 1 else f"{names[-1]}#{number}"
                if ast.unparse(call.func) == "Advice":
                    of_configuration.add(name)
                found |= {(str(path), line): name for line in range(call.lineno, call.end_lineno + 1)}
    return found, of_configuration


def _calls(node: ast.AST, function: str):
    for child in ast.iter_child_nodes(node):
        inner = child.name if isinstance(child, (ast.FunctionDef, ast.ClassDef)) else ""
        if isinstance(child, ast.Call):
            yield function, child
        yield from _calls(child, f"{function}.{inner}".strip("."))


PLACES, OF_CONFIGURATION = _places()


@pytest.fixture
def visited(monkeypatch):
    """The places whose messages were made, in order."""
    seen = []

    def noted(make):
        def made(self, *args, **kwargs):
            frame = sys._getframe(1)
            while isinstance(frame.f_locals.get("self"), errors.UserError) and frame.f_back:  # of a subclass
                frame = frame.f_back
            seen.append(PLACES.get((frame.f_code.co_filename, frame.f_lineno)))
            return make(self, *args, **kwargs)

        return made

    monkeypatch.setattr(errors.UserError, "__init__", noted(errors.UserError.__init__))
    monkeypatch.setattr(errors.Advice, "__new__", noted(errors.Advice.__new__))
    return seen


def _run(script: str, arguments: list[str]) -> None:
    if script == "finetune":
        train(arguments[arguments.index("--output_dir") + 1], *arguments)
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
        several = isinstance(value, list) and not any(isinstance(item, dict) for item in value)
        values = value if several else [value]
        if value is not None:
            kept += [f"--{key}", *(v if isinstance(v, str) else json.dumps(v) for v in values)]
    return kept


def _follow(place, folder, visited, run) -> None:
    """Prepare the case of a place, and follow its advice; `run` is called with a script's name and command line."""
    case = CASES[place]
    with mock.patch.dict(os.environ), pytest.MonkeyPatch.context() as machine:
        own = [machine] if len(inspect.signature(case).parameters) == 2 else []
        script, arguments = "finetune", case(folder, *own)
        if arguments and isinstance(arguments[-1], list):
            script, arguments = arguments
        elif "--output_dir" not in arguments:
            arguments = [*arguments, "--output_dir", folder / "run"]
        arguments = list(map(str, arguments))
        with pytest.raises(errors.UserError) as refusal:
            run(script, arguments)
        assert place in visited, f"{refusal.value}, from {visited}"
        assert refusal.value.fix, f"no settings came with: {refusal.value}"
        run(script, _followed(arguments, refusal.value.fix))


@pytest.mark.parametrize("place", CASES)
def test_following_advice_is_accepted(place, tmp_path, visited):
    def run(script, arguments):
        if place in OF_CONFIGURATION:
            parse_config(arguments)
        else:
            _run(script, arguments)

    _follow(place, tmp_path, visited, run)


@pytest.mark.slow
@pytest.mark.parametrize("place", [place for place in CASES if place in OF_CONFIGURATION - advice.ELSEWHERE.keys()])
def test_following_advice_on_the_configuration_leads_to_a_run(place, tmp_path, visited):
    _follow(place, tmp_path, visited, _run)


def test_each_place_that_recommends_settings_has_a_case():
    places = set(PLACES.values())
    assert not places - CASES.keys() - advice.ELSEWHERE.keys(), "these need a case in tests/advice/"
    assert not (CASES.keys() | advice.ELSEWHERE.keys()) - places, "these no longer recommend a setting"
