"""The choice of how images reach the model: as one tensor, or as a stream."""

import logging
from typing import Any

import torch
from datasets import DatasetDict
from transformers import TrainingArguments

from ftkit.config import DataArguments
from ftkit.data.feeding.stream import StreamedImages
from ftkit.data.feeding.tensors import Images, ImageTensors, image_tensors
from ftkit.data.pixels.decoding import Decoder, cores

logger = logging.getLogger(__name__)
_PROBE = 64  # images of which one must decode for the size to be known


def load_images(
    splits: DatasetDict, processor: Any, channels: int, args: DataArguments, seed: int
) -> dict[str, Images]:
    """The images of every split, by the engine that `args` ask for, or that fits their size.

    Args:
        splits: columns `image`, `label`, `index`.
        processor: the image processor that is saved with the model; it resizes and crops.
        channels: 1 or 3.
        seed: of `image_transform`, which is done to `train` alone.

    Raises:
        UserError: images that do not decode, or a full disk.
    """
    some = next(iter(splits.values()))
    shape = Decoder(some, processor, channels)(range(min(_PROBE, len(some))))
    size = shape.pixels[0].nbytes * sum(map(len, splits.values())) / 1e9 if shape.pixels is not None else 0.0
    engine, reason = _choose(args, size)
    logger.info("  %-12s %s: %s", "data engine", engine, reason)
    if engine == "tensor":
        return {
            split: image_tensors(rows, processor, channels, args.on_bad_image, args.cache_dir)
            for split, rows in splits.items()
        }
    streams = {
        split: StreamedImages(rows, processor, channels, args.on_bad_image, args.cache_dir)
        for split, rows in splits.items()
    }
    if args.image_transform is not None:
        streams["train"].transform_with(args.image_transform, seed)
    return {**streams}


def set_up_loading(args: TrainingArguments, images: dict[str, Images], workers: int | None) -> None:
    """Set how the batches of `images` are loaded in training and evaluation.

    A stream is decoded by one worker for each core, unless `workers` says how many. Tensors move to the accelerator
    where they fill no more than half of its free memory, and no worker is needed for what is there already.
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
            args.dataloader_pin_memory = False  # only what lies in the machine's own memory is pinned
            logger.info("  %-12s %.2f GB of pixels lie on %s", "data", size / 1e9, args.device)


def _choose(args: DataArguments, size: float) -> tuple[str, str]:
    """The engine, and why; `size` is that of all decoded images, in GB."""
    decoded = f"{size:.2f} GB decoded" if size >= 0.1 else f"{1000 * size:.1f} MB decoded"
    if args.data_engine != "auto":
        return args.data_engine, f"as asked for ({decoded})"
    if args.image_transform is not None:
        return "stream", "image_transform changes single images"
    if size > args.tensor_cache_gb:
        return "stream", f"{decoded} is more than tensor_cache_gb, {args.tensor_cache_gb:g}"
    return "tensor", f"{decoded} is within tensor_cache_gb, {args.tensor_cache_gb:g}"
