"""A recurrent network that reads an image row by row."""

import torch
from torch import nn

from .channels import ImageClassifier, SizedConfig

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class RNNConfig(SizedConfig):
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

    cell: str = "lstm"
    hidden_size: int = 128
    num_layers: int = 1
    bidirectional: bool = False

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        self.check_name("cell", CELLS)
        self.check_positive("hidden_size", "such as 128")
        self.check_positive("num_layers", "such as 1")
        self.check("bidirectional", isinstance(self.bidirectional, bool), "must be true or false")


class RNNForImageClassification(ImageClassifier):
    """A row of pixels is one time step; the linear `classifier` sees the last state of the last layer."""

    config_class = RNNConfig

    def __init__(self, config: RNNConfig):
        super().__init__(config)
        self.rnn = CELLS[config.cell](
            input_size=config.num_channels * config.height_width[1],
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

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        rows = pixel_values.transpose(1, 2).flatten(2)  # (N, C, H, W) -> (N, H, C * W)
        _, state = self.rnn(rows)
        hidden = state[0] if isinstance(state, tuple) else state  # an LSTM's state is (hidden, cell)
        # The last layer's end states: forward after the bottom row, backward after the top row.
        hidden = hidden[-self.num_directions :].transpose(0, 1).flatten(1)
        return self.classifier(self.dropout(hidden))
