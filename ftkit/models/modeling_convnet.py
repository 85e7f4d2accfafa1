"""A small residual convolutional network, for images from 8x8 pixels up."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .channels import ImageClassifier, ImageConfig, match_channels

_CHOICES = {
    "residual": (True, False),
    "first_layer": ("convolution", "whitening"),
    "downsampling": ("stride", "max_pool"),
    "pooling": ("average", "max"),
    "norm_scale": (True, False),
    "identity_init": (True, False),
}


class ConvNetConfig(ImageConfig):
    """
    Configuration of [`ConvNetForImageClassification`].

    Args:
        num_channels: 1 (grey) or 3 (RGB).
        hidden_sizes: channels of each stage, from input to output; every stage halves the image.
        depths: residual blocks of each stage, as many numbers as `hidden_sizes`; 0 leaves only the convolution that
            begins a stage.
        residual: whether a block is two convolutions with a shortcut, or a single convolution.
        first_layer: `convolution`, or `whitening`: see [`Whitening`].
        downsampling: what halves the image: a `stride` of 2, or a `max_pool` between convolution and normalisation.
        pooling: of the last stage's output: `average` or `max`.
        activation: any name in `transformers.activations.ACT2FN`.
        dropout: probability of dropping a pooled feature before the classifier, in [0, 1).
        norm_momentum: the weight of a batch in BatchNorm's running statistics.
        norm_scale: whether BatchNorm has a trainable scale besides its shift.
        identity_init: convolutions start as the identity, as far as they have output channels
            (Zagoruyko & Komodakis 2017, arXiv:1706.00388).
        logit_scale: a constant factor on the logits.

    Raises:
        ValueError: if a value is invalid.
    """

    model_type = "ftkit_convnet"

    hidden_sizes: list[int] | tuple[int, ...] = (24, 48, 96)
    depths: list[int] | tuple[int, ...] = (0, 1, 1)
    residual: bool = True
    first_layer: str = "convolution"
    downsampling: str = "stride"
    pooling: str = "average"
    activation: str = "relu"
    norm_momentum: float = 0.1
    norm_scale: bool = True
    identity_init: bool = False
    logit_scale: float = 1.0

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        for name, least in (("hidden_sizes", 1), ("depths", 0)):
            value = getattr(self, name)
            right = isinstance(value, (list, tuple)) and all(type(n) is int and n >= least for n in value)
            self.check(name, right, f"must be a list of integers >= {least}, one for each stage")
            setattr(self, name, list(value))
        if not self.hidden_sizes or len(self.hidden_sizes) != len(self.depths):
            raise ValueError(
                f"hidden_sizes={self.hidden_sizes} and depths={self.depths} must have one number for each stage, "
                "and at least one stage: make them the same length"
            )
        self.check_name("activation", ACT2FN)
        share = isinstance(self.norm_momentum, (int, float)) and 0 < self.norm_momentum <= 1
        self.check("norm_momentum", share, "must be a share in (0, 1], such as 0.1")
        positive = isinstance(self.logit_scale, (int, float)) and self.logit_scale > 0
        self.check("logit_scale", positive, "must be a positive number")
        for name, valid in _CHOICES.items():
            self.check(name, getattr(self, name) in valid, f"must be one of {', '.join(map(str, valid))}")


class Whitening(nn.Module):
    """A fixed convolution whose outputs are uncorrelated with variance 1 on the data it was fitted to; each output
    comes with both signs, and only the bias is trained: (N, C, H, W) -> (N, 8 C, H - 1, W - 1).

    Its 2x2 filters are the eigenvectors of the covariance of image patches, divided by the square root of the
    eigenvalues (as in Page, "How to train your ResNet 8: bag of tricks", 2019).
    """

    weight: torch.Tensor

    def __init__(self, channels: int):
        super().__init__()
        patch = torch.eye(4 * channels).view(-1, channels, 2, 2)
        self.register_buffer("weight", torch.cat([patch, -patch]))
        self.bias = nn.Parameter(torch.zeros(8 * channels))

    @torch.no_grad()
    def fit(self, pixel_values: torch.Tensor, epsilon: float = 5e-4) -> None:
        """Set the filters from images float (N, C, H, W), normalised; `epsilon` is added to the eigenvalues."""
        patches = pixel_values.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
        values, vectors = torch.linalg.eigh(patches.double().T.cov(correction=0))
        filters = (vectors / (values.clamp(min=0) + epsilon).sqrt()).T.flip(0).view(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(pixel_values, self.weight, self.bias)


class ConvBlock(nn.Module):
    """3x3 convolution, batch normalisation, activation: (N, C, H, W) -> (N, C', H, W); halves H and W if `halving`."""

    def __init__(self, in_channels: int, out_channels: int, config: ConvNetConfig, halving: bool = False):
        super().__init__()
        self.pools = halving and config.downsampling == "max_pool"
        stride = 2 if halving and not self.pools else 1
        # The normalisation removes the mean, so a bias would have no effect.
        self.convolution = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.normalization = nn.BatchNorm2d(out_channels, momentum=config.norm_momentum)
        if not config.norm_scale:
            self.normalization.register_parameter("weight", None)
        self.activation = ACT2FN[config.activation]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.convolution(hidden)
        if self.pools:
            hidden = nn.functional.max_pool2d(hidden, 2, ceil_mode=True)
        return self.activation(self.normalization(hidden))


class ResidualBlock(nn.Module):
    """Two convolution blocks with a shortcut: (N, C, H, W) -> the same."""

    def __init__(self, channels: int, config: ConvNetConfig):
        super().__init__()
        self.blocks = nn.Sequential(ConvBlock(channels, channels, config), ConvBlock(channels, channels, config))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.blocks(hidden)


class GlobalMaxPool(nn.Module):
    """(N, C, H, W) -> (N, C, 1, 1), like `nn.AdaptiveMaxPool2d(1)`, whose gradient is not deterministic on CUDA."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.max_pool2d(hidden, hidden.shape[2:])


class ConvNetForImageClassification(ImageClassifier):
    """A stem, stages of residual blocks that each halve the image, global pooling, a linear `classifier`."""

    config_class = ConvNetConfig

    def __init__(self, config: ConvNetConfig):
        super().__init__(config)
        if config.first_layer == "whitening":
            previous = 8 * config.num_channels
            self.stem: nn.Module = nn.Sequential(Whitening(config.num_channels), ACT2FN[config.activation])
        else:
            previous = config.hidden_sizes[0]
            self.stem = ConvBlock(config.num_channels, previous, config)
        self.stages = nn.Sequential()
        for channels, depth in zip(config.hidden_sizes, config.depths, strict=True):
            blocks = [
                ResidualBlock(channels, config) if config.residual else ConvBlock(channels, channels, config)
                for _ in range(depth)
            ]
            self.stages.append(nn.Sequential(ConvBlock(previous, channels, config, halving=True), *blocks))
            previous = channels
        self.pool = nn.AdaptiveAvgPool2d(1) if config.pooling == "average" else GlobalMaxPool()
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(previous, config.num_labels)  # type: ignore[arg-type]  # no None
        self.post_init()

    def fit_first_layer(self, pixel_values: torch.Tensor) -> None:
        """Fit a data-dependent first layer to images float (N, C, H, W), normalised."""
        first = next(self.stem.children())
        if isinstance(first, Whitening):
            first.fit(match_channels(pixel_values, self.num_channels))

    def _init_weights(self, module: nn.Module) -> None:
        # torch's own initialisation, that of every PyTorch tutorial, instead of transformers' N(0, 0.02).
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.reset_parameters()
            if self.config.identity_init and isinstance(module, nn.Conv2d):
                nn.init.dirac_(module.weight[: module.in_channels])
        elif isinstance(module, nn.BatchNorm2d):
            # torch's values too, but without overwriting statistics just loaded from a checkpoint.
            super()._init_weights(module)

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden = self.pool(self.stages(self.stem(pixel_values))).flatten(1)
        return self.classifier(self.dropout(hidden)) * self.config.logit_scale
