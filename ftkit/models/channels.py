"""What ftkit's own models share: the checks of their configs, the channels and size of images, the forward pass."""

import difflib
from collections.abc import Collection

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention


def match_channels(pixel_values: torch.Tensor, num_channels: int) -> torch.Tensor:
    """Convert a batch of images to the channels of a model: RGB to grey, or grey to RGB.

    `transformers.pipeline` always feeds RGB, so a model for grey images has to reduce it. The weights are those of
    PIL's `convert("L")` (ITU-R BT.601 luma); they sum to one, so normalised grey pixels keep their values.

    Args:
        pixel_values: float (N, C, H, W).
        num_channels: the channels wanted, C'.

    Returns:
        float (N, C', H, W); the input itself if C == C'.

    Raises:
        ValueError: if C != C', except for 3 to 1 and 1 to 3.
    """
    given = pixel_values.shape[1]
    if given == num_channels:
        return pixel_values
    if given == 3 and num_channels == 1:
        red, green, blue = pixel_values.split(1, dim=1)
        return 0.299 * red + 0.587 * green + 0.114 * blue
    if given == 1 and num_channels == 3:
        return pixel_values.expand(-1, 3, -1, -1)
    raise ValueError(
        f"pixel_values have {given} channels, but the model takes num_channels={num_channels}. Only RGB to grey and "
        f"grey to RGB are automatic: convert the images, or build the model with num_channels={given}."
    )


class ImageConfig(PreTrainedConfig):
    """
    Configuration of a model for images of any size.

    Args:
        num_channels: 1 (grey) or 3 (RGB).
        dropout: probability of dropping a feature, in [0, 1).

    Raises:
        ValueError: if a value is invalid.
    """

    num_channels: int = 1
    dropout: float = 0.0
    # Set here, because the loss would set it at the first labelled batch and so change the config.
    problem_type: str | None = "single_label_classification"  # type: ignore[assignment]  # transformers' is narrower

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        self.check_positive("num_channels", "1 for grey, 3 for RGB")
        right = isinstance(self.dropout, (int, float)) and 0 <= self.dropout < 1
        self.check("dropout", right, "must be a probability in [0, 1), such as 0.1")

    def check(self, key: str, right: bool, expected: str) -> None:
        """Raise a `ValueError` with the value of `key` and what is expected, unless it is right."""
        if not right:
            raise ValueError(f"{key}={getattr(self, key)!r} {expected}")

    def check_positive(self, key: str, example: str) -> None:
        """Raise a `ValueError` unless the value of `key` is a positive integer."""
        value = getattr(self, key)
        self.check(key, type(value) is int and value > 0, f"must be a positive integer: {example}")

    def check_name(self, key: str, valid: Collection[str]) -> None:
        """Raise a `ValueError` unless the value of `key` is one of `valid`."""
        value = getattr(self, key)
        near = difflib.get_close_matches(str(value).lower(), valid, n=3) or sorted(valid)
        use = f"is unknown; use {'one of ' * (len(valid) > 3)}{', '.join(near)}"
        self.check(key, isinstance(value, str) and value in valid, use)

    @property
    def height_width(self) -> tuple[int, int] | None:
        """Height and width of the images in pixels; None for any."""
        return None


class SizedConfig(ImageConfig):
    """
    Configuration of a model for images of one size.

    Args:
        image_size: height and width of the images, in pixels; one number for square images.
    """

    image_size: int | list[int] | tuple[int, int] = 28

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        if isinstance(self.image_size, tuple):
            self.image_size = list(self.image_size)
        size = self.image_size if isinstance(self.image_size, list) else [self.image_size] * 2
        right = len(size) == 2 and all(type(n) is int and n > 0 for n in size)
        self.check("image_size", right, "must be a positive integer or [height, width], such as 28 or [28, 28]")

    @property
    def height_width(self) -> tuple[int, int]:
        """`image_size` as (height, width)."""
        size = self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return height, width


class ImageClassifier(PreTrainedModel):
    """A classifier of images of any number of channels; a subclass computes `logits`."""

    main_input_name = "pixel_values"
    accepts_loss_kwargs = False

    def __init__(self, config: ImageConfig):
        super().__init__(config)
        # Kept here: reading an attribute of a config takes microseconds at every step.
        self.num_channels, self.height_width = config.num_channels, config.height_width

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Float (N, num_labels), from `pixel_values` with the model's own number of channels."""
        raise NotImplementedError

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
        if self.height_width is not None and pixel_values.shape[2:] != self.height_width:
            raise ValueError(
                f"pixel_values are {tuple(pixel_values.shape[2:])} (height, width), but the model was built for "
                f"{self.height_width}: resize the images, or build the model with another image_size"
            )
        logits = self.logits(match_channels(pixel_values, self.num_channels))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)
