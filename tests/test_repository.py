"""What holds for the repository as a whole: the road of imports, the recipes, every command that is written down."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml
from support import REPO, load_recipe_script

from ftkit.config import parse_config, parse_evaluation

# A module may import what stands before it, and what stands in its own place.
ROAD = [
    "errors",
    "signals",
    "arguments",
    "settings",
    "config",
    "console",
    "data",
    "models",
    "methods",
    "training",
    "evaluation",
    "hub",
    "export",
    "demo",
]
MODULES = sorted((REPO / "ftkit").rglob("*.py"))
YAMLS = sorted((REPO / "recipes").rglob("*.yaml"))
DEFAULT_RECIPE = load_recipe_script("finetune").DEFAULT_RECIPE
SCRIPTS = sorted((REPO / "recipes").glob("*.py"))


def imports(path: Path) -> set[str]:
    """The modules that a file imports, absolute names; relative ones keep their dots."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPO)))
def test_data_flows_one_way(path):
    places = path.relative_to(REPO / "ftkit").with_suffix("").parts
    if places[0] == "__init__":
        return
    allowed = ROAD[: ROAD.index(places[0]) + 1]
    taken = {name.split(".")[1] for name in imports(path) if name.startswith("ftkit.")}
    assert taken <= set(allowed), f"{path.name} imports {taken - set(allowed)}, which stand after it on the road"


@pytest.mark.parametrize("path", sorted((REPO / "ftkit/models").glob("modeling_*.py")), ids=lambda path: path.name)
def test_modeling_files_travel_alone(path):
    known = {"torch", "transformers", "difflib", "itertools", "math", ".channels"}
    assert {name if name.startswith(".") else name.split(".")[0] for name in imports(path)} <= known


def written_commands() -> list[tuple[str, list[str]]]:
    """`(where, words)` of every line that launches a recipe: in the README, in docstrings, at the head of recipes."""
    found = []
    for path in [REPO / "README.md", *SCRIPTS, *YAMLS, *sorted((REPO / "accelerate_configs").glob("*.yaml"))]:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            match = re.search(
                r"(?:^|&& |`)((?:accelerate launch|python) [^`&|]*recipes/\w+\.py[^`&|]*)", line.lstrip("# ")
            )
            if match:
                found.append((path.name, shlex.split(match[1])))
    return found


@pytest.mark.parametrize(("where", "words"), written_commands(), ids=lambda value: " ".join(value)[:90])
def test_every_command_that_is_written_down_is_understood(where, words, monkeypatch):
    monkeypatch.chdir(REPO)
    monkeypatch.delenv("FTKIT_DATA_DIR", raising=False)
    place = next(i for i, word in enumerate(words) if re.fullmatch(r".*recipes/\w+\.py", word))
    script, arguments = Path(words[place]).name, words[place + 1 :]
    if words[0] == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        launch = launch_command_parser().parse_args([*words[2:place], words[place]])
        assert launch.config_file is None or Path(launch.config_file).is_file()
    assert Path(words[place]).is_file(), f"{where} names {words[place]}"
    if "--help" in arguments:
        with pytest.raises(SystemExit, match="0"):
            load_recipe_script(script.removesuffix(".py")).main(arguments)
    elif script == "finetune.py":
        parse_config(arguments, DEFAULT_RECIPE)
    elif script == "evaluate.py":
        if "--data_dir" not in arguments and "--dataset" not in arguments:
            arguments = [*arguments, "--dataset", "digits"]  # the run that it names is not there
        parse_evaluation(arguments)
    else:
        load_recipe_script(script.removesuffix(".py")).parse_arguments(arguments)


def test_the_readme_and_every_recipe_name_a_command():
    where = [place for place, _ in written_commands()]
    for path in [REPO / "README.md", *SCRIPTS, *YAMLS]:
        assert path.name in where, f"{path} gives no launch command"


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_a_recipe_gives_its_own_command_and_measured_result(path):
    head = path.read_text(encoding="utf-8").split("\ndataset:")[0]
    assert all(line.startswith("#") for line in head.splitlines() if line)
    assert f"recipes/{path.relative_to(REPO / 'recipes')}" in head or path == DEFAULT_RECIPE
    assert re.search(r"test accuracy 0\.\d{4} ± 0\.\d{4} \(\d+ seeds|test accuracy 0\.\d{4} \(1 seed", head)


@pytest.mark.parametrize("path", sorted((REPO / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.name)
def test_launch_configurations_load(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config.num_processes == written["num_processes"]
    assert config.use_cpu == (path.name == "cpu.yaml")
    assert str(config.distributed_type.value) == ("MULTI_GPU" if path.name == "multi_gpu.yaml" else "NO")
