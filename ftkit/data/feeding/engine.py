"""The choice between the two data engines: one tensor, or a stream."""

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from datasets import DatasetDict
from transformers import TrainingArguments

from ftkit.config import DataArguments
from ftkit.config.arguments.data import NO_SPLIT
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
    images = {split: load(rows, processor, channels, args.cache_dir) for split, rows in splits.items()}
    _check_broken(splits, images, args.on_bad_image)
    if args.image_transform is not None and isinstance(train := images["train"], StreamedImages):
        train.transform_with(args.image_transform, seed)
    return images


def _check_broken(splits: DatasetDict, images: dict[str, Images], on_bad_image: str) -> None:
    """Refuse images that do not decode, unless they are to be skipped and leave some in each split and class of train.

    Raises:
        UserError: they are not, or do not; the message recommends what works for all splits together.
    """
    broken = {split: rows.skipped for split, rows in images.items() if rows.skipped}
    empty, lost, left = [split for split in broken if not len(images[split])], [], []
    if "train" in broken:
        task = task_of(splits["train"].features)
        counts = task.counts(images["train"].labels)
        lost = [name for name, n in task.counts(task.tensor(splits["train"])).items() if n and not counts[name]]
        left = [name for name, n in counts.items() if n]
    if not broken or (on_bad_image == "skip" and not empty and not lost):
        return
    fix: dict[str, Any] = {"on_bad_image": "skip"} if on_bad_image == "error" else {}
    fix |= {f"{split}_split": NO_SPLIT for split in empty} | ({"classes": left} if lost else {})
    helps = all(_is_given(split, splits) for split in empty) and (not lost or len(left) > 1)
    described = [_described(split, bad, len(splits[split])) for split, bad in broken.items()]
    if lost and left:
        described.append(f"none of train's images of {listed(map(repr, lost))} decodes")
    raise UserError(
        "\n".join([*described, f"replace or remove them{f', or set {as_options(fix)}' if helps else ''}"]),
        fix=fix if helps else None,
    )


def _described(split: str, bad: list[dict[str, Any]], count: int) -> str:
    """Which of the images of a split do not decode, and the reasons."""
    what = (
        f"{len(bad):,} of {count:,} images do not decode"
        if len(bad) < count
        else f"none of its {count:,} images decodes"
    )
    files = (f"  - {image['file']}: {image['reason']}" for image in bad)
    return f"{split}: {what}:\n{listed(files, 10, between=chr(10))}"


def _is_given(split: str, splits: DatasetDict) -> bool:
    """Whether the data have this split: one that was carved out of train shares no row number with it."""
    return "train" in splits and not set(splits["train"]["index"]).isdisjoint(splits[split]["index"])


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
