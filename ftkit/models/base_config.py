"""What the config of a saved model brings along: what ftkit takes from it, sets itself, and refuses."""

import logging
from collections import Counter
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from ftkit.errors import UserError
from ftkit.tasks import task_of_config

logger = logging.getLogger(__name__)
# Set whatever the config says: these change what a model returns, or how and where it computes. A run sets the classes
# and the problem type too (`Task.config_options`), and loading the dtype. All else is the architecture, and is taken.
SET: dict[str, Any] = {
    "attn_implementation": None,  # transformers' choice for this machine
    "experts_implementation": None,
    "output_attentions": False,
    "output_hidden_states": False,  # of every layer: a pipeline and an evaluation would keep them all
    "return_dict": True,
}
# Deleted: a run says itself whether it trades time for memory; the others describe an earlier training.
DELETED = ("gradient_checkpointing", "fusion_config", "finetuning_task", "task_specific_params")
REFUSED = ("quantization_config", "compression_config")


def read_config(place: str, source: dict[str, Any], changes: dict[str, Any] | None = None) -> PreTrainedConfig:
    """The config of a saved model, with changes.

    Args:
        place: a folder or a name on the Hub.
        source: `revision` and `trust_remote_code`.
        changes: values for keys of the config.

    Raises:
        UserError: the weights are quantised.
        OSError, ValueError, …: transformers cannot read the config.
    """
    config = AutoConfig.from_pretrained(place, **source, **SET, **(changes or {}))
    for key in REFUSED:
        if how := getattr(config, key, None):
            method = how.get("quant_method", key) if isinstance(how, dict) else key
            raise UserError(
                f"model: {place} is quantised ({method}), and ftkit needs weights in full precision: take the model "
                "that it was made from, or save model.dequantize() with transformers"
            )
    for key in DELETED:
        vars(config).pop(key, None)
    return config


def set_classes(config: PreTrainedConfig, place: str, revision: str | None) -> None:
    """Let the config of a model that is used as it is name each of its classes once.

    Args:
        config: the config, from `read_config`.
        place: the folder or the name on the Hub that it is from.
        revision: the revision on the Hub.

    Raises:
        UserError: the config does not name each class, or is that of another task than ftkit's.
    """
    names, written = class_names(config), PreTrainedConfig.get_config_dict(place, revision=revision)[0]
    numbers = list(written.get("id2label") or config.id2label or {})
    if names is None or len(numbers) != len(names):
        raise UserError(
            f"model: {place} has {config.num_labels} classes, and id2label in its config.json names the numbers "
            f"{', '.join(map(str, numbers[:10]))}{', …' if len(numbers) > 10 else ''}: correct it, from 0 without gaps"
        )
    if repeated := sorted(name for name, count in Counter((config.id2label or {}).values()).items() if count > 1):
        told = [name for name in names if name.rpartition(" (")[0] in repeated]
        logger.warning("classes: %s has several classes of one name, told apart here: %s", place, ", ".join(told[:8]))
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    try:
        task_of_config(config)
    except ValueError as error:
        raise UserError(
            f"model: {place}: {error}, and ftkit gives each image one of several classes: fine-tune it first, or set "
            "problem_type to single_label_classification in its config.json if that is what it was trained for"
        ) from None


def class_names(config: PreTrainedConfig) -> list[str] | None:
    """The names of a model's classes, repeated ones with a number; None if its config does not number them from 0."""
    given: dict[Any, Any] = dict(config.id2label or {})
    if sorted(given) != list(range(len(given))):
        return None
    names: list[str] = []
    for name in (str(given[i]) for i in range(len(given))):
        number = 2
        told = name
        while told in names:
            told, number = f"{name} ({number})", number + 1
        names.append(told)
    return names


def say_dropout(config: PreTrainedConfig) -> None:
    """Log the probabilities of dropping something that a run takes from the model's config."""
    values = config.to_dict()
    values |= values.get("model_args") or {}
    numbers = {key: value for key, value in values.items() if "drop" in key and isinstance(value, float) and value}
    if numbers:
        logger.info("dropout: %s, in the model's config", ", ".join(f"{key} {v:g}" for key, v in numbers.items()))
