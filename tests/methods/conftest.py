"""Small saved models of every family, to be fine-tuned."""

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from ftkit.arguments import ModelArguments
from ftkit.data.images import ImageInfo
from ftkit.models.build import build_model, save_model

MODELS = ["mlp", "convnet", "timm/test_resnet", "timm/test_vit", "vit"]


@pytest.fixture(scope="session", params=MODELS)
def folder(request, tmp_path_factory):
    """A model with random weights for the digits 0 and 1 at 16 x 16 pixels, saved."""
    path = tmp_path_factory.mktemp(request.param.replace("/", "-"))
    torch.manual_seed(0)
    if request.param == "vit":
        config = ViTConfig(image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                           intermediate_size=16, num_labels=2)  # fmt: skip
        save_model(ViTForImageClassification(config), ViTImageProcessor(size={"height": 16, "width": 16}), path)
    else:
        args = ModelArguments(model=request.param, image_size=[16], model_args=_small(request.param))
        save_model(*build_model(args, ["0", "1"], ImageInfo((8, 8), 1), pretrained=False), path)
    return path


@pytest.fixture(scope="session")
def convnet(tmp_path_factory):
    """A convnet with random weights for the digits 0 and 1, saved."""
    path = tmp_path_factory.mktemp("convnet-alone")
    torch.manual_seed(0)
    save_model(*build_model(ModelArguments(model="convnet"), ["0", "1"], ImageInfo((8, 8), 1), False), path)
    return path


def _small(model):
    return {"hidden_sizes": [16, 16]} if model == "mlp" else None
