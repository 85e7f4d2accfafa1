"""Properties of every script in recipes/."""

import subprocess
import sys

import pytest
from support import REPO

HEAVY = {"torch", "transformers", "datasets"}


@pytest.mark.parametrize(
    ("script", "words", "late"),
    [
        ("predict", "--modell x y", HEAVY),
        ("predict", "--model mlp x", HEAVY),
        ("predict", "--model me/x no.png", HEAVY),
        ("demo", "--model x/ --port no", HEAVY),
        ("push", "--run x", HEAVY),
        pytest.param("finetune", "--learning_rat 1", {"timm", "evaluate", "sklearn"}, marks=pytest.mark.slow),
    ],
)
def test_a_mistake_in_the_command_line_is_reported_before_slow_libraries_load(script, words, late):
    code = f"""
import runpy, sys
sys.argv = [{script!r}, *{words.split()!r}]
try:
    runpy.run_path({str(REPO / "recipes" / f"{script}.py")!r}, run_name="__main__")
except SystemExit as end:
    assert end.code == 2, end.code
assert not {late} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "error: " in done.stderr, done.stderr
