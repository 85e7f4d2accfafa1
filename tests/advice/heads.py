"""Situations of heads and adapters in which settings are recommended."""

from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    MobileNetV1Config,
    MobileNetV1ForImageClassification,
    ViTImageProcessor,
)

SHORT = ["--dataset", "digits", "--max_train_samples", 20, "--max_steps", 1]


def _saved(folder, model) -> list:
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return ["--model", folder, *SHORT]


def _one_of_two_heads(folder) -> list:
    config = DeiTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                        image_size=32, patch_size=16)  # fmt: skip
    model = DeiTForImageClassificationWithTeacher(config)
    return [*_saved(folder / "model", model), "--method", "full", "--head", "cls_classifier"]


def _layers_that_the_network_looks_into(folder) -> list:
    model = MobileNetV1ForImageClassification(MobileNetV1Config(depth_multiplier=0.1, min_depth=4))
    return [*_saved(folder / "model", model), "--method", "lora"]


CASES = {
    "models.anatomy:name_head": _one_of_two_heads,
    "methods.adapters:_adaptable#3": _layers_that_the_network_looks_into,
}
