"""A model's name -> the model and its image processor, with the head that the data's classes need."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import timm
import torch
from peft import PeftConfig, PeftModel
from timm.models import PretrainedCfg, split_model_name_tag
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTImageProcessor,
)
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor
from transformers.utils.peft_utils import find_adapter_config_file

from ftkit.config import ModelArguments, local_model, weights_file
from ftkit.data.feeding.tensors import Images
from ftkit.data.pixels.images import ImageInfo
from ftkit.data.pixels.normalize import Normalize8Bit, channel_statistics
from ftkit.data.sources.remote import from_hub
from ftkit.errors import UserError, nearest
from ftkit.models.checks import OWN_MODELS
from ftkit.tasks import SingleLabel, Task

from . import ConvNetConfig, ConvNetForImageClassification, MLPConfig, RNNConfig
from .anatomy import find_head
from .weights import load_weights

logger = logging.getLogger(__name__)
_OWN_CONFIGS = dict(zip(OWN_MODELS, (MLPConfig, ConvNetConfig, RNNConfig), strict=True))
_LOCAL_FIX = "give --model the folder of a saved model"


def build_model(
    args: ModelArguments, class_names: list[str], images: ImageInfo, pretrained: bool
) -> tuple[PreTrainedModel, Any]:
    """Build or load a classifier for `class_names`.

    Args:
        args: `model` is one of ftkit's own, `timm/<architecture>`, a name on the Hub, a local folder, or a file of
            weights for `architecture`.
        class_names: in the order of the data's labels; they go into the model's config.
        images: size and channels of the data, for models that have no size of their own.
        pretrained: load trained weights, with a new head where the classes differ; otherwise only the architecture is
            taken, and the weights are random.

    Returns:
        The model on the CPU, and the image processor that is saved with it. A processor made here for random weights
        does not know the data's mean and standard deviation yet: see `fit_normalization`.

    Raises:
        UserError: the model takes other arguments, or cannot be loaded.
    """
    labels = {
        "num_labels": len(class_names),
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: i for i, name in enumerate(class_names)},
    }
    file, folder = weights_file(args.model), local_model(args.model)
    if file is not None:
        named = dataclasses.replace(args, model=args.architecture, architecture=None)
        model, processor = build_model(named, class_names, images, pretrained=False)
        load_weights(model, file)
        return model, processor
    if folder is None and args.model in _OWN_CONFIGS:
        return _own_model(args, labels, images)
    if folder is None and args.model.startswith("timm/") and not pretrained:
        return _timm_from_scratch(args, labels, images)
    return _from_config_or_weights(args, str(folder or _hub_name(args.model)), folder is not None, labels, pretrained)


def load_model(
    model: str, revision: str | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, Any]:
    """Load a saved classifier, in float32, and its image processor, from a folder (a run's too) or the Hub.

    Where adapters lie there, they are put into the model that they belong to.

    Raises:
        UserError: there is no such model, or it cannot be loaded.
    """
    folder = local_model(model)
    name, options = str(folder or model), {"revision": revision, "trust_remote_code": trust_remote_code}

    def load() -> tuple[PreTrainedModel, Any]:
        if find_adapter_config_file(name, revision=revision) is not None:
            classifier = _with_adapters(name, **options)
        else:
            classifier = AutoModelForImageClassification.from_pretrained(name, dtype=torch.float32, **options)
        return classifier, AutoImageProcessor.from_pretrained(name, **options)

    return _load(load, name, folder is not None)


def _with_adapters(name: str, revision: str | None, trust_remote_code: bool) -> PeftModel:
    """The model that the adapters in a folder or on the Hub belong to, with them in it; the head is theirs."""
    adapters = PeftConfig.from_pretrained(name, revision=revision)
    base = adapters.base_model_name_or_path
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise UserError(
            f"model: {name} holds adapters of the model in {base}, which is not there: bring it back, or write its "
            f"new place into base_model_name_or_path of its adapter_config.json"
        )
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    model = AutoModelForImageClassification.from_pretrained(
        base,
        config=config,
        revision=adapters.revision,
        ignore_mismatched_sizes=True,
        dtype=torch.float32,
        trust_remote_code=trust_remote_code,
    )
    return PeftModel.from_pretrained(model, name, revision=revision)


def fit_normalization(
    args: ModelArguments, model: PreTrainedModel, processor: Any, train: Images, pretrained: bool
) -> Any:
    """The processor with the mean and standard deviation of the run: as given, else of trained weights, else measured.

    Args:
        train: measured where nothing else says what to take.
    """
    if args.image_mean is not None:
        return _set_normalization(model, processor, args.image_mean, args.image_std)
    known = pretrained and weights_file(args.model) is None
    return processor if known else _set_normalization(model, processor, *channel_statistics(train.histogram()))


def fit_first_layer(model: PreTrainedModel, normalize: Normalize8Bit, train: Images, pretrained: bool) -> None:
    """Fit a first layer that takes its random weights from the data, on 5,000 images at most."""
    if isinstance(model, ConvNetForImageClassification) and not pretrained:
        model.fit_first_layer(normalize(train.sample(5000)))


def _set_normalization(model: PreTrainedModel, processor: Any, mean: list[float], std: list[float]) -> Any:
    """One number is spread over three channels, because a plain `pipeline` feeds RGB."""
    mean, std = (list(values) * (3 // len(values)) for values in (mean, std))
    if isinstance(processor, TimmWrapperImageProcessor):
        # timm keeps it in the model's config.
        model.config.pretrained_cfg = {**model.config.pretrained_cfg, "mean": mean, "std": std}
        return TimmWrapperImageProcessor(model.config.pretrained_cfg, architecture=model.config.architecture)
    processor.image_mean, processor.image_std = mean, std
    return processor


def save_model(model: PreTrainedModel | PeftModel, processor: Any, folder: Path) -> None:
    """Save what `from_pretrained` and `pipeline` load: weights (safetensors), config, image processor.

    Of a model with adapters these are the adapters and the head, beside the config of the whole model.
    """
    model.save_pretrained(folder)
    if isinstance(model, PeftModel):
        model.get_base_model().config.save_pretrained(folder)
        (folder / "README.md").unlink()  # PEFT's is a form to be filled in
    if not isinstance(processor, TimmWrapperImageProcessor):  # that one lives in config.json
        processor.save_pretrained(folder)


def class_names(model: PreTrainedModel) -> list[str]:
    """The names of the model's classes, in the order of its logits."""
    return [model.config.id2label[i] for i in range(model.config.num_labels)]


def model_task(model: PreTrainedModel) -> Task:
    """What the model was trained for."""
    return SingleLabel(class_names(model))


def model_channels(model: PreTrainedModel) -> int:
    """How many channels `pixel_values` must have: 1 or 3."""
    if isinstance(model.config, TimmWrapperConfig):
        return (model.config.model_args or {}).get("in_chans", 3)
    return getattr(model.config, "num_channels", 3)


def _side(args: ModelArguments, images: ImageInfo, otherwise: int) -> tuple[int, int]:
    """Height and width: as asked for, else those of the data, else `otherwise`."""
    if args.image_size:
        return (args.image_size[0], args.image_size[-1])
    if images.size is None:
        logger.info("the images differ in size: they are brought to %d x %d (set image_size)", otherwise, otherwise)
    return images.size or (otherwise, otherwise)


def _check_keys(args: ModelArguments, valid: list[str]) -> None:
    for key in args.model_args or {}:
        if key not in valid:
            raise UserError(f"model_args: {args.model} has no {key!r}{nearest(key, valid)}: {', '.join(valid)}")


def _own_model(args: ModelArguments, labels: dict, images: ImageInfo) -> tuple[PreTrainedModel, Any]:
    config_class = _OWN_CONFIGS[args.model]
    inherited = {field.name for field in dataclasses.fields(config_class.__mro__[1])}
    fields = [field.name for field in dataclasses.fields(config_class) if field.name not in inherited]
    _check_keys(args, fields)
    height, width = _side(args, images, otherwise=64)
    settings: dict[str, Any] = {"num_channels": images.channels}
    if "image_size" in fields:
        settings["image_size"] = [height, width]
    if args.dropout is not None:
        settings["dropout"] = args.dropout
    try:
        config = config_class(**{**settings, **(args.model_args or {})}, **labels)
    except ValueError as error:
        raise UserError(f"model_args: {error}") from None
    model = AutoModelForImageClassification.from_config(config)
    processor = ViTImageProcessor(size={"height": height, "width": width}, do_convert_rgb=True)
    return model, processor


def base_model(name: str) -> str | None:
    """The name on the Hub of a model that a run starts from; None for a folder or a file."""
    return None if local_model(name) is not None or weights_file(name) is not None else _hub_name(name)


def _hub_name(name: str) -> str:
    """timm's weights are on the Hub by architecture and tag; without a tag, timm's own choice."""
    if not name.startswith("timm/") or "." in name:
        return name
    default = timm.get_pretrained_cfg(name.removeprefix("timm/"))
    if default is None or not default.tag:
        raise UserError(
            f"model: timm has no trained weights of {name!r}: use method: scratch, or another architecture"
        )
    return f"{name}.{default.tag}"


def _timm_from_scratch(args: ModelArguments, labels: dict, images: ImageInfo) -> tuple[PreTrainedModel, Any]:
    """A timm architecture with random weights, for three channels: `pipeline` feeds no others."""
    architecture, _ = split_model_name_tag(args.model.removeprefix("timm/"))
    default = timm.get_pretrained_cfg(architecture) or PretrainedCfg()
    model_args = dict(args.model_args or {})
    height, width = _side(args, images, otherwise=default.input_size[-1])
    if default.fixed_input_size:
        model_args.setdefault("img_size", [height, width])
    if args.dropout is not None:
        model_args["drop_rate"] = args.dropout
    preprocessing = {
        "input_size": [3, height, width],
        "mean": list(default.mean),
        "std": list(default.std),
        "interpolation": default.interpolation,
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    config = TimmWrapperConfig(
        architecture=architecture, model_args=model_args or None, pretrained_cfg=preprocessing, **labels
    )
    try:
        model = TimmWrapperForImageClassification(config)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"model: timm cannot build {architecture} with {model_args}: {error}") from error
    # The weights are transformers' own, N(0, 0.02): resnet18 learned faster from them than from timm's (53% against
    # 43% with SGD, 54% against 49% with AdamW, on validation after 4 epochs of 5,000 CIFAR-10 images, one seed each).
    model.config.label_names = list(labels["id2label"].values())
    return model, TimmWrapperImageProcessor(preprocessing, architecture=architecture)


def _fit_head(model: PreTrainedModel, old: list[str], new: list[str]) -> None:
    """Make the loaded head mean the classes `new`, by name.

    Another number of classes has given a new head already; as many under other names would keep the old one.
    """
    if old == new:
        logger.info("head: kept, the classes are the same")
    elif sorted(old) == sorted(new):
        _, head = find_head(model)
        rows = torch.tensor([old.index(name) for name in new])
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.copy_(parameter[rows].clone())
        logger.info("head: kept, its rows brought into the order of the data's classes")
    else:
        if len(old) == len(new):
            find_head(model)[1].reset_parameters()
        logger.info("head: new, the classes differ from the %d that the model knew", len(old))


def _load(load, name: str, local: bool) -> Any:
    if not local:
        return from_hub(load, what=f"model {name} (there is no such folder)", fix=_LOCAL_FIX)
    try:
        return load()
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, TypeError) as error:
        raise UserError(f"model: {name} cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def _from_config_or_weights(
    args: ModelArguments, name: str, local: bool, labels: dict, pretrained: bool
) -> tuple[PreTrainedModel, Any]:
    if local and (Path(name) / "adapter_config.json").is_file():
        raise UserError(
            f"model: {name} holds adapters, not a whole model: fine-tune what they belong to, or make them a part "
            "of it with --merge_adapters true when they are trained"
        )
    if args.image_size:
        raise UserError(f"image_size: {name} has its own, in its image processor: leave it out")
    source = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    config = _load(lambda: AutoConfig.from_pretrained(name, **source), name, local)
    is_timm = isinstance(config, TimmWrapperConfig)
    overrides = dict(args.model_args or {})
    if not is_timm:
        _check_keys(args, sorted(config.to_dict()))
    if args.dropout is not None:
        key = next((key for key in ("dropout", "hidden_dropout_prob", "dropout_rate") if hasattr(config, key)), None)
        if is_timm:
            overrides["drop_rate"] = args.dropout
        elif key is None:
            raise UserError(
                f"dropout: the config of {name} has no known dropout: set it by its own name in model_args"
            )
        else:
            overrides[key] = args.dropout
    if is_timm and overrides:
        overrides = {"model_args": {**(config.model_args or {}), **overrides}}
    old_names = [config.id2label[i] for i in sorted(config.id2label)]
    if pretrained:
        # Small updates vanish in weights of 16 bits, in which many a base is saved.
        options = {**source, **overrides, **labels, "ignore_mismatched_sizes": True, "dtype": torch.float32}
        model = _load(lambda: AutoModelForImageClassification.from_pretrained(name, **options), name, local)
        _fit_head(model, old_names, list(labels["id2label"].values()))
    else:
        config = _load(lambda: AutoConfig.from_pretrained(name, **source, **overrides, **labels), name, local)
        code = {"trust_remote_code": args.trust_remote_code}
        model = _load(
            lambda: AutoModelForImageClassification.from_config(config, dtype=torch.float32, **code), name, local
        )
    if is_timm:
        model.config.label_names = list(labels["id2label"].values())
    processor = _load(lambda: AutoImageProcessor.from_pretrained(name, **source), name, local)
    return model, processor
