"""What holds for the repository as a whole: the road of imports, the recipes, every command that is written down."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml
from support import REPO, TEXTS, load_recipe_script

from ftkit.config import EvaluationArguments, ModelArguments
from ftkit.owners import parse_config, parse_evaluation
from ftkit.tasks.single_label.metrics import METRICS

# A module may import what stands before it, and what stands in its own place.
ROAD = [
    "compat",
    "errors",
    "files",
    "places",
    "memory",
    "signals",
    "precision",
    "statistics",
    "config",
    "console",
    "tasks",
    "data",
    "models",
    "methods",
    "training",
    "owners",
    "evaluation",
    "hub",
    "export",
    "demo",
    "run",
]
MODULES = sorted((REPO / "ftkit").rglob("*.py"))
YAMLS = sorted((REPO / "recipes").rglob("*.yaml"))
DEFAULT_RECIPE = load_recipe_script("finetune").DEFAULT_RECIPE
SCRIPTS = sorted((REPO / "recipes").glob("*.py"))
BENCHMARKS = sorted((REPO / "recipes" / "benchmarks").glob("*.py"))


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


# Of its image processors the data must know too how to resize without normalising; models come after it on the road.
_KNOW_TIMMS_WRAPPER = {"ftkit/models/timm_models.py", "ftkit/data/pixels/normalize.py"}


def test_one_module_knows_what_transformers_makes_of_timms_models():
    found = {str(path.relative_to(REPO)) for path in MODULES if "TimmWrapper" in path.read_text(encoding="utf-8")}
    assert found <= _KNOW_TIMMS_WRAPPER


def test_weights_of_classifiers_are_loaded_in_one_place():
    """So that whatever is checked of what was loaded is checked always; hub/ loads as those do who have no ftkit."""
    calls = [
        str(path.relative_to(REPO))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "AutoModelForImageClassification.from_pretrained"
        and "hub" not in path.parts
    ]
    assert calls == ["ftkit/models/loading.py"]


@pytest.mark.parametrize("path", sorted((REPO / "ftkit/models").glob("modeling_*.py")), ids=lambda path: path.name)
def test_modeling_files_travel_alone(path):
    known = {"torch", "transformers", "itertools", ".channels"}
    assert {name if name.startswith(".") else name.split(".")[0] for name in imports(path)} <= known


# Where bytes of others could become code, and why they do not.
_UNPICKLES = {
    "ftkit/data/sources/raw.py": "an unpickler that knows arrays alone",
    "ftkit/models/loading.py": "the error's name",
}
_RUNS_CODE = {"eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "marshal.loads", "dill.load",
              "joblib.load", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load"}  # fmt: skip
_UNPICKLERS = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}


def unsafe(source: str) -> list[str]:
    """What in a file would run what others wrote, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: imports {name}" for name in names if name.split(".")[0] in _UNPICKLERS]
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        bad = (
            name in _RUNS_CODE
            or (name == "torch.load" and given.get("weights_only") != "True")
            or (name in ("yaml.load", "yaml.load_all") and given.get("Loader") not in ("_Loader", "yaml.SafeLoader"))
            or (name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False")
            or given.get("shell", "False") != "False"
            or (given.get("trust_remote_code") == "True")
            or (name.endswith("extractall") and given.get("filter") != "'data'")
        )
        found += [f"{node.lineno}: {ast.unparse(node)}"] if bad else []
    return found


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import load", "eval(x)", "torch.load(f)", "torch.load(f, weights_only=False)",
     "yaml.load(f, Loader=yaml.Loader)", "np.load(f, allow_pickle=True)", "run(x, shell=True)",
     "AutoModel.from_pretrained(x, trust_remote_code=True)", "tar.extractall(x)"],
)  # fmt: skip
def test_what_would_run_other_peoples_code_is_found(source):
    assert unsafe(source)


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS, *BENCHMARKS], ids=lambda path: str(path.relative_to(REPO)))
def test_nothing_runs_other_peoples_code(path):
    found = unsafe(path.read_text(encoding="utf-8"))
    if str(path.relative_to(REPO)) in _UNPICKLES:
        found = [line for line in found if not line.endswith("imports pickle")]
    assert found == []


def test_code_of_others_runs_only_where_it_is_asked_for():
    assert EvaluationArguments.__dataclass_fields__["trust_remote_code"].default is False
    assert ModelArguments.__dataclass_fields__["trust_remote_code"].default is False


def _without_variables(words: list[str]) -> list[str]:
    """`$NODE_RANK` and its like as a shell would give them."""
    return ["0" if word.startswith("$") else word for word in words]


def written_commands() -> list[tuple[str, list[str]]]:
    """`(where, words)` of every line that launches a recipe: in README, guides, docstrings and heads of recipes."""
    found = []
    for path in [*TEXTS, *SCRIPTS, *YAMLS, *sorted((REPO / "accelerate_configs").glob("*.yaml"))]:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            line = re.sub(r"^srun bash -c '.*exec (.*)'$", r"\1", line.lstrip("# "))
            match = re.search(r"(?:^|&& |`)((?:accelerate launch|python) [^`&|]*recipes/\w+\.py[^`&|]*)", line)
            if match:
                found.append((str(path.relative_to(REPO)), shlex.split(match[1])))
    return found


@pytest.mark.parametrize(("where", "words"), written_commands(), ids=lambda value: " ".join(value)[:90])
def test_every_command_that_is_written_down_is_understood(where, words, monkeypatch):
    monkeypatch.chdir(REPO)
    monkeypatch.delenv("FTKIT_DATA_DIR", raising=False)
    place = next(i for i, word in enumerate(words) if re.fullmatch(r".*recipes/\w+\.py", word))
    script, arguments = Path(words[place]).name, words[place + 1 :]
    if words[0] == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        launch = launch_command_parser().parse_args([*_without_variables(words[2:place]), words[place]])
        assert launch.config_file is None or Path(launch.config_file).is_file()
    assert Path(words[place]).is_file(), f"{where} names {words[place]}"
    if "--help" in arguments:
        with pytest.raises(SystemExit, match="0"):
            load_recipe_script(script.removesuffix(".py")).main(arguments)
    elif script == "finetune.py":
        parse_config(arguments, DEFAULT_RECIPE)
    elif script == "eval.py":
        if "--data_dir" not in arguments and "--dataset" not in arguments:
            arguments = [*arguments, "--dataset", "digits"]  # the run that it names is not there
        parse_evaluation(arguments)
    else:
        load_recipe_script(script.removesuffix(".py")).parse_arguments(arguments)


def test_the_readme_and_every_recipe_name_a_command():
    where = [place for place, _ in written_commands()]
    for path in [REPO / "README.md", *SCRIPTS, *YAMLS]:
        assert str(path.relative_to(REPO)) in where, f"{path} gives no launch command"


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_a_recipe_gives_its_own_command_and_measured_result(path):
    head = path.read_text(encoding="utf-8").split("\ndataset:")[0]
    assert all(line.startswith("#") for line in head.splitlines() if line)
    assert f"recipes/{path.relative_to(REPO / 'recipes')}" in head or path == DEFAULT_RECIPE
    assert re.search(r"test accuracy 0\.\d{4} ± 0\.\d{4} \(\d+ seeds|test accuracy 0\.\d{4} \(1 seed", head)


LAUNCH = {
    "cpu": "NO", "single_gpu": "NO", "multi_gpu": "MULTI_GPU", "multi_node": "MULTI_GPU", "fsdp": "FSDP",
    "deepspeed_zero2": "DEEPSPEED", "deepspeed_zero3": "DEEPSPEED",
}  # fmt: skip


@pytest.mark.parametrize("name", LAUNCH)
def test_launch_configurations_load(name):
    """As the launcher reads them, and hands them to the processes."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    path = REPO / "accelerate_configs" / f"{name}.yaml"
    config, written = load_config_from_file(str(path)), yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config.num_processes == written["num_processes"] and config.num_machines == written["num_machines"]
    assert config.use_cpu == (name == "cpu") and str(config.distributed_type.value) == LAUNCH[name]
    assert config.mixed_precision == ("no" if name == "cpu" else "bf16")
    if LAUNCH[name] not in ("FSDP", "DEEPSPEED"):
        return
    words = ["--config_file", str(path), "recipes/finetune.py"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    if name == "fsdp":
        given = prepare_multi_gpu_env(args)
        assert given["ACCELERATE_USE_FSDP"] == "true" and given["FSDP_VERSION"] == "2"
        assert given["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    else:
        args.deepspeed_fields_from_accelerate_config = ",".join(written["deepspeed_config"])  # where it is installed
        _, given = prepare_deepspeed_cmd_env(args)
        assert given["ACCELERATE_USE_DEEPSPEED"] == "true"
        assert given["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == name[-1]


def test_every_launch_configuration_is_tested():
    assert {path.stem for path in (REPO / "accelerate_configs").glob("*.yaml")} == LAUNCH.keys()


# What a right answer is, is known in tasks/ alone. `statistics/` computes with arrays, whatever they mean.
_KNOWS_ANSWERS = {
    "softmax", "log_softmax", "Softmax", "logsumexp", "argmax", "topk", "one_hot", "sigmoid", "cross_entropy",
    "CrossEntropyLoss", "nll_loss", "binary_cross_entropy_with_logits", "BCEWithLogitsLoss", "mse_loss",
}  # fmt: skip
_TASK_NAMES = {"single_label", "multi_label", "regression"}


def knows_a_task(source: str) -> list[str]:
    """What in a file computes an answer or a loss from logits, or asks which task it has, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            bad = node.attr in _KNOWS_ANSWERS
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bad = any(alias.name in _KNOWS_ANSWERS for alias in node.names)
        elif isinstance(node, ast.Constant):
            bad = isinstance(node.value, str) and node.value in _TASK_NAMES | METRICS.keys()
        elif isinstance(node, ast.Call):
            bad = ast.unparse(node.func) in ("isinstance", "issubclass") and "SingleLabel" in ast.unparse(node)
        elif isinstance(node, ast.Compare):
            bad = "SingleLabel" in ast.unparse(node)
        else:
            continue
        found += [f"{node.lineno}: {ast.unparse(node)}"] if bad else []
    return found


@pytest.mark.parametrize(
    "source",
    ["logits.argmax(1)", "F.cross_entropy(a, b)", "from scipy.special import softmax", "x = metrics['accuracy']",
     "isinstance(task, SingleLabel)", "type(task) is SingleLabel", "task.name == 'single_label'"],
)  # fmt: skip
def test_what_knows_a_task_is_found(source):
    assert knows_a_task(source)


OUTSIDE_TASKS = [path for path in MODULES if path.relative_to(REPO / "ftkit").parts[0] not in ("tasks", "statistics")]


@pytest.mark.parametrize("path", OUTSIDE_TASKS, ids=lambda path: str(path.relative_to(REPO)))
def test_only_tasks_know_what_a_right_answer_is(path):
    assert knows_a_task(path.read_text(encoding="utf-8")) == []
