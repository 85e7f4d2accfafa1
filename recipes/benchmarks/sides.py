"""The sides that load or train: stock, tutorial, raw and ftkit.

- stock: a `datasets` image column (PNG), per-example torchvision transforms by `set_transform`, and a plain `Trainer`
  with its defaults, as in the official image-classification example. It clips gradients, so its loss differs from the
  others'.
- tutorial: the plain PyTorch loop over a torchvision-style dataset and a `DataLoader`.
- raw: normalised tensors in memory; a permutation, an index and a step: the limit of eager PyTorch.
- ftkit: what recipes/finetune.py runs.
"""

import copy
import math
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from PIL import Image as PILImage
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from benchmarks.data import HIDDEN, LEARNING_RATE, MOMENTUM, TRAINING, Setup, as_png
from benchmarks.timing import Side, clock
from ftkit.data.feeding.engine import set_up_loading
from ftkit.data.feeding.tensors import ImageTensors
from ftkit.data.pixels.normalize import channel_statistics
from ftkit.methods.parameter_groups import parameter_settings
from ftkit.models.anatomy import layer_groups
from ftkit.training.loop.objective import Objective
from ftkit.training.loop.trainer import ImageTrainer

WARM_UP_BATCHES = 4
SAMPLE = 2000  # images of train on which loss and accuracy are taken, before and after


class Loop(NamedTuple):
    """A model and a function that trains it for an epoch, with the names of `Trainer`'s members."""

    model: nn.Module
    train: Callable[[], Any]


def stock(setup: Setup) -> Trainer:
    """The official example: each image is decoded and transformed on access; a plain `Trainer`."""
    augmentations = (
        [RandomCrop(setup.info.size, padding=4), RandomHorizontalFlip()] if setup.config.data.augment else []
    )
    transforms = Compose([*augmentations, ToTensor(), Normalize(*channel_statistics(setup.images.histogram()))])
    mode = "L" if setup.info.channels == 1 else "RGB"

    def transform(batch: dict[str, list]) -> dict[str, list]:
        # The example converts to RGB here. Grey stays grey, so that all sides give the model the same work.
        batch["pixel_values"] = [transforms(image.convert(mode)) for image in batch["image"]]
        return batch

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        pixel_values = torch.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": pixel_values, "labels": torch.tensor([example["label"] for example in examples])}

    dataset = as_png(setup.rows).select_columns(["image", "label"])
    dataset.set_transform(transform)
    args = TrainingArguments(
        output_dir=setup.config.training.output_dir,
        per_device_train_batch_size=setup.batch_size,
        remove_unused_columns=False,
        use_cpu=setup.device.type == "cpu",
        **TRAINING,
    )
    trainer = Trainer(model=setup.model(), args=args, train_dataset=dataset, data_collator=collate)
    trainer.remove_callback(PrinterCallback)  # it would print between the rounds
    return trainer


class TutorialDataset(TorchDataset):
    """Like `torchvision.datasets.MNIST`: each array becomes a PIL image for the transform."""

    def __init__(self, images: ImageTensors, transform: Callable):
        self.data, self.targets, self.transform = images.images[:, 0], images.labels, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, target = self.data[index], int(self.targets[index])
        return self.transform(PILImage.fromarray(image.numpy())), target


def plain_model(setup: Setup) -> nn.Module:
    """The layers of ftkit's MLP as a tutorial writes them."""
    features, classes = math.prod(setup.images.shape), len(setup.images.task.names)
    layers = nn.Flatten(), nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes)
    return nn.Sequential(*layers).to(setup.device)


def tutorial(setup: Setup) -> Loop:
    """The loop of PyTorch's tutorials."""
    model, device = plain_model(setup), setup.device
    transform = Compose([ToTensor(), Normalize(*channel_statistics(setup.images.histogram()))])
    dataset = TutorialDataset(setup.tensors, transform)

    def epoch() -> None:
        loader = DataLoader(dataset, batch_size=setup.batch_size, shuffle=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        model.train()
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()

    return Loop(model, epoch)


def raw(setup: Setup) -> Loop:
    """No data path and no loop around the step: only the time that PyTorch itself needs."""
    plain, device = setup.config.model.model == "mlp", setup.device
    # channels_last takes about a seventh off a step of the convnet on a CPU, so raw uses it too.
    model = plain_model(setup) if plain else setup.model().to(device, memory_format=torch.channels_last)
    images, labels = setup.normalizer()(setup.tensors.images.to(device)), setup.images.labels.to(device)
    bf16 = setup.config.training.bf16
    precision = partial(torch.autocast, device.type, torch.bfloat16) if bf16 else nullcontext

    def epoch() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        model.train()
        for rows in torch.randperm(len(labels), device=device).split(setup.batch_size):
            optimizer.zero_grad()
            with precision():
                output = model(images[rows])
                loss = F.cross_entropy(output if plain else output.logits, labels[rows])
            loss.backward()
            optimizer.step()

    return Loop(model, epoch)


def ftkit(setup: Setup) -> ImageTrainer:
    """The training of recipes/finetune.py."""
    args, config, images = setup.config.training, setup.config, copy.copy(setup.images)
    set_up_loading(args, {"train": images}, None)  # it may move the images to an accelerator
    model = setup.model()
    settings = parameter_settings(model, layer_groups(model), args.learning_rate, config.method, config.loss)
    objective = Objective(config.loss, settings, config.data.augment or [])
    return ImageTrainer(model, args, setup.normalizer(), objective, images)


def score(setup: Setup, model: nn.Module) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of `model` on a sample of the training images."""
    images = setup.normalizer()(setup.tensors.images[:SAMPLE].to(setup.device))
    labels = setup.images.labels[:SAMPLE].to(setup.device)
    model.train()  # BatchNorm's running statistics lag behind
    with torch.no_grad():
        output = model(images)
    logits = output if isinstance(output, torch.Tensor) else output.logits
    return F.cross_entropy(logits, labels).item(), (logits.argmax(-1) == labels).float().mean().item()


def train(side: Callable[[Setup], Any], setup: Setup, number: int) -> dict[str, float]:
    """Time an epoch; loss and accuracy show that it trained.

    Raises:
        RuntimeError: the loss did not fall.
    """
    set_seed(number)
    trainer = side(setup)
    before, _ = score(setup, trainer.model)
    measured = clock(trainer.train, len(setup.images))
    loss, accuracy = score(setup, trainer.model)
    if not loss < before:
        raise RuntimeError(f"{side.__name__}: the loss went from {before:.4f} to {loss:.4f}: it does not train")
    return measured | {"loss_before": before, "loss": loss, "accuracy": accuracy}


def load(side: Callable[[Setup], Any], setup: Setup, number: int) -> dict[str, float]:
    """Time a pass over all batches, ready for the model: `prepare` is where ftkit augments and normalises."""
    set_seed(number)
    trainer = side(setup)
    loader = trainer.get_train_dataloader()
    to_device = partial(send_to_device, device=trainer.args.device)  # all that the stock `Trainer` does
    prepare = trainer.prepare if isinstance(trainer, ImageTrainer) else to_device
    return clock(lambda: deque(map(prepare, loader), maxlen=0), len(setup.images), len(loader))


def warmed(run: Callable[..., dict[str, float]], setup: Setup, *sides: Callable) -> dict[str, Side]:
    """Sides by name, each warmed up on a few batches."""
    for side in sides:
        run(side, setup.first(WARM_UP_BATCHES * setup.batch_size), 0)
    return {side.__name__: partial(run, side, setup) for side in sides}
