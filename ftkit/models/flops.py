"""Counts the floating-point operations of an image."""

import copy
import warnings

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def flops_per_image(model: nn.Module, pixel_values: torch.Tensor) -> int:
    """Floating-point operations of one image's forward pass; a multiply-add counts as two.

    Matrix multiplications, convolutions and attention are counted as they run.

    Args:
        model: a model that takes `pixel_values`.
        pixel_values: normalised images (N, C, H, W); only the first is used.
    """
    # cuDNN and MKL-DNN run a recurrent layer as one operation, which is not counted; the plain CPU code multiplies.
    model = copy.deepcopy(model).cpu().eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about MKL-DNN features that this machine lacks
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
            model(pixel_values=pixel_values[:1].cpu())
    return counter.get_total_flops()
