"""The config of a saved model: what ftkit keeps, overrides and refuses."""

import contextlib
import logging
from collections import Counter
from typing import Any

from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoConfig, PreTrainedConfig

from ftkit.errors import UserError, listed
from ftkit.tasks import task_of_config

from . import timm_models
from .loading import FULL_PRECISION

logger = logging.getLogger(__name__)
# Always overridden: these change what a model returns, or how and where it computes. `Task.config_options` sets the
# classes and the problem type, and loading the dtype. Everything else describes the architecture and is kept.
SET: dict[str, Any] = {
    "attn_implementation": None,  # transformers' choice for this machine
    "experts_implementation": None,
    "_attn_implementation": None,  # the same in files of older versions
    "_experts_implementation": None,
    "output_attentions": False,
    "output_hidden_states": False,  # of every layer, which a pipeline and an evaluation would keep in memory
    "return_dict": True,
}
# Deleted: a run sets gradient_checkpointing itself; the others describe how the model was trained.
DELETED = ("gradient_checkpointing", "fusion_config", "finetuning_task", "task_specific_params")
REFUSED = ("quantization_config", "compression_config")


def read_config(place: str, source: dict[str, Any], changes: dict[str, Any] | None = None) -> PreTrainedConfig:
    """The config of a saved model, with changes.

    Args:
        place: a folder or a name on the Hub.
        source: `revision` and `trust_remote_code`.
        changes: values for keys of the config.

    Raises:
        UserError: it is not an image classifier's, the weights are quantised, or `id2label` is no mapping from
            numbers to names.
        OSError, ValueError, …: transformers cannot read the config.
    """
    names, changes = written_names(place, source["revision"]), changes or {}
    config = AutoConfig.from_pretrained(place, **source, **SET, **changes)
    if names and timm_models.is_config(config) and "id2label" not in changes and len(names) == config.num_labels:
        config.id2label = names  # transformers takes the keys of timm's mapping for names
    own_code = "AutoModelForImageClassification" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING and not own_code:
        raise UserError(
            f"model: {place} is of the type {config.model_type}, for which transformers has no image classifier: use "
            "another model"
        )
    timm_models.keep_networks_args(config)
    inner: list[Any] = [part for name in config.sub_configs if (part := getattr(config, name)) is not None]
    for part in (config, *inner):
        own = part.__dict__
        if how := next((own[key] for key in REFUSED if own.get(key)), None):
            method = how.get("quant_method") if isinstance(how, dict) else None
            raise UserError(
                f"model: {place} is quantised ({method or how}), but ftkit needs weights in full precision: "
                f"{FULL_PRECISION}"
            )
        for key in DELETED:
            own.pop(key, None)
    for part in inner:
        part.output_attentions, part.output_hidden_states, part.return_dict = False, False, True
    return config


def set_classes(config: PreTrainedConfig, place: str, revision: str | None) -> None:
    """Make the class names in a config unique, for a model that is used as it was saved.

    Args:
        config: the config, from `read_config`.
        place: the folder or the name on the Hub that it is from.
        revision: the revision on the Hub.

    Raises:
        UserError: the config does not name each class, or belongs to a task that ftkit does not have.
    """
    names, written = class_names(config), written_names(place, revision)
    if names is None or (written is not None and len(written) != len(names)):
        numbers = listed(map(str, sorted(written or {})), most=10)
        raise UserError(
            f"model: {place} has {config.num_labels} classes, but its config.json names those with the numbers "
            f"{numbers}: correct id2label in it (label_names for timm) to name all, from 0 without gaps"
        )
    if len(names) < 2:
        raise UserError(
            f"model: {place} was saved without a head for several classes (num_labels: {len(names)}): train one with "
            "recipes/finetune.py"
        )
    given: dict[Any, Any] = dict(config.id2label or {})
    repeated = {name for name, count in Counter(given.values()).items() if count > 1}
    if numbered := [names[i] for i in range(len(names)) if given[i] in repeated]:
        logger.warning("classes: %s has several with the same name, numbered here: %s", place, ", ".join(numbered[:8]))
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    try:
        task_of_config(config)
    except ValueError:
        raise UserError(
            f"model: {place} was trained with problem_type: {config.problem_type}, but ftkit gives each image one of "
            "several classes: fine-tune it first, or correct problem_type in its config.json to "
            "single_label_classification if that is what it was trained for"
        ) from None


def written_names(place: str, revision: str | None) -> dict[int, Any] | None:
    """The class names by number in a config.json, which timm calls `label_names`; None if it has none.

    Raises:
        UserError: they are no mapping from numbers to names; timm's may be a list too.
    """
    written, _ = PreTrainedConfig.get_config_dict(place, revision=revision)
    key = "id2label" if written.get("id2label") is not None else "label_names"
    named = dict(enumerate(given)) if isinstance(given := written.get(key), list) and key != "id2label" else given
    if not named:
        return None
    if isinstance(named, dict) and not any(isinstance(name, (list, dict)) for name in named.values()):
        with contextlib.suppress(ValueError):
            return {int(number): name for number, name in named.items()}
    raise UserError(
        f"model: {key} in the config.json of {place} is {str(given)[:100]}: expected the names of the classes by "
        'their numbers, such as {"0": "ant", "1": "bee"}'
    )


def class_names(config: PreTrainedConfig) -> list[str] | None:
    """A model's class names, duplicates with a number; None if its config does not number them from 0 without gaps."""
    given: dict[Any, Any] = dict(config.id2label or {})
    if sorted(given) != list(range(len(given))):
        return None
    names: list[str] = []
    for name in (str(given[i]) for i in range(len(given))):
        number = 2
        unique = name
        while unique in names:
            unique, number = f"{name} ({number})", number + 1
        names.append(unique)
    return names


def log_dropout(config: PreTrainedConfig) -> None:
    """Log the dropout rates in the model's config, which a run keeps."""
    values = config.to_dict()
    values |= values.get("model_args") or {}
    numbers = {key: value for key, value in values.items() if "drop" in key and isinstance(value, float) and value}
    if numbers:
        logger.info("dropout: %s, in the model's config", ", ".join(f"{key} {v:g}" for key, v in numbers.items()))
