"""Situations in which a model cannot take the images, and a size or what belongs to it is recommended."""

import json

import numpy as np
import transformers as T
from PIL import Image

ONE = ["--num_train_epochs", 1, "--max_train_samples", 40]
PROBE = ["--dataset", "digits", "--method", "linear_probe", *ONE]


def _vit(folder, processor=None, **config):
    small = {"image_size": 32, "patch_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
             "intermediate_size": 8, "num_labels": 2}  # fmt: skip
    T.ViTForImageClassification(T.ViTConfig(**small | config)).save_pretrained(folder / "model")
    (processor or T.ViTImageProcessor(size={"height": 32, "width": 32})).save_pretrained(folder / "model")
    return [*PROBE, "--model", folder / "model"]


def _clip(folder):
    small = {"image_size": 32, "patch_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = T.CLIPConfig(vision_config=small, text_config={"num_hidden_layers": 1, "hidden_size": 8}, num_labels=2)
    T.CLIPForImageClassification(config).save_pretrained(folder / "model")
    T.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder / "model")
    return [*PROBE, "--model", folder / "model"]


def _convnext(folder):
    config = T.ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_labels=2)
    T.ConvNextForImageClassification(config).save_pretrained(folder / "model")
    T.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(folder / "model")
    return [*PROBE, "--model", folder / "model", "--image_fit", "pad"]


def _any_shape(folder):
    processor = T.CLIPImageProcessor(size={"shortest_edge": 32}, do_center_crop=False)
    return _vit(folder, processor)


def _tiny_images(folder):
    for name in ("ant", "bee"):
        (folder / "data" / name).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(np.full((1, 1, 3), 9 * number, np.uint8)).save(folder / "data" / name / f"{number}.png")
    return ["--data_dir", folder / "data", "--model", "convnet", *ONE]


def _mlp(folder):
    from ftkit.config import ModelArguments
    from ftkit.data.pixels.images import ImageInfo
    from ftkit.models.classifier import Classifier
    from ftkit.tasks import SingleLabel

    args = ModelArguments(model="mlp", model_args={"hidden_sizes": [4]})
    Classifier.build(args, SingleLabel(["a", "b"]), ImageInfo((8, 8), 1), pretrained=False).save(folder / "model")
    return [*PROBE, "--model", folder / "model"]


CASES = {
    "config.arguments.model:ModelArguments._check_input#2": lambda folder: [
        "--dataset", "digits", *ONE, "--model", "timm/test_resnet", "--model_args", '{"in_chans": 4}'
    ],
    "config.arguments.model:ModelArguments._check_input#3": lambda folder: [
        "--dataset", "digits", *ONE, "--model", "timm/test_vit", "--image_size", 32, "--model_args",
        json.dumps({"img_size": 64}),
    ],
    "models.first_pass:check_first_pass": lambda folder: [*_vit(folder), "--image_size", 644],
    "models.first_pass:check_first_pass#2": lambda folder: [*_vit(folder), "--image_size", 30],
    "models.fitting:fit_processor": _tiny_images,
    "models.fitting:fit_processor#2": _any_shape,
    "models.fitting:fit_processor#3": _convnext,
    "models.timm_models:with_dropout": lambda folder: [
        "--dataset", "digits", *ONE, "--model", "timm/test_resnet", "--model_args", '{"pretrained": true}'
    ],
    "models.reshaping:_reshaped": lambda folder: [*_clip(folder), "--image_size", 16, 32],
    "models.reshaping:reshaped": lambda folder: [*_mlp(folder), "--image_size", 9],
    "training.stages.planning:prepare_plan": lambda folder: [
        *_vit(folder), "--image_size", 24, "--method", "lora"
    ],
}  # fmt: skip
