"""A multilayer perceptron for images; softmax regression without hidden layers."""

from itertools import pairwise

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from .channels import ImageClassifier, SizedConfig


class MLPConfig(SizedConfig):
    """
    Configuration of [`MLPForImageClassification`].

    Args:
        image_size: height and width of the images, in pixels; one number for square images.
        num_channels: 1 (grey) or 3 (RGB).
        hidden_sizes: features of each hidden layer, from input to output; `[]` is softmax regression.
        activation: any name in `transformers.activations.ACT2FN`.
        dropout: probability of dropping a hidden feature, in [0, 1).
        initialization: "torch" (Kaiming uniform with a = √5, random biases) or "keras" (Glorot uniform, zero biases).

    Raises:
        ValueError: if a value is invalid.
    """

    model_type = "ftkit_mlp"

    hidden_sizes: list[int] | tuple[int, ...] = (512,)
    activation: str = "relu"
    initialization: str = "torch"

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        sizes = self.hidden_sizes
        right = isinstance(sizes, (list, tuple)) and all(type(n) is int and n > 0 for n in sizes)
        expected = "must be a list of positive integers, such as [512, 256]; [] for no hidden layer"
        self.check("hidden_sizes", right, expected)
        self.hidden_sizes = list(sizes)
        self.check_name("activation", ACT2FN)
        self.check_name("initialization", ("torch", "keras"))


class MLPForImageClassification(ImageClassifier):
    """Flatten, then (linear, activation, dropout) for each hidden size, then the linear `classifier`."""

    config_class = MLPConfig

    def __init__(self, config: MLPConfig):
        super().__init__(config)
        height, width = config.height_width
        sizes = [config.num_channels * height * width, *config.hidden_sizes]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(fan_in, fan_out), ACT2FN[config.activation], nn.Dropout(config.dropout))
                for fan_in, fan_out in pairwise(sizes)
            )
        )
        self.classifier = nn.Linear(sizes[-1], config.num_labels)  # type: ignore[arg-type]  # no None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # torch's own initialisation, that of every PyTorch tutorial, instead of transformers' N(0, 0.02).
        if not isinstance(module, nn.Linear):
            return
        if self.config.initialization == "keras":
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        else:
            module.reset_parameters()

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.layers(pixel_values.flatten(1)))
