"""Turns the batches of a loader into inputs of the model: on the device, augmented, normalised, mixed."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainingArguments

from ftkit.data.augmentation.augment import augment
from ftkit.data.augmentation.mixing import Mixing
from ftkit.data.pixels.normalize import channels_last
from ftkit.training.loop.objective import Objective


class Preparation:
    """Turns a batch of `Images`, which stays uint8 until it is on the device, into inputs of a model.

    Args:
        args: training arguments, for the seed and the device.
        normalize: function from uint8 to the model's input.
        to_device: function that moves floats to the device, in the type of the model's weights.
        mixable: function that turns labels into values that can be mixed.
        objective: the augmentation and mixing of training batches; None without training.
        in_channels_last: whether images get the memory format channels-last.

    Attributes:
        mixing: mixup and cutmix, or None.
    """

    def __init__(
        self,
        args: TrainingArguments,
        normalize: Callable[[torch.Tensor], torch.Tensor],
        to_device: Callable[[torch.Tensor], torch.Tensor],
        mixable: Callable[[torch.Tensor], torch.Tensor],
        objective: Objective | None,
        in_channels_last: bool,
    ):
        self.args, self.normalize, self.to_device, self.mixable = args, normalize, to_device, mixable
        self.augment, self.in_channels_last = objective.augment if objective else [], in_channels_last
        mixup, cutmix = (objective.args.mixup, objective.args.cutmix) if objective else (0.0, 0.0)
        self.mixing = Mixing(mixup, cutmix) if mixup or cutmix else None

    def __call__(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """`pixel_values` float (B, C, H, W), and `labels` int64 (B,) or, if images are mixed, shares (B, classes).

        Only training batches, which have an `epoch`, are augmented and mixed.
        """
        device, training = self.args.device, "epoch" in batch
        images, labels = (batch[name].to(device, non_blocking=True) for name in ("pixel_values", "labels"))
        rows: Any = batch.get("index")
        following = batch.get("following")
        if following is not None:  # the image that the last one is mixed with
            images = torch.cat([images, following["pixel_values"].to(device, non_blocking=True)])
            labels = torch.cat([labels, following["labels"].to(device, non_blocking=True)])
            rows = torch.cat([rows, following["index"]])
        if training and self.augment:
            images = augment(images, rows, self.augment, self.args.seed, batch["epoch"])
        images = self.to_device(self.normalize(images))
        if following is not None:
            assert self.mixing is not None  # the loader adds `following` only for mixing
            images, labels = self.mixing(images, self.mixable(labels), rows, self.args.seed, batch["epoch"])
        if self.in_channels_last:
            images = channels_last(images)
        return {"pixel_values": images, "labels": labels}
