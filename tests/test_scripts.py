"""Properties of every script in recipes/."""

import subprocess
import sys

import pytest
from support import REPO


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("predict", "--modell x y"),
        ("predict", "--model mlp x"),
        ("predict", "--model me/x no.png"),
        ("demo", "--model x/ --port no"),
        ("push", "--run x"),
    ],
)
def test_a_mistake_in_the_command_line_is_reported_before_torch_loads(script, words):
    code = f"""
import runpy, sys
sys.argv = [{script!r}, *{words.split()!r}]
try:
    runpy.run_path({str(REPO / "recipes" / f"{script}.py")!r}, run_name="__main__")
except SystemExit as end:
    assert end.code == 2, end.code
assert not {{"torch", "transformers", "datasets"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "error: " in done.stderr, done.stderr
