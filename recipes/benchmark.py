"""What ftkit costs and what it saves: its data path and its training loop beside their baselines.

    python recipes/benchmark.py
    python recipes/benchmark.py --rows mnist_loader,augmentation --rounds 5 --mnist_dir path/to/mnist
    python recipes/benchmark.py --images 2000 --steps 3 --rounds 1 --cifar_dir path/to/cifar10 --output /tmp/look.json

Absolute times are not comparable between runs on a busy machine; ratios are, since the sides of a row take turns
within one process. Every row gives the median and each round of its sides, and the ratios with their targets:

- mnist_loader, cifar_loader: a pass over all batches, no model; CIFAR-10 with random crop and flip.
- mnist_mlp: an epoch of MNIST, MLP 784-512-10, fp32.
- mnist_convnet: an epoch of MNIST, ftkit's convnet, bf16.
- cifar_resnet18: the data's share of a training step of timm's ResNet-18 at 32 x 32 pixels.
- augmentation: crop, flip and cutout of a batch, against torchvision image by image.
- cache: decoding PNG files into the tensor cache, against PIL on all cores; and the start after that.
- memory: what a process that decodes CIFAR-10 and trains on it grows by, without those that decode for it.
- stream: JPEG files to 224 pixels by the streaming engine, against decoding alone on all cores, and against decoding
  and the same resizing.

The sides that train or load:

- stock: a `datasets` image column (PNG) with a per-example `set_transform` of torchvision and a plain `Trainer`, the
  way the ecosystem's official image-classification example does it, with the `Trainer`'s defaults (one of them clips
  the gradients, so that its loss differs from the others').
- tutorial: the plain PyTorch loop over a torchvision-style dataset and a `DataLoader`.
- raw: tensors already normalised in memory; a permutation, an index and a step: the limit of eager PyTorch.
- ftkit: what recipes/finetune.py runs.

MNIST and CIFAR-10 are looked up as by recipes/finetune.py: in `FTKIT_DATA_DIR`, then on the Hub.
"""

import copy
import functools
import gc
import io
import json
import math
import multiprocessing
import operator
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
import traceback
from argparse import SUPPRESS, ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value, concatenate_datasets
from PIL import Image as PILImage
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor, v2
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from ftkit.config.configuration import Config
from ftkit.console import banner, fact, set_up_console
from ftkit.data.augmentation.augment import augment
from ftkit.data.feeding.engine import set_up_loading
from ftkit.data.feeding.stream import StreamedImages
from ftkit.data.feeding.tensors import Images, ImageTensors, image_tensors
from ftkit.data.pixels.decoding import Decoder, cores
from ftkit.data.pixels.images import ImageInfo, describe_images, encoded, open_image
from ftkit.data.pixels.normalize import Normalize8Bit, channel_statistics, normalizer
from ftkit.data.sources.load import load_data
from ftkit.errors import UserError, nearest, user_errors
from ftkit.methods.parameter_groups import parameter_settings
from ftkit.models.anatomy import layer_groups
from ftkit.models.build import build_model, fit_normalization
from ftkit.owners import parse_config
from ftkit.tasks.columns import column
from ftkit.training.provenance import environment
from ftkit.training.trainer import ImageTrainer, Objective

HIDDEN, LEARNING_RATE, MOMENTUM = 512, 0.01, 0.5
CROP_AND_FLIP = ["random_crop", "flip"]
WARM_UP_BATCHES = 4
SAMPLE = 2000  # images of train on which loss and accuracy are taken, before and after
REPEATS = 20  # of a batch's augmentation, within a round
MEMORY_STEPS, MEMORY_TO_SPARE = 20, 0.6  # GB, beside the pixels and the model
PHOTOS = 1000
# How every side trains; the `Trainer` and ftkit, which is the same, take it by these names.
TRAINING = {
    "num_train_epochs": 1,
    "optim": "sgd",
    "optim_args": f"momentum={MOMENTUM}",
    "learning_rate": LEARNING_RATE,
    "lr_scheduler_type": "constant",
    "save_strategy": "no",
    "disable_tqdm": True,
}
RELATIONS = {">=": operator.ge, "<=": operator.le, "<": operator.lt}


@dataclass(eq=False)  # so that it can be the key of a cache
class Bench:
    """The command line, a temporary folder, and what is closed after the row."""

    args: Namespace
    folder: Path
    stack: ExitStack


class Task(NamedTuple):
    """What every side works on: the same images, as each of them expects to find them."""

    config: Config
    rows: Dataset
    info: ImageInfo
    images: Images
    processor: Any

    @property
    def batch_size(self) -> int:
        return self.config.training.per_device_train_batch_size

    @property
    def device(self) -> torch.device:
        return self.config.training.device

    def __str__(self) -> str:
        return f"{len(self.images):,} images in batches of {self.batch_size}"

    def first(self, count: int) -> "Task":
        """The same with fewer images."""
        rows = self.rows.select(range(min(count, len(self.rows))))
        return self._replace(
            rows=rows, images=ImageTensors(self.images.images[: len(rows)], rows, self.images.hashes, "", [])
        )

    def model(self) -> PreTrainedModel:
        """ftkit's model with random weights."""
        return build_model(self.config.model, self.images.task.names, self.info, pretrained=False)[0]

    def normalizer(self) -> Normalize8Bit:
        """From uint8 to what the models take."""
        return normalizer(self.processor, self.info.channels)


class Loop(NamedTuple):
    """A model and what trains it for an epoch, under the names that a `Trainer` has for them."""

    model: nn.Module
    train: Callable[[], Any]


# What a side does in the round of this number, and the numbers that came of it.
Side = Callable[[int], dict[str, float]]


class Row(NamedTuple):
    """Sides by name, which run in turn, and goals for the median of one of their numbers, such as `a / b >= 40`."""

    what: str
    sides: dict[str, Side]
    goals: list[str]
    measure: str = "seconds"


def clock(job: Callable[[], Any], images: int, batches: int = 1) -> dict[str, float]:
    """How long `job` takes, which goes over so many images and batches."""
    gc.collect()  # so that no side pays for what another left
    wait = torch.accelerator.synchronize if torch.accelerator.is_available() else lambda: None
    wait()
    started, cpu_started = time.perf_counter(), time.process_time()
    job()
    wait()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    # The processor's time, without other processes: where it is far from the clock's, something else had the machine.
    times = {"seconds": seconds, "cpu_seconds": cpu_seconds}
    return times | {"seconds_per_batch": seconds / batches, "images_per_second": images / seconds}


# The data, and what is made of them.


def read_config(bench: Bench, dataset: str, **settings: Any) -> Config:
    """Settings by the road of every recipe; run and cache go to the benchmark's folder."""
    settings = {
        "dataset": dataset,
        "data_dir": {"mnist": bench.args.mnist_dir, "cifar10": bench.args.cifar_dir}.get(dataset),
        "max_grad_norm": 0,
        "eval_strategy": "no",
        "cache_dir": str(bench.folder / "cache"),
        "output_dir": str(bench.folder / "run"),
        **TRAINING,
        **settings,
    }
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return parse_config([f"--{key}={text}" for key, text in texts.items() if text != "null"])


@functools.cache  # one object for all rows of the benchmark, so that `as_png` encodes it once
def read_images(bench: Bench, dataset: str, test: bool = False) -> Dataset:
    """The first images of train, and of what was carved out of it for validation: nothing is chosen here."""
    splits = load_data(read_config(bench, dataset).data)
    rows = concatenate_datasets([splits[name] for name in ("train", "validation", "test")[: 3 if test else 2]])
    return rows.select(range(min(bench.args.images or len(rows), len(rows))))


def make_task(
    bench: Bench,
    dataset: str,
    batch_size: int,
    rows: Dataset | None = None,
    engine: Callable[..., Images] = image_tensors,
    **settings: Any,
) -> Task:
    """Prepare images for ftkit, once, as a run does: `rows`, or else those of the dataset."""
    config = read_config(bench, dataset, per_device_train_batch_size=batch_size, **settings)
    rows = read_images(bench, dataset) if rows is None else rows
    info = describe_images(rows)
    model, processor = build_model(config.model, rows.features["label"].names, info, pretrained=False)
    images = engine(rows, processor, info.channels, cache_dir=config.data.cache_dir)
    processor = fit_normalization(config.model, model, processor, images, pretrained=False)
    return Task(config, rows, info, images, processor)


def with_images(rows: Dataset, images: list[dict] | list[str]) -> Dataset:
    """The labels of `rows`, with other images in a `datasets` image column."""
    features = Features(image=Image(), label=rows.features["label"], index=Value("int64"))
    columns = {"image": images, "label": column(rows, "label"), "index": np.arange(len(rows))}
    return Dataset.from_dict(columns, features)


@functools.cache
def as_png(rows: Dataset) -> Dataset:
    """The images as PNG files in the image column, which is how the Hub holds MNIST and CIFAR-10."""
    files = []
    for file in encoded(rows)[:]["image"]:
        buffer = io.BytesIO()
        open_image(file).save(buffer, "PNG")
        files.append({"bytes": buffer.getvalue(), "path": None})
    return with_images(rows, files)


def as_photos(rows: Dataset, folder: Path) -> Dataset:
    """JPEG files of about 400 x 300 pixels: the images made larger, with noise, so that there is much to decode."""
    folder.mkdir()
    rng, paths = np.random.default_rng(0), []
    for number, image in enumerate(rows["image"]):
        size = int(rng.integers(380, 421)), int(rng.integers(285, 316))
        large = np.asarray(image.convert("RGB").resize(size, PILImage.Resampling.BICUBIC)).astype(np.int16)
        noisy = (large + rng.integers(-12, 13, large.shape, dtype=np.int16)).clip(0, 255).astype(np.uint8)
        paths.append(str(folder / f"{number:06}.jpg"))
        PILImage.fromarray(noisy).save(paths[-1], quality=90)
    return with_images(rows, paths)


# The sides that train and load.


def stock(task: Task) -> Trainer:
    """The official example: decode and transform each image when it is asked for; a plain `Trainer`."""
    augmentations = [RandomCrop(task.info.size, padding=4), RandomHorizontalFlip()] if task.config.data.augment else []
    transforms = Compose([*augmentations, ToTensor(), Normalize(*channel_statistics(task.images.histogram()))])
    mode = "L" if task.info.channels == 1 else "RGB"

    def transform(batch: dict[str, list]) -> dict[str, list]:
        # The example converts to RGB here. Grey stays grey, so that all sides give the model the same work.
        batch["pixel_values"] = [transforms(image.convert(mode)) for image in batch["image"]]
        return batch

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        pixel_values = torch.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": pixel_values, "labels": torch.tensor([example["label"] for example in examples])}

    dataset = as_png(task.rows).select_columns(["image", "label"])
    dataset.set_transform(transform)
    args = TrainingArguments(
        output_dir=task.config.training.output_dir,
        per_device_train_batch_size=task.batch_size,
        remove_unused_columns=False,
        use_cpu=task.device.type == "cpu",
        **TRAINING,
    )
    trainer = Trainer(model=task.model(), args=args, train_dataset=dataset, data_collator=collate)
    trainer.remove_callback(PrinterCallback)  # it would print between the rounds
    return trainer


class TutorialDataset(TorchDataset):
    """What `torchvision.datasets.MNIST` does: an array becomes a PIL image, which the transform takes."""

    def __init__(self, images: ImageTensors, transform: Callable):
        self.data, self.targets, self.transform = images.images[:, 0], images.labels, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, target = self.data[index], int(self.targets[index])
        return self.transform(PILImage.fromarray(image.numpy())), target


def plain_model(task: Task) -> nn.Module:
    """The layers of ftkit's MLP as a tutorial writes them."""
    features, classes = math.prod(task.images.shape), len(task.images.task.names)
    layers = nn.Flatten(), nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes)
    return nn.Sequential(*layers).to(task.device)


def tutorial(task: Task) -> Loop:
    """The loop of PyTorch's tutorials."""
    model, device = plain_model(task), task.device
    transform = Compose([ToTensor(), Normalize(*channel_statistics(task.images.histogram()))])
    dataset = TutorialDataset(task.images, transform)

    def epoch() -> None:
        loader = DataLoader(dataset, batch_size=task.batch_size, shuffle=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        model.train()
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()

    return Loop(model, epoch)


def raw(task: Task) -> Loop:
    """No data path and no loop around the step: what is left is what PyTorch itself needs."""
    plain, device = task.config.model.model == "mlp", task.device
    # Weights in channels_last take about a seventh off a step of the convnet on a CPU, so that raw has them.
    model = plain_model(task) if plain else task.model().to(device, memory_format=torch.channels_last)
    images, labels = task.normalizer()(task.images.images.to(device)), task.images.labels.to(device)
    bf16 = task.config.training.bf16
    precision = partial(torch.autocast, device.type, torch.bfloat16) if bf16 else nullcontext

    def epoch() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        model.train()
        for rows in torch.randperm(len(labels), device=device).split(task.batch_size):
            optimizer.zero_grad()
            with precision():
                output = model(images[rows])
                loss = F.cross_entropy(output if plain else output.logits, labels[rows])
            loss.backward()
            optimizer.step()

    return Loop(model, epoch)


def ftkit(task: Task) -> ImageTrainer:
    """The road of recipes/finetune.py."""
    args, config, images = task.config.training, task.config, copy.copy(task.images)
    set_up_loading(args, {"train": images}, None)  # it may move the images to an accelerator
    model = task.model()
    settings = parameter_settings(model, layer_groups(model), args.learning_rate, config.method, config.loss)
    objective = Objective(config.loss, settings, config.data.augment or [])
    return ImageTrainer(model, args, task.normalizer(), objective, images)


def score(task: Task, model: nn.Module) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of `model` on a sample of the training images."""
    images = task.normalizer()(task.images.images[:SAMPLE].to(task.device))
    labels = task.images.labels[:SAMPLE].to(task.device)
    model.train()  # BatchNorm's running statistics lag behind
    with torch.no_grad():
        output = model(images)
    logits = output if isinstance(output, torch.Tensor) else output.logits
    return F.cross_entropy(logits, labels).item(), (logits.argmax(-1) == labels).float().mean().item()


def train(side: Callable[[Task], Trainer | Loop], task: Task, number: int) -> dict[str, float]:
    """Time an epoch, with the loss and accuracy that show that it trained.

    Raises:
        RuntimeError: the loss did not fall, so whatever was timed was no training.
    """
    set_seed(number)
    trainer = side(task)
    before, _ = score(task, trainer.model)
    measured = clock(trainer.train, len(task.images))
    loss, accuracy = score(task, trainer.model)
    if not loss < before:
        raise RuntimeError(f"{side.__name__}: the loss went from {before:.4f} to {loss:.4f}: it does not train")
    return measured | {"loss_before": before, "loss": loss, "accuracy": accuracy}


def load(side: Callable[[Task], Trainer], task: Task, number: int) -> dict[str, float]:
    """Time a pass over all batches as the model gets them: ftkit augments, normalises and lays out only then."""
    set_seed(number)
    trainer = side(task)
    trainer.model.train()  # augmentation is for training
    loader = trainer.get_train_dataloader()
    return clock(lambda: deque(map(trainer._prepare_inputs, loader), maxlen=0), len(task.images), len(loader))


def warmed(run: Callable[..., dict[str, float]], task: Task, *sides: Callable) -> dict[str, Side]:
    """Sides by name, each of which has run on a few batches."""
    for side in sides:
        run(side, task.first(WARM_UP_BATCHES * task.batch_size), 0)
    return {side.__name__: partial(run, side, task) for side in sides}


# Decoding alone.

HELD: list[dict] = []  # files, within a process that decodes them


def decode(rows: range) -> None:
    """Decode these of the files, and nothing else."""
    for row in rows:
        open_image(HELD[row]).load()


def resize(rows: range) -> None:
    """Decode and resize these images as ftkit does."""
    HELD[0](rows)


def pool_of(held: list) -> Any:
    """A process for each core, forked, so that what it works on need not be sent to it."""
    return multiprocessing.get_context("fork").Pool(cores(), HELD.extend, (held,))


def over_all(pool: Any, work: Callable[[range], None], count: int, chunk: int = 128) -> None:
    """Do `work` to all rows."""
    pool.map(work, [range(start, min(start + chunk, count)) for start in range(0, count, chunk)], chunksize=1)


# The rows.


def mnist_loader(bench: Bench) -> Row:
    """The loader alone."""
    task = make_task(bench, "mnist", 64, model="convnet")
    sides = warmed(load, task, stock, ftkit)
    return Row(f"MNIST, {task}: a pass of the loader", sides, ["stock / ftkit >= 40"])


def cifar_loader(bench: Bench) -> Row:
    """The loader with augmentation."""
    task = make_task(bench, "cifar10", 128, model="convnet", augment=CROP_AND_FLIP)
    sides = warmed(load, task, stock, ftkit)
    return Row(f"CIFAR-10, {task}, crop and flip: a pass of the loader", sides, ["stock / ftkit >= 40"])


def mnist_mlp(bench: Bench) -> Row:
    """A small model, of which the loop around it is a large part."""
    task = make_task(bench, "mnist", 64, model="mlp", model_args={"hidden_sizes": [HIDDEN]})
    sides = warmed(train, task, stock, tutorial, raw, ftkit)
    return Row(f"MNIST, {task}, MLP: an epoch", sides, ["stock / ftkit >= 6", "ftkit / raw <= 1.35"])


def mnist_convnet(bench: Bench) -> Row:
    """A model of some size."""
    task = make_task(bench, "mnist", 512, model="convnet", bf16=True)
    sides = warmed(train, task, raw, ftkit)
    return Row(f"MNIST, {task}, convnet, bf16: an epoch", sides, ["ftkit / raw <= 1.1"])


def cifar_resnet18(bench: Bench) -> Row:
    """The data's share of a step; an epoch would take minutes."""
    steps = bench.args.steps
    task = make_task(bench, "cifar10", 128, model="timm/resnet18", augment=CROP_AND_FLIP, max_steps=steps)
    images = steps * task.batch_size

    def step(number: int) -> dict[str, float]:
        set_seed(number)
        return clock(ftkit(task).train, images, steps)

    loading = warmed(load, task, ftkit)["ftkit"]
    sides = {"stock_loader": partial(load, stock, task.first(images)), "loader": loading, "step": step}
    what = f"CIFAR-10, {task}, crop and flip, ResNet-18: the data's share of {steps} steps"
    return Row(what, sides, ["loader / step < 0.03"], "seconds_per_batch")


def augmentation(bench: Bench) -> Row:
    """The batch as a whole, against image by image."""
    count, side = min(512, bench.args.images or 512), 32
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)
    square, steps = (8 / side) ** 2, [*CROP_AND_FLIP, "cutout"]
    erasing = v2.RandomErasing(p=1, scale=(square, square), ratio=(1, 1), value=0)
    transform = v2.Compose([v2.RandomCrop(side, padding=4), v2.RandomHorizontalFlip(), erasing])

    def timed(job: Callable[[], torch.Tensor]) -> dict[str, float]:
        job()
        seconds = statistics.median(timeit.repeat(job, number=1, repeat=REPEATS))
        return {"seconds": seconds, "images_per_second": count / seconds}

    sides = {
        "torchvision": lambda number: timed(lambda: torch.stack([transform(image) for image in images])),
        "ftkit": lambda number: timed(lambda: augment(images, torch.arange(count), steps, number, 0)),
    }
    what = f"crop, flip and cutout of {count} images of 3 x 32 x 32, median of {REPEATS}"
    return Row(what, sides, ["torchvision / ftkit >= 30"])


def cache(bench: Bench) -> Row:
    """The first start, and the second."""
    sides = cache_sides(bench, "mnist") | cache_sides(bench, "cifar10")
    goals = [f"{name} / {name}_pil <= 1.2" for name in ("mnist", "cifar10")]
    goals += [f"{name}_again < 1" for name in ("mnist", "cifar10")]
    return Row("PNG files of MNIST and CIFAR-10 into the tensor cache, PIL alone, the next start", sides, goals)


def cache_sides(bench: Bench, name: str) -> dict[str, Side]:
    """The sides of `cache` for one dataset."""
    task = make_task(bench, name, 128, model="convnet")
    png, folder = as_png(task.rows), bench.folder / f"first-{name}"
    files = encoded(png)[:]["image"]

    def start(number: int) -> dict[str, float]:
        return clock(lambda: image_tensors(png, task.processor, task.info.channels, cache_dir=folder), len(png))

    def first_start(number: int) -> dict[str, float]:
        shutil.rmtree(folder, ignore_errors=True)
        return start(number)

    def alone() -> None:
        with pool_of(files) as pool:
            over_all(pool, decode, len(files))

    return {name: first_start, f"{name}_pil": lambda number: clock(alone, len(png)), f"{name}_again": start}


def memory(bench: Bench) -> Row:
    """Measured in a process of its own, whose memory holds nothing else."""
    measured: list[dict[str, float]] = []
    data = {"cifar_dir": bench.args.cifar_dir, "images": bench.args.images}
    options = [f"--{key}={value}" for key, value in data.items() if value is not None]

    def grown(number: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
            command = [sys.executable, __file__, "--grow_in", folder, *options]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"the process that was to be measured failed: {done.stderr.strip()[-2000:]}")
        measured.append(json.loads(done.stdout.splitlines()[-1]))
        return measured[-1]

    sides = {"ftkit": grown, "allowed": lambda number: {"gigabytes": measured[-1]["allowed"]}}
    what = f"CIFAR-10 with its test part, convnet, {MEMORY_STEPS} steps: what the process grows by"
    return Row(what, sides, ["ftkit / allowed <= 1"], "gigabytes")


def resident(key: str) -> float:
    """The memory that this process holds (`VmRSS`), or the most that it held (`VmHWM`), in GB.

    Not `getrusage`: on Linux a process inherits its `ru_maxrss` from the one that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(f"{key}:"))


def grow(bench: Bench) -> dict[str, float]:
    """Decode, train, and tell how far memory grew: what the process of the row `memory` does."""
    before = resident("VmRSS")
    rows = read_images(bench, "cifar10", test=True)
    task = make_task(bench, "cifar10", 128, rows, model="convnet", max_steps=MEMORY_STEPS)
    trainer = ftkit(task)
    trainer.train()
    peak = resident("VmHWM")
    tensors = task.images.images, *trainer.model.state_dict().values()
    allowed = sum(tensor.nbytes for tensor in tensors) / 1e9 + MEMORY_TO_SPARE
    return {"gigabytes": peak - before, "allowed": allowed, "before": before, "peak": peak, "images": len(task.images)}


def stream(bench: Bench) -> Row:
    """Files that are decoded for every batch."""
    rows = read_images(bench, "cifar10")
    photos = as_photos(rows.select(range(min(PHOTOS, len(rows)))), bench.folder / "photos")
    count, jobs = len(photos), {}
    for name, engine in {"stream": StreamedImages, "tensor": image_tensors}.items():
        task = make_task(bench, "cifar10", 64, photos, engine, model="timm/resnet18", image_size=224)
        jobs[name] = partial(deque, ftkit(task).get_train_dataloader(), 0)
    held = {"decoding": encoded(photos)[:]["image"], "resizing": [Decoder(photos, task.processor, 3)]}
    for name, work in {"decoding": decode, "resizing": resize}.items():
        jobs[name] = partial(over_all, bench.stack.enter_context(pool_of(held[name])), work, count, 64)
    for job in jobs.values():
        job()  # starts the processes, which stay
    sides = {name: lambda number, job=job: clock(job, count) for name, job in jobs.items()}
    what = f"{count:,} JPEG files of about 400 x 300 to 224 pixels, {cores()} processes: a pass of the loader"
    return Row(what, sides, ["stream / decoding <= 1.1", "stream / resizing <= 1.1"])


_rows = mnist_loader, cifar_loader, mnist_mlp, mnist_convnet, cifar_resnet18, augmentation, cache, memory, stream
ROWS: dict[str, Callable[[Bench], Row]] = {row.__name__: row for row in _rows}


def measure(row: Row, rounds: int) -> dict[str, Any]:
    """Run the sides of a row in turn, `rounds` times, and sum up what each measured."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in row.sides}
    for number in range(rounds):
        for name, side in row.sides.items():
            runs[name].append(side(number))
        fact(f"round {number + 1}", ", ".join(f"{name} {runs[name][-1][row.measure]:.3g}" for name in row.sides))
    medians = {name: statistics.median(run[row.measure] for run in runs[name]) for name in row.sides}
    return {
        "what": row.what,
        "measure": row.measure,
        "sides": {name: {"median": median, "runs": runs[name]} for name, median in medians.items()},
        "goals": [judge(goal, medians) for goal in row.goals],
        "load": os.getloadavg(),
    }


def judge(goal: str, medians: dict[str, float]) -> dict[str, Any]:
    """Whether the medians reach a goal such as `stock / ftkit >= 40` or `again < 1`."""
    what, relation, bound = goal.rsplit(" ", 2)
    side, _, other = what.partition(" / ")
    value = medians[side] / (medians[other] if other else 1)
    met = RELATIONS[relation](value, float(bound))
    return {"what": what, "value": value, "target": f"{relation} {bound}", "met": met}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The results as text: a line for each side and for each goal."""
    lines = []
    for name, row in rows.items():
        if "error" in row:
            lines.append(f"{name}: FAILED: {row['error']}")
            continue
        lines.append(f"{name}: {row['what']} ({row['measure'].replace('_', ' ')})")
        for side, result in row["sides"].items():
            each = " ".join(f"{run[row['measure']]:.3g}" for run in result["runs"])
            speeds = [run["images_per_second"] for run in result["runs"] if "images_per_second" in run]
            speed = f"  {statistics.median(speeds):,.0f} images/s" if speeds else ""
            lines.append(f"  {side:<12} {result['median']:>8.3g}  each round: {each}{speed}")
        for goal in row["goals"]:
            verdict = "met" if goal["met"] else "MISSED"
            lines.append(f"  {goal['what']} = {goal['value']:.3g}, target {goal['target']}: {verdict}")
    return "\n".join(lines)


def cpu_name() -> str | None:
    """The processor's name, where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def parse_arguments(arguments: list[str]) -> Namespace:
    """The command line, checked."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="what is measured, and in which order")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs")
    parser.add_argument("--images", type=int, help="at most so many images in every row, for a quick look")
    parser.add_argument("--steps", type=int, default=25, help="training steps of cifar_resnet18")
    parser.add_argument("--mnist_dir", help="a folder with MNIST")
    parser.add_argument("--cifar_dir", help="a folder with CIFAR-10")
    parser.add_argument("--output", type=Path, default=Path("benchmark.json"), help="where the results are stored")
    parser.add_argument("--grow_in", type=Path, help=SUPPRESS)  # the process that the row `memory` measures
    args = parser.parse_args(arguments)
    args.rows = list(dict.fromkeys(args.rows.split(",")))
    for name in args.rows:
        if name not in ROWS:
            raise UserError(f"--rows: {name!r} is not one of {', '.join(ROWS)}{nearest(name, list(ROWS))}")
    for key in ("rounds", "images", "steps"):
        if (value := getattr(args, key)) is not None and value < 1:
            raise UserError(f"--{key}: {value} must be at least 1")
    return args


def write(path: Path, record: dict[str, Any]) -> None:
    """Store the results so far."""
    try:
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written: {error}") from error


def main(arguments: list[str]) -> None:
    """Run the benchmark that `arguments`, a command line without the program's name, describe."""
    args = parse_arguments(arguments)
    if args.grow_in is not None:
        print(json.dumps(grow(Bench(args, args.grow_in, ExitStack()))))
        return
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder), ExitStack())
        training = read_config(bench, "digits").training
        set_up_console(training)
        hardware = environment() | {"cpu": cpu_name(), "device": str(training.device), "load": os.getloadavg()}
        fact("hardware", f"{hardware['cpu']}, {hardware['threads']} threads, on {hardware['device']}")
        limits = {"rounds": args.rounds, "images": args.images, "steps": args.steps}
        record: dict[str, Any] = limits | {"environment": hardware, "rows": {}}
        for name in args.rows:
            banner(name)
            write(args.output, record)  # before the first row too: that it cannot be written is known at once
            try:
                with bench.stack:
                    record["rows"][name] = measure(ROWS[name](bench), args.rounds)
            except Exception as error:  # it is told below, and the other rows go on
                if not isinstance(error, UserError):
                    traceback.print_exc()
                record["rows"][name] = {"error": f"{type(error).__name__}: {error}"}
        write(args.output, record)
    print(f"\n{table(record['rows'])}\n\nwritten: {args.output}")
    if failed := [name for name, row in record["rows"].items() if "error" in row]:
        raise UserError(f"not measured, see above: {', '.join(failed)}")


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
