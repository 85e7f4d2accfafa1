"""The choice between the two data engines: one tensor, or a stream."""

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from transformers import TrainingArguments

from ftkit.config import DataArguments
from ftkit.data.feeding.stream import StreamedImages
from ftkit.data.feeding.tensors import Images, ImageTensors, image_tensors, tensor_key
from ftkit.data.pixels.cache import cache_root, free_bytes
from ftkit.data.pixels.decoding import Decoder, cores
from ftkit.errors import UserError, as_options, listed
from ftkit.tasks import task_of

logger = logging.getLogger(__name__)


def load_images(
    splits: DatasetDict, processor: Any, channels: int, args: DataArguments, seed: int
) -> dict[str, Images]:
    """The images of every split, by the engine that `args` name or that fits their size.

    Args:
        splits: the splits, with the columns `image`, `label`, `index`.
        processor: the image processor saved with the model; it resizes and crops.
        channels: 1 or 3.
        seed: the seed of `image_transform`, which applies only to `train`.

    Raises:
        UserError: images that do not decode, or a full disk.
    """
    engine, reason = _choose(args, splits, processor, channels)
    logger.info("  %-12s %s: %s", "data engine", engine, reason)
    load: Callable[..., Images] = image_tensors if engine == "tensor" else StreamedImages
    images = {
        split: load(rows, processor, channels, args.on_bad_image, args.cache_dir) for split, rows in splits.items()
    }
    if "train" in images and images["train"].skipped:
        _check_classes(splits["train"], images["train"])
    if args.image_transform is not None and isinstance(train := images["train"], StreamedImages):
        train.transform_with(args.image_transform, seed)
    return images


def _check_classes(dataset: Dataset, train: Images) -> None:
    """Check that every class of train has an image that decodes.

    Raises:
        UserError: a class has none.
    """
    task = task_of(dataset.features)
    left = task.counts(train.labels)
    lost = [name for name, count in task.counts(task.tensor(dataset)).items() if count and not left[name]]
    if lost:
        others = [name for name, count in left.items() if count]
        raise UserError(
            f"none of train's images of {listed(map(repr, lost))} decodes, such as {train.skipped[0]['file']}: "
            f"replace them, or leave {'these classes' if len(lost) > 1 else 'this class'} out with "
            f"{as_options({'classes': others})}",
            fix={"classes": others} if len(others) > 1 else None,
        )


def set_up_loading(args: TrainingArguments, images: dict[str, Images], workers: int | None) -> None:
    """Set how batches of `images` are loaded for training and evaluation.

    A stream is decoded by one worker per core, unless `workers` is given. Tensors move to the accelerator if they fill
    at most half of its free memory; they then need no workers.
    """
    if any(isinstance(split, StreamedImages) for split in images.values()):
        args.dataloader_num_workers = max(cores() // args.world_size, 1) if workers is None else workers
        args.dataloader_persistent_workers = args.dataloader_num_workers > 0
        logger.info("  %-12s %d processes decode", "workers", args.dataloader_num_workers)
    elif args.device.type != "cpu" and not workers:
        free, _ = torch.accelerator.get_memory_info(args.device)
        tensors = [split for split in images.values() if isinstance(split, ImageTensors)]
        size = sum(split.images.nbytes for split in tensors)
        if 2 * size <= free:
            for split in tensors:
                split.to(args.device)
            args.dataloader_pin_memory = False  # only host memory can be pinned
            logger.info("  %-12s %.2f GB of pixels on %s", "data", size / 1e9, args.device)


def _choose(args: DataArguments, splits: DatasetDict, processor: Any, channels: int) -> tuple[str, str]:
    """The engine, and the reason for it."""
    of_one = Decoder(next(iter(splits.values())), processor, channels).bytes_of_one
    size = of_one * sum(map(len, splits.values()))
    decoded = f"{size / 1e9:.2f} GB decoded" if size >= 1e8 else f"{size / 1e6:.1f} MB decoded"
    if args.data_engine != "auto":
        return args.data_engine, f"as configured ({decoded})"
    if args.image_transform is not None:
        return "stream", "image_transform changes single images"
    if size > args.tensor_cache_gb * 1e9:
        return "stream", f"{decoded} is more than tensor_cache_gb, {args.tensor_cache_gb:g}"
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # one process fills the disk while the others measure it
        return "tensor", f"{decoded} is within tensor_cache_gb, {args.tensor_cache_gb:g}"
    root = cache_root(args.cache_dir)
    made = [tensor_key(rows, processor, channels) for rows in splits.values()]
    new = sum(len(rows) for rows, key in zip(splits.values(), made, strict=True) if not (root / key).is_dir())
    if new * of_one > (free := free_bytes(root)):
        return "stream", f"{decoded} is more than the {free / 1e9:.2f} GB that are free in cache_dir, {root}"
    return "tensor", f"{decoded} is within tensor_cache_gb, {args.tensor_cache_gb:g}"
