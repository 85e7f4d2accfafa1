"""One door to each library: only `ftkit/compat/` uses private names, and the installed versions have them."""

import argparse
import ast
import atexit
import importlib
import inspect
import re
from collections.abc import Callable
from importlib.metadata import version
from types import ModuleType
from typing import Any, NamedTuple

import accelerate
import datasets
import pytest
import torch
from peft.tuners.adalora import RankAllocator
from support import REPO
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer

from ftkit.models.modeling_mlp import MLPConfig, MLPForImageClassification

LIBRARIES = ("transformers", "accelerate", "peft", "timm", "datasets", "torch")
DOORS = sorted((REPO / "ftkit/compat").glob("*.py"))
OUTSIDE = [
    path for folder in ("ftkit", "recipes") for path in sorted((REPO / folder).rglob("*.py")) if path not in DOORS
]

# Names with an underscore that are documented.
_DOCUMENTED = {
    "_asdict", "_fields", "_make", "_replace",  # of a NamedTuple
    "_exit",  # os._exit
    "_compute", "_info",  # what a metric of `evaluate` implements
    "_auto_class", "_init_weights",  # what a model of transformers sets and implements
}  # fmt: skip
# Submodules of the libraries whose documentation lists the names that ftkit imports.
_DOCUMENTED_MODULES = {
    "accelerate.utils",
    "datasets.config",
    "datasets.exceptions",
    "datasets.fingerprint",
    "peft.tuners.tuners_utils",
    "peft.utils",
    "timm.data",
    "timm.models",
    "timm.optim",
    "torch.distributed",
    "torch.distributed.tensor",
    "torch.export",
    "torch.nn",
    "torch.optim.lr_scheduler",
    "torch.optim.swa_utils",
    "torch.overrides",
    "torch.utils.data",
    "torch.utils.flop_counter",
    "transformers.activations",
    "transformers.modeling_outputs",
    "transformers.trainer_utils",
    "transformers.training_args",
    "transformers.utils",
}


class Name(NamedTuple):
    """A private or undocumented name: its door, how to reach it, and the parameters that ftkit relies on."""

    door: str
    name: str
    reach: Callable[[], Any]
    parameters: tuple[str, ...] = ()


def _of(door: str, module: str, *names: str) -> list[Name]:
    """Names of a module."""
    return [Name(door, name, lambda name=name: getattr(importlib.import_module(module), name)) for name in names]


def _of_trainer(name: str, *parameters: str) -> Name:
    return Name("trainer", name, lambda: getattr(Trainer, name), ("self", *parameters))


def _prepared_model() -> bool:
    """Whether accelerate marks a prepared model."""
    return accelerate.Accelerator(cpu=True).prepare(torch.nn.Linear(1, 1))._is_accelerate_prepared


def _loaded_model() -> PreTrainedModel:
    config = MLPConfig(image_size=2, hidden_sizes=[])
    weights = MLPForImageClassification(config).state_dict()
    return MLPForImageClassification.from_pretrained(None, config=config, state_dict=weights)


_DUE = "tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time", "learning_rate"
NAMES = [
    Name("python", "_option_string_actions", lambda: argparse.ArgumentParser()._option_string_actions["--help"]),
    Name("python", "_run_exitfuncs", lambda: atexit._run_exitfuncs),
    *_of("accelerate", "accelerate.utils.memory", "clear_device_cache", "should_reduce_batch_size"),
    Name("accelerate", "_reset_state", lambda: accelerate.state.AcceleratorState._reset_state),
    Name("accelerate", "_is_accelerate_prepared", _prepared_model),
    Name("accelerate", "base_dataloader", lambda: accelerate.data_loader.DataLoaderAdapter([0]).base_dataloader),
    Name("datasets", "_fingerprint", lambda: datasets.Dataset.from_dict({"a": [1]})._fingerprint),
    *(
        Name("peft", name, lambda name=name: getattr(RankAllocator, name), ("self", *parameters))
        for name, *parameters in (
            ("_element_score", "n"),
            ("_combine_ipt", "ipt_E", "ipt_AB"),
            ("update_ipt", "model"),
            ("mask_to_budget", "model", "budget"),
            ("mask_using_rank_pattern", "model", "rank_pattern"),
        )
    ),
    *_of("timm", "timm.data.transforms_factory", "transforms_imagenet_train"),
    *_of("timm", "timm.layers", "resample_abs_pos_embed", "resample_abs_pos_embed_nhwc"),
    *_of(
        "transformers",
        "transformers.integrations",
        "INTEGRATION_TO_CALLBACK",
        "get_available_reporting_integrations",
        "get_reporting_integration_callbacks",
        "unset_hf_deepspeed_config",
    ),
    Name("transformers", "_weight_conversions", lambda: _loaded_model()._weight_conversions),
    Name("torch", "_cdata", lambda: torch.empty(1).untyped_storage()._cdata),
    *_of("transformers", "transformers.initialization", "meta_device_safe_creation_ops", "no_init_weights"),
    Name("torch", "_iterator", lambda: DataLoader([0]).__dict__["_iterator"] is None),
    Name("torch", "_parameters", lambda: torch.nn.BatchNorm2d(1)._parameters["weight"]),
    Name("torch", "_buffers", lambda: torch.nn.BatchNorm2d(1)._buffers["running_mean"]),
    Name("torch", "_apply", lambda: torch.nn.BatchNorm2d._apply, ("self", "fn", "recurse")),
    *_of("trainer", "transformers.trainer", "OPTIMIZER_NAME_BIN", "SCHEDULER_NAME", "TRAINING_ARGS_NAME"),
    _of_trainer("_maybe_log_save_evaluate", *_DUE),
    _of_trainer("_save_checkpoint", "model", "trial"),
    _of_trainer("_save", "output_dir", "state_dict"),
    _of_trainer("_load_best_model"),
    _of_trainer("_load_from_checkpoint", "resume_from_checkpoint", "model"),
    _of_trainer("_load_optimizer_and_scheduler", "checkpoint"),
    _of_trainer("_get_grad_norm", "model", "grad_norm"),
    _of_trainer("_prepare_input", "data"),
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: f"{name.door}: {name.name}")
def test_the_installed_versions_have_the_names_that_ftkit_uses(name):
    library = {"trainer": "transformers"}.get(name.door, name.door)
    installed = f"{library} {version(library)}" if library in LIBRARIES else "this Python"
    used = f"which ftkit/compat/{name.door}.py uses: see there why"
    try:
        found = name.reach()
    except (AttributeError, ImportError, KeyError) as error:
        pytest.fail(f"{installed} no longer has {name.name}, {used} ({error})")
    assert found is not None
    if name.parameters:
        here = tuple(inspect.signature(found).parameters)
        assert here == name.parameters, f"{installed} gives {name.name} the parameters {here}, {used}"


def private(name: str) -> bool:
    return bool(re.match(r"_[^_]", name)) and name not in _DOCUMENTED


def defined(tree: ast.AST) -> set[str]:
    """The names that a file defines: functions, classes, variables, and attributes that it assigns to `self`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.add(node.attr)
    return found


def mentioned(node: ast.AST) -> list[str]:
    """The names that a node uses: attributes, imports, and attributes named by a string."""
    if isinstance(node, ast.Attribute):
        return [node.attr]
    if isinstance(node, ast.ImportFrom):
        return [*(node.module or "").split("."), *(alias.name for alias in node.names)]
    if isinstance(node, ast.Import):
        return [part for alias in node.names for part in alias.name.split(".")]
    by_text = r"(get|set|has|del)attr$|vars\(|.*__dict__"
    if isinstance(node, ast.Call) and re.match(by_text, ast.unparse(node.func)):
        return [word.value for word in node.args if isinstance(word, ast.Constant)]
    if isinstance(node, ast.Subscript) and re.match(by_text, ast.unparse(node.value)):
        return [word.value for word in ast.walk(node.slice) if isinstance(word, ast.Constant)]
    return []


def foreign(source: str) -> set[str]:
    """The private names that a file uses but does not define."""
    tree = ast.parse(source)
    found = {name for node in ast.walk(tree) for name in mentioned(node) if isinstance(name, str) and private(name)}
    return found - defined(tree)


@pytest.mark.parametrize(
    "source",
    ["x._name", "self._name", "super()._name()", "x.y._name = 1", "from a import _name", "from a._b import c",
     "import a._b", "getattr(x, '_name')", "vars(x).pop('_name', None)", "vars(x)['_name'] = 1",
     "x.__dict__['_name']"],
)  # fmt: skip
def test_private_names_are_found(source):
    assert foreign(source)


@pytest.mark.parametrize(
    "source",
    ["def _name(): ...\n_name()", "self._name = 1\nother._name", "x.__class__", "_, y = x", "x._asdict()", "'_name'"],
)
def test_own_and_documented_names_are_not_foreign(source):
    assert not foreign(source)


def test_only_doors_use_private_names():
    """ftkit's own private names are only for the module that defines them."""
    found = {str(path.relative_to(REPO)): foreign(path.read_text(encoding="utf-8")) for path in OUTSIDE}
    assert {path: names for path, names in found.items() if names} == {}


def test_only_documented_modules_are_imported_elsewhere():
    found = {}
    for path in OUTSIDE:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        taken = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
        taken |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        deep = {name for name in taken if name.partition(".")[0] in LIBRARIES and "." in name}
        found[str(path.relative_to(REPO))] = deep - _DOCUMENTED_MODULES
    assert {path: names for path, names in found.items() if names} == {}


def overrides(module: ModuleType) -> list[str]:
    """The private methods and attributes of the libraries that a module's classes override."""
    found = []
    for cls in vars(module).values():
        if inspect.isclass(cls) and cls.__module__ == module.__name__:
            bases = [base for base in cls.__mro__ if base.__module__.partition(".")[0] in LIBRARIES]
            taken = {name for base in bases for name in vars(base) if private(name)}
            found += [f"{cls.__name__}.{name}" for name in vars(cls) if name in taken]
    return found


def test_only_doors_override_private_methods():
    found = []
    for path in OUTSIDE:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        derived = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.bases]
        if any(private(name) for cls in derived for name in defined(cls)) and path.is_relative_to(REPO / "ftkit"):
            found += overrides(importlib.import_module(".".join(path.relative_to(REPO).with_suffix("").parts)))
    assert found == []


@pytest.mark.parametrize("path", DOORS, ids=lambda path: path.name)
def test_every_private_name_of_a_door_is_checked(path):
    listed, source = {name.name for name in NAMES if name.door == path.stem}, path.read_text(encoding="utf-8")
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    methods = {node.name for cls in classes for node in cls.body if isinstance(node, ast.FunctionDef)}
    assert {name for name in methods if private(name)} | foreign(source) <= listed
