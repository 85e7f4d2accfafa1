"""Situations in which the weights of a model are refused, and settings are recommended."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from ftkit.config import ModelArguments
from ftkit.data.pixels.images import ImageInfo
from ftkit.models.classifier import Classifier
from ftkit.tasks import SingleLabel

RUN = ["--dataset", "digits", "--max_train_samples", 60, "--num_train_epochs", 1, "--method", "full"]


def _saved(folder: Path) -> Path:
    args = ModelArguments(model="timm/test_resnet", image_size=[32])
    Classifier.build(args, SingleLabel(["a", "b"]), ImageInfo((32, 32), 3), pretrained=False).save(folder)
    return folder


def _without_weights(folder):
    (_saved(folder / "model") / "model.safetensors").unlink()
    return [*RUN, "--model", folder / "model"]


def _adapters(folder):
    base = Classifier.load(str(_saved(folder / "base")))
    base.model = get_peft_model(base.model, LoraConfig(r=2, target_modules=["conv2"], modules_to_save=["fc"]))
    base.model.active_peft_config.base_model_name_or_path = str(folder / "base")
    base.save(folder / "adapters")
    return [*RUN, "--model", folder / "adapters"]


def _nested_weights(folder):
    file = _saved(folder / "model") / "model.safetensors"
    torch.save({"state_dict": load_file(file), "epoch": 1}, folder / "model" / "pytorch_model.bin")
    file.unlink()
    return [*RUN, "--model", folder / "model"]


def _another_depth(folder):
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "model")
    config = ViTConfig(image_size=32, patch_size=8, hidden_size=8, num_hidden_layers=2, num_attention_heads=1,
                       intermediate_size=8)  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder / "model")
    return [*RUN, "--model", folder / "model", "--model_args", '{"num_hidden_layers": 1}']


CASES = {
    "models.loading:check_whole": _nested_weights,
    "models.loading:check_whole#2": _another_depth,
    "models.loading:_find_weights": _without_weights,
    "models.pretrained:_base_config": _adapters,
}
