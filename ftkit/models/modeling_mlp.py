"""A multilayer perceptron for images; softmax regression without hidden layers."""

import difflib
from itertools import pairwise

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .channels import match_channels


class MLPConfig(PreTrainedConfig):
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

    image_size: int | list[int] | tuple[int, int] = 28
    num_channels: int = 1
    hidden_sizes: list[int] | tuple[int, ...] = (512,)
    activation: str = "relu"
    dropout: float = 0.0
    initialization: str = "torch"
    # Set here, because the loss would set it at the first labelled batch and so change the config.
    problem_type: str | None = "single_label_classification"  # type: ignore[assignment]  # transformers' is narrower

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        if isinstance(self.image_size, tuple):
            self.image_size = list(self.image_size)
        size = self.image_size if isinstance(self.image_size, list) else [self.image_size] * 2
        if len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
            raise ValueError(
                f"image_size={self.image_size!r} must be a positive integer or [height, width], such as 28 or [28, 28]"
            )
        if type(self.num_channels) is not int or self.num_channels < 1:
            raise ValueError(f"num_channels={self.num_channels!r} must be a positive integer: 1 for grey, 3 for RGB")
        if not isinstance(self.hidden_sizes, (list, tuple)) or not all(
            type(n) is int and n > 0 for n in self.hidden_sizes
        ):
            raise ValueError(
                f"hidden_sizes={self.hidden_sizes!r} must be a list of positive integers, such as [512, 256]; "
                "[] for no hidden layer"
            )
        self.hidden_sizes = list(self.hidden_sizes)
        if not isinstance(self.activation, str) or self.activation not in ACT2FN:
            nearest = difflib.get_close_matches(str(self.activation), ACT2FN, n=3) or sorted(ACT2FN)
            raise ValueError(f"activation={self.activation!r} is unknown; use one of {', '.join(nearest)}")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r} must be a probability in [0, 1), such as 0.1")
        if self.initialization not in ("torch", "keras"):
            raise ValueError(f'initialization={self.initialization!r} is unknown; use "torch" or "keras"')

    @property
    def height_width(self) -> tuple[int, int]:
        """`image_size` as (height, width)."""
        size = self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return height, width


class MLPForImageClassification(PreTrainedModel):
    """Flatten, then (linear, activation, dropout) for each hidden size, then the linear `classifier`."""

    config_class = MLPConfig
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False

    def __init__(self, config: MLPConfig):
        super().__init__(config)
        # Kept here: reading an attribute of a config takes microseconds at every step.
        self.num_channels = config.num_channels
        self.height_width = config.height_width
        sizes = [config.num_channels * self.height_width[0] * self.height_width[1], *config.hidden_sizes]
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

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: object
    ) -> ImageClassifierOutputWithNoAttention:
        """
        Args:
            pixel_values: float (N, C, H, W), normalised; C is matched to the model's, see [`match_channels`].
            labels: int64 (N,), class indices.

        Returns:
            `logits`, float (N, num_labels), and with labels the mean cross-entropy `loss`, float ().

        Raises:
            ValueError: if H and W are not the configured image size.
        """
        pixel_values = match_channels(pixel_values, self.num_channels)
        if pixel_values.shape[2:] != self.height_width:
            raise ValueError(
                f"pixel_values are {tuple(pixel_values.shape[2:])} (height, width), but the model was built for "
                f"{self.height_width}: resize the images, or build the model with another image_size"
            )
        logits = self.classifier(self.layers(pixel_values.flatten(1)))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)
