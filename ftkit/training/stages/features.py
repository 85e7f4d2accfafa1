"""A linear probe on cached features: a frozen body computes them once, and the head trains on them."""

import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from ftkit.console import ProgressLine
from ftkit.data.feeding.tensors import Batch, Images, collate
from ftkit.data.pixels.cache import cached, check_room
from ftkit.data.pixels.keys import cache_key
from ftkit.data.pixels.normalize import Normalize8Bit
from ftkit.methods.freezing import digests
from ftkit.models.anatomy import plain_name
from ftkit.precision import exact_float32, precision_of
from ftkit.training.loop.micro_batches import run_in_parts
from ftkit.training.provenance import arithmetic

logger = logging.getLogger(__name__)
_UNCACHED = {"cache_features": "false", "overwrite": "true"}  # of a run that has begun
_VERSION = 1  # raise it when the computation changes


class HeadAlone(nn.Module):
    """The head of a model, for features instead of pixels; training it trains the model's own head."""

    def __init__(self, model: PreTrainedModel | PeftModel, head: str):
        super().__init__()
        self.head, self.config = model.get_submodule(head), model.config

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutputWithNoAttention:
        """Features float (N, D) -> `logits` float (N, C)."""
        return ImageClassifierOutputWithNoAttention(logits=self.head(pixel_values))


class Features(Dataset):
    """The features of a split in place of its pixels, float32 (N, D)."""

    def __init__(self, features: torch.Tensor, tensors: Images):
        self.features, self.task = features, tensors.task
        self.labels, self.index = tensors.labels.cpu(), tensors.index.cpu()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, batch: Batch | Sequence[int]) -> dict[str, Any]:
        """The batch as `Images` returns it, but with `pixel_values` float32 (B, D)."""
        rows, epoch, weight, _ = batch if isinstance(batch, Batch) else Batch(torch.as_tensor(batch), 0)
        columns = {"pixel_values": self.features, "labels": self.labels, "index": self.index}
        found: dict[str, Any] = {name: column.index_select(0, rows) for name, column in columns.items()}
        if isinstance(batch, Batch):
            found["epoch"] = epoch
        return found if weight == 1 else found | {"weight": torch.tensor(weight)}


class FeatureExtractor:
    """Computes the input of a model's head for every image of a split.

    Args:
        model: a model with a frozen body.
        head: the name of its head.
        args: the run's training arguments, for device, batch size and precision.
        normalize: function from uint8 to the model's input.
        cache_dir: the folder where features are cached, keyed by weights, pixels, normalisation, and everything that
            changes the last digits of the features.
    """

    def __init__(
        self,
        model: Any,
        head: str,
        args: TrainingArguments,
        normalize: Normalize8Bit,
        cache_dir: str | None,
    ):
        self.model, self.args, self.normalize, self.cache_dir = model.to(args.device), args, normalize, cache_dir
        self.head, self.parts = model.get_submodule(head), 1
        body = digests(model, {name for name in model.state_dict() if plain_name(name).startswith(f"{head}.")})
        adapters = sorted(map(str, vars(model.active_peft_config).items())) if isinstance(model, PeftModel) else None
        self.key = (_VERSION, body, model.config.to_json_string(), adapters, precision_of(args), args.device.type)

    @exact_float32()
    def why_not(self, tensors: Images) -> str | None:
        """Why training on features would differ from training through the body, or None; tried on a few images."""
        images, training = tensors.sample(8), self.model.training
        try:
            features, logits = self._run(images, training=False)
            in_training, _ = self._run(images, training=True)
            if not torch.equal(features, in_training):
                return "it behaves differently in training, as with dropout"
            if features.ndim != 2 or not torch.allclose(
                self._apply(self.head, features), logits, atol=1e-5, rtol=1e-4
            ):
                return "the logits need more than its output"
        finally:
            self.model.train(training)
        return None

    def __call__(self, tensors: Images) -> Features:
        """The features of a split, computed or from the cache."""

        def write(folder: Path) -> None:
            logger.info("  features of %s images: computed once, cached for the next run", f"{len(tensors):,}")
            size, workers = self.args.per_device_eval_batch_size, self.args.dataloader_num_workers
            batches = DataLoader(tensors, size, collate_fn=collate, num_workers=workers, generator=torch.Generator())
            # Not through a memory map: a full disk would kill the process.
            progress = ProgressLine("computing features", len(tensors))
            with progress, (folder / "features.npy").open("wb") as file:
                for batch in batches:
                    features = self._features(batch)
                    progress.add(len(features))
                    if file.tell() == 0:
                        shape = (len(tensors), features.shape[1])
                        check_room(folder, 4 * math.prod(shape), "features", _UNCACHED)
                        about = {"descr": "<f4", "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_1_0(file, about)
                    file.write(np.ascontiguousarray(features.numpy()).data)
                file.flush()
                os.fsync(file.fileno())  # before the folder is renamed

        shift = (self.normalize.scale.tolist(), self.normalize.offset.tolist())
        computing = (*self.key, *arithmetic(self.args.device), self.args.per_device_eval_batch_size)
        key = cache_key(*computing, tensors.key, shift, computed_by=("torch", "timm", "transformers", "peft"))
        folder = cached(f"features-{key}", write, self.cache_dir)
        return Features(torch.from_numpy(np.load(folder / "features.npy", mmap_mode="c")), tensors)

    def _features(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """float32 (B, D), on the CPU; computed in more parts if memory is short."""
        given, self.parts = run_in_parts(lambda part: self._run(part["pixel_values"], False)[0], batch, self.parts)
        return torch.cat([features for features, _ in given])

    @torch.no_grad()
    def _run(self, images: torch.Tensor, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The head's input and the logits of uint8 images, float32 on the CPU."""
        given: list[torch.Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _head, inputs: given.append(inputs[0]))
        try:
            self.model.train(training)
            pixel_values = self.normalize(images.to(self.args.device))
            logits = self._apply(lambda values: self.model(pixel_values=values).logits, pixel_values)
        finally:
            hook.remove()
        return given[0].float().cpu(), logits

    @torch.no_grad()
    def _apply(self, function: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> torch.Tensor:
        dtype = torch.float16 if self.args.fp16 else torch.bfloat16
        device = self.args.device
        with torch.autocast(device.type, dtype, enabled=self.args.bf16 or self.args.fp16):
            return function(values.to(device)).float().cpu()
