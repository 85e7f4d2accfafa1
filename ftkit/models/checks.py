"""Checks of the model names in a recipe."""

import os
from pathlib import Path

from ftkit.config import ModelArguments, local_model, weights_file
from ftkit.config.arguments.model import WEIGHTS_SUFFIXES, as_path
from ftkit.errors import nearest

OWN_MODELS = ("mlp", "convnet", "rnn")


def check(model: ModelArguments) -> list[str]:
    """Errors in `model` and `architecture`, one sentence each."""
    if weights_file(model.model) is None:
        return _check_name(model.model)
    if model.architecture is None:  # `ModelArguments.check` reports it
        return []
    return [error.replace("model:", "architecture:", 1) for error in _check_name(model.architecture)]


def check_saved(name: str) -> list[str]:
    """Errors in the name of a model that is used without training."""
    if name in OWN_MODELS and local_model(name) is None:
        return [f"model: {name} has no trained weights: give the folder of a saved model"]
    return _check_name(name)


def folder_without_config(folder: Path) -> str:
    """What is wrong with a folder that holds no config.json, and how to use what it holds."""
    holds = f"model: the folder {folder} holds no config.json"
    if (folder / "adapter_config.json").is_file():
        return f"{holds}: its adapters need the config.json of their base model, with the classes: add it"
    file = next((path for path in sorted(folder.iterdir()) if path.suffix in WEIGHTS_SUFFIXES), None)
    load = f", or, to fine-tune from {file}, --model {file} --architecture <name>" if file else ""
    return f"{holds}: expected a saved model{load}"


def _check_name(name: str) -> list[str]:
    """Errors in the name of a model; names on the Hub are not looked up."""
    path = as_path(name)
    if name in OWN_MODELS or local_model(name) is not None:
        return []
    if os.path.isdir(path):
        return [folder_without_config(path)]
    if name.startswith(("/", "./", "../", "~")) or path.suffix in WEIGHTS_SUFFIXES:
        return [f"model: the {'file' if path.suffix else 'folder'} {path} does not exist"]
    if "/" in name and not name.startswith("timm/"):
        return []

    import timm  # late: it is slow to load, and most configurations name no timm model
    from timm.models import split_model_name_tag

    architecture, _ = split_model_name_tag(name.removeprefix("timm/"))
    if name.startswith("timm/"):
        known = timm.is_model(architecture)
        hint = nearest(architecture, timm.list_models())
        return [] if known else [f"model: timm has no architecture {architecture!r}{hint}"]
    hint = f" (did you mean 'timm/{name}'?)" if timm.is_model(architecture) else nearest(name, OWN_MODELS)
    hint = hint or nearest(f"timm/{name}", [f"timm/{model}" for model in timm.list_models()])
    return [
        f"model: {name!r} is unknown{hint}: expected {', '.join(OWN_MODELS)}, timm/<architecture>, <owner>/<name> on "
        "the Hub, or a local folder"
    ]
