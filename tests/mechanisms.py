"""Mechanisms of ftkit that can be combined in one run, and how to see that each was active."""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from safetensors.torch import load_file
from support import finetune

from ftkit.data.augmentation.mixing import Mixing
from ftkit.models.modeling_mlp import MLPForImageClassification
from ftkit.training.loop.trainer import ImageTrainer

# Batches of 20, 20 and 5 images: the last one is smaller than the parts of the others.
OPTIONS = ["--method", "full", "--max_train_samples", 45, "--num_train_epochs", 3, "--learning_rate", 0.01,
           "--save_total_limit", 9, "--label_smoothing_factor", 0]  # fmt: skip
SPOILED = 4  # optimizer steps before the one with a NaN loss, to test `on_nan`; a checkpoint exists by then
FIT = 2  # images fit into memory, to test `auto_find_batch_size`


class Mechanism(NamedTuple):
    """Options that switch a mechanism on, and a check of a run and its trainer that it was active."""

    options: list[Any]
    seen: Callable[[Path, ImageTrainer], bool]


def averaged(_run: Path, trainer: ImageTrainer) -> bool:
    best = Path(trainer.state.best_model_checkpoint)
    average, raw = load_file(best / "average.safetensors"), load_file(best / "model.safetensors")
    model = trainer.original.state_dict()
    same = all(torch.equal(model[name], value) for name, value in average.items() if name in model)
    return same and any(not torch.equal(average[name], value) for name, value in raw.items() if name in average)


def left_out(run: Path, _trainer: ImageTrainer) -> bool:
    return json.loads((run / "run.json").read_text())["stages"][0]["updates_left_out"] == 1


MECHANISMS = {
    "ema": Mechanism(["--ema_decay", 0.5], averaged),
    "adalora": Mechanism(
        ["--method", "adalora", "--adapter_args", '{"tinit": 1, "tfinal": 1, "deltaT": 1}'],
        lambda _, trainer: (Path(trainer.state.best_model_checkpoint) / "ranks.safetensors").is_file(),
    ),
    "mixup": Mechanism(["--mixup", 0.4], lambda _, trainer: trainer.mixed > 0),
    "accumulation": Mechanism(
        ["--gradient_accumulation_steps", 2], lambda _, trainer: trainer.state.global_step == 3 * 2
    ),
    "skip": Mechanism(["--on_nan", "skip"], left_out),
    "rollback": Mechanism(["--on_nan", "rollback"], lambda _, trainer: trainer.back == 1),
    "auto": Mechanism(["--auto_find_batch_size", "true"], lambda _, trainer: trainer.parts > 1),
    "compile": Mechanism(["--torch_compile_backend", "eager"], lambda _, trainer: trainer.compiled > 0),
}
APART = {("skip", "rollback"), ("ema", "adalora")}  # one key; refused, see test_config.py
PAIRS = [pair for pair in itertools.combinations(MECHANISMS, 2) if pair not in APART]


def run_pair(output_dir: Path, model: Path, names: tuple[str, ...], *options: Any) -> ImageTrainer:
    """Train with these mechanisms and assert that each was active; returns the trainer of the only stage."""
    given = [word for name in names for word in MECHANISMS[name].options]
    with _watched(names) as trainers:
        finetune(output_dir, "--model", model, *OPTIONS, *given, *options)
    (trainer,) = trainers
    if trainer.args.process_index == 0:
        assert [name for name in names if not MECHANISMS[name].seen(output_dir, trainer)] == []
    assert all(bool(tensor.isfinite().all()) for tensor in trainer.original.state_dict().values())
    return trainer


@contextmanager
def _watched(names: tuple[str, ...]) -> Iterator[list[ImageTrainer]]:
    """Record trainers within the block, and cause what the mechanisms handle: a NaN loss, a lack of memory."""
    trainers, train, loss = [], ImageTrainer.train, ImageTrainer.compute_loss
    mix, roll_back, forward = Mixing.__call__, ImageTrainer.roll_back, MLPForImageClassification.forward
    compile_model = torch.compile

    def note(self, **kwargs):
        trainers.append(self)
        self.mixed = self.back = self.compiled = 0
        output = train(self, **kwargs)
        self.compiled += bool(self.is_deepspeed_enabled and self.deepspeed.is_compiled)
        return output

    def spoil(self, model, inputs, **options):
        found = loss(self, model, inputs, **options)
        now = model.training and self.state.global_step == SPOILED and self.args.process_index == 0
        return found * float("nan") if now else found

    def count_mixes(self, *args):
        trainers[-1].mixed += 1
        return mix(self, *args)

    def count_returns(self, *args):
        self.back += 1
        return roll_back(self, *args)

    def count_compiled(model, **options):
        trainers[-1].compiled += 1
        return compile_model(model, **options)

    def short_of_memory(self, pixel_values, **options):
        if self.training and len(pixel_values) > FIT:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, pixel_values, **options)

    with ExitStack() as patched:
        for target, name, function in (
            (ImageTrainer, "train", note),
            (Mixing, "__call__", count_mixes),
            (ImageTrainer, "roll_back", count_returns),
            (torch, "compile", count_compiled),
            *([(ImageTrainer, "compute_loss", spoil)] if {"skip", "rollback"} & {*names} else []),
            *([(MLPForImageClassification, "forward", short_of_memory)] if "auto" in names else []),
        ):
            patched.enter_context(mock.patch.object(target, name, function))
        yield trainers
