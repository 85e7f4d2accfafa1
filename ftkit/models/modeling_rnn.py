"""A recurrent network that reads an image row by row."""

import difflib

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .channels import match_channels

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class RNNConfig(PreTrainedConfig):
    """
    Configuration of [`RNNForImageClassification`].

    Args:
        image_size: height and width of the images, in pixels; one number for square images.
        num_channels: 1 (grey) or 3 (RGB).
        cell: "rnn" (Elman, tanh), "lstm" or "gru".
        hidden_size: features of the state, in each direction.
        num_layers: stacked recurrent layers.
        bidirectional: read the rows upwards too, and classify from the end states of both directions.
        dropout: probability of dropping a feature between the layers and before the classifier, in [0, 1).

    Raises:
        ValueError: if a value is invalid.
    """

    model_type = "ftkit_rnn"

    image_size: int | list[int] | tuple[int, int] = 28
    num_channels: int = 1
    cell: str = "lstm"
    hidden_size: int = 128
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
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
        if not isinstance(self.cell, str) or self.cell not in CELLS:
            nearest = difflib.get_close_matches(str(self.cell).lower(), CELLS) or list(CELLS)
            raise ValueError(f"cell={self.cell!r} is unknown; use {' or '.join(nearest)}")
        if type(self.hidden_size) is not int or self.hidden_size < 1:
            raise ValueError(f"hidden_size={self.hidden_size!r} must be a positive integer, such as 128")
        if type(self.num_layers) is not int or self.num_layers < 1:
            raise ValueError(f"num_layers={self.num_layers!r} must be a positive integer, such as 1")
        if not isinstance(self.bidirectional, bool):
            raise ValueError(f"bidirectional={self.bidirectional!r} must be true or false")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r} must be a probability in [0, 1), such as 0.1")

    @property
    def height_width(self) -> tuple[int, int]:
        """`image_size` as (height, width)."""
        size = self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return height, width


class RNNForImageClassification(PreTrainedModel):
    """A row of pixels is one time step; the linear `classifier` sees the last state of the last layer."""

    config_class = RNNConfig
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False

    def __init__(self, config: RNNConfig):
        super().__init__(config)
        # Kept here: reading an attribute of a config takes microseconds at every step.
        self.num_channels = config.num_channels
        self.height_width = config.height_width
        self.rnn = CELLS[config.cell](
            input_size=config.num_channels * self.height_width[1],
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            bidirectional=config.bidirectional,
            # torch applies dropout between layers only, and warns if there is just one.
            dropout=config.dropout if config.num_layers > 1 else 0.0,
            batch_first=True,
        )
        self.num_directions = 2 if config.bidirectional else 1
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(self.num_directions * config.hidden_size, config.num_labels)  # type: ignore[arg-type]  # no None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # torch's own initialisation, that of every PyTorch tutorial, instead of transformers' N(0, 0.02).
        if isinstance(module, (nn.Linear, nn.RNNBase)):
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
        rows = pixel_values.transpose(1, 2).flatten(2)  # (N, C, H, W) -> (N, H, C * W)
        _, state = self.rnn(rows)
        hidden = state[0] if isinstance(state, tuple) else state  # an LSTM's state is (hidden, cell)
        # The last layer's end states: forward after the bottom row, backward after the top row.
        hidden = hidden[-self.num_directions :].transpose(0, 1).flatten(1)
        logits = self.classifier(self.dropout(hidden))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)
