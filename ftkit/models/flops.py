"""What an image costs."""

import copy
import warnings

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def flops_per_image(model: nn.Module, pixel_values: torch.Tensor) -> int:
    """Floating-point operations of the forward pass of one image, a multiplication and an addition being two.

    Counted are those of matrix multiplications, convolutions and attention, as they are run.

    Args:
        model: takes `pixel_values`.
        pixel_values: normalised, (N, C, H, W); the first image is taken.
    """
    # A recurrent layer is one operation of cuDNN or of MKL-DNN, which is not counted. On the CPU without MKL-DNN it is
    # made of multiplications.
    model = copy.deepcopy(model).cpu().eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that MKL-DNN could do more on another machine
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
            model(pixel_values=pixel_values[:1].cpu())
    return counter.get_total_flops()
