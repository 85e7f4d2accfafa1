"""A small residual convolutional network, for images from 8x8 pixels up."""

import difflib

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .channels import match_channels


class ConvNetConfig(PreTrainedConfig):
    """
    Configuration of [`ConvNetForImageClassification`].

    Args:
        num_channels: 1 (grey) or 3 (RGB).
        hidden_sizes: channels of each stage, from input to output; every stage halves the image.
        depths: residual blocks of each stage, as many numbers as `hidden_sizes`; 0 leaves only the convolution that
            begins a stage.
        activation: any name in `transformers.activations.ACT2FN`.
        dropout: probability of dropping a pooled feature before the classifier, in [0, 1).

    Raises:
        ValueError: if a value is not one of these.
    """

    model_type = "ftkit_convnet"

    num_channels: int = 1
    hidden_sizes: list[int] | tuple[int, ...] = (24, 48, 96)
    depths: list[int] | tuple[int, ...] = (0, 1, 1)
    activation: str = "relu"
    dropout: float = 0.0
    # Set up front: the loss would otherwise write it at the first labelled batch, and change the config.
    problem_type: str | None = "single_label_classification"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if type(self.num_channels) is not int or self.num_channels < 1:
            raise ValueError(f"num_channels={self.num_channels!r} must be a positive integer: 1 for grey, 3 for RGB")
        for name, least in (("hidden_sizes", 1), ("depths", 0)):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or not all(type(n) is int and n >= least for n in value):
                raise ValueError(f"{name}={value!r} must be a list of integers >= {least}, one for each stage")
            setattr(self, name, list(value))
        if not self.hidden_sizes or len(self.hidden_sizes) != len(self.depths):
            raise ValueError(
                f"hidden_sizes={self.hidden_sizes} and depths={self.depths} must have one number for each stage, "
                "and at least one stage: make them the same length"
            )
        if not isinstance(self.activation, str) or self.activation not in ACT2FN:
            nearest = difflib.get_close_matches(str(self.activation), ACT2FN, n=3) or sorted(ACT2FN)
            raise ValueError(f"activation={self.activation!r} is unknown; use one of {', '.join(nearest)}")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r} must be a probability in [0, 1), such as 0.1")


class ConvBlock(nn.Module):
    """3x3 convolution, batch normalisation, activation: (N, C, H, W) -> (N, C', ⌈H / stride⌉, ⌈W / stride⌉)."""

    def __init__(self, in_channels: int, out_channels: int, activation: str, stride: int = 1):
        super().__init__()
        # The normalisation takes the mean away, so a bias would do nothing.
        self.convolution = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.normalization = nn.BatchNorm2d(out_channels)
        self.activation = ACT2FN[activation]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.activation(self.normalization(self.convolution(hidden)))


class ResidualBlock(nn.Module):
    """Two convolution blocks beside a shortcut: (N, C, H, W) -> the same."""

    def __init__(self, channels: int, activation: str):
        super().__init__()
        self.blocks = nn.Sequential(
            ConvBlock(channels, channels, activation), ConvBlock(channels, channels, activation)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.blocks(hidden)


class ConvNetForImageClassification(PreTrainedModel):
    """A stem, stages of residual blocks that each halve the image, global average pooling, linear `classifier`."""

    config_class = ConvNetConfig
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False

    def __init__(self, config: ConvNetConfig):
        super().__init__(config)
        self.num_channels = config.num_channels
        sizes, activation = config.hidden_sizes, config.activation
        self.stem = ConvBlock(config.num_channels, sizes[0], activation)
        self.stages = nn.Sequential()
        for previous, channels, depth in zip([sizes[0], *sizes], sizes, config.depths, strict=False):
            self.stages.append(
                nn.Sequential(
                    ConvBlock(previous, channels, activation, stride=2),
                    *(ResidualBlock(channels, activation) for _ in range(depth)),
                )
            )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(sizes[-1], config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # torch's own initialisation, that of every PyTorch tutorial, instead of transformers' N(0, 0.02).
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.reset_parameters()
        elif isinstance(module, nn.BatchNorm2d):
            # The same values as torch's, without overwriting statistics that a checkpoint has just filled in.
            super()._init_weights(module)

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs
    ) -> ImageClassifierOutputWithNoAttention:
        """
        Args:
            pixel_values: float (N, C, H, W), normalised, of any size from 8x8; C is matched to the model's, see
                [`match_channels`].
            labels: int64 (N,), class indices.

        Returns:
            `logits`, float (N, num_labels), and with labels the mean cross-entropy `loss`, float ().
        """
        hidden = self.stem(match_channels(pixel_values, self.num_channels))
        hidden = self.pool(self.stages(hidden)).flatten(1)
        logits = self.classifier(self.dropout(hidden))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)
