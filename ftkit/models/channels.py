"""Match the channels of images to those of a model."""

import torch


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
