"""What the data path and the training loop cost: one epoch of MNIST, ftkit beside its baselines.

    python recipes/benchmark.py --data_dir path/to/mnist
    python recipes/benchmark.py --images 6400 --rounds 1 --sides raw,ftkit --output /tmp/benchmark.json

Each side trains the same MLP 784-512-10 on the same images in fp32: SGD, learning rate 0.01, momentum 0.5,
cross-entropy; nothing is evaluated or saved inside the timed part. The sides take turns within one process, since
times of different runs are not comparable on a busy machine; the ratios of the medians are.

- stock: a `datasets` image column (PNG) with a per-example `set_transform` of torchvision and a plain `Trainer`, the
  way the ecosystem's official image-classification example does it, with the `Trainer`'s defaults (one of them clips
  the gradients, so that its loss differs from the others').
- tutorial: the plain PyTorch loop over a torchvision-style dataset and a `DataLoader`.
- raw: tensors already normalised in memory; a permutation, an index and a step: the limit of eager PyTorch.
- ftkit: what recipes/finetune.py runs.

Without `--data_dir` MNIST is looked up as by recipes/finetune.py: in `FTKIT_DATA_DIR`, then on the Hub.
"""

import gc
import io
import json
import os
import statistics
import sys
import tempfile
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import ClassLabel, Dataset, Features, Image, concatenate_datasets
from PIL import Image as PILImage
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import Compose, Normalize, ToTensor
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from ftkit.config import Config, parse_config
from ftkit.console import banner, fact, set_up_console
from ftkit.data.images import describe_images
from ftkit.data.pixels import normalizer
from ftkit.data.sources import load_data
from ftkit.data.tensors import ImageTensors, image_tensors
from ftkit.errors import UserError, nearest, user_errors
from ftkit.methods.parameter_groups import parameter_settings
from ftkit.models.anatomy import layer_groups
from ftkit.models.build import build_model, fit_normalization
from ftkit.training.provenance import environment
from ftkit.training.trainer import ImageTrainer, Objective

HIDDEN, LEARNING_RATE, MOMENTUM = 512, 0.01, 0.5
WARM_UP_BATCHES = 4
SAMPLE = 2000  # images of train on which loss and accuracy are taken, before and after


class Task(NamedTuple):
    """What every side trains on: the same images, as each of them expects to find them."""

    config: Config
    tensors: ImageTensors
    png: Dataset
    processor: Any
    mean: list[float]
    std: list[float]

    @property
    def batch_size(self) -> int:
        return self.config.training.per_device_train_batch_size

    @property
    def device(self) -> torch.device:
        return self.config.training.device


# A side takes a task, prepares what a user would have before the epoch, and returns the model and the epoch to time.
Side = Callable[[Task], tuple[nn.Module, Callable[[], Any]]]


def read_config(args: Namespace, folder: Path) -> Config:
    """The benchmark's settings by the road of every recipe; run and cache go to `folder`."""
    settings = {
        "dataset": "mnist",
        "model": "mlp",
        "model_args": json.dumps({"hidden_sizes": [HIDDEN]}),
        "num_train_epochs": 1,
        "per_device_train_batch_size": args.batch_size,
        "optim": "sgd",
        "optim_args": f"momentum={MOMENTUM}",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "eval_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "cache_dir": folder / "cache",
        "output_dir": folder / "run",
    }
    if args.data_dir:
        settings["data_dir"] = args.data_dir
    return parse_config([f"--{key}={value}" for key, value in settings.items()])


def read_images(config: Config, count: int) -> Dataset:
    """The first `count` images of train. Nothing is chosen here, so what was carved for validation goes back."""
    splits = load_data(config.data)
    train = concatenate_datasets([splits["train"], splits["validation"]])
    if count > len(train):
        raise UserError(f"--images {count}: there are {len(train)} images to train on")
    return train.select(range(count))


def make_task(config: Config, dataset: Dataset) -> Task:
    """Decode the images for ftkit, once, as a run does, and encode the same pixels as PNG files for stock."""
    images = describe_images(dataset)
    model, processor = fresh_model(config, dataset)
    tensors = image_tensors(dataset, processor, images.channels, cache_dir=config.data.cache_dir)
    processor = fit_normalization(config.model, model, processor, tensors.images, pretrained=False)
    mean, std = (values[: images.channels] for values in (processor.image_mean, processor.image_std))
    return Task(config, tensors, as_png(tensors), processor, mean, std)


def fresh_model(config: Config, dataset: Dataset) -> tuple[PreTrainedModel, Any]:
    """ftkit's MLP with random weights, and its image processor."""
    return build_model(config.model, dataset.features["label"].names, describe_images(dataset), pretrained=False)


def as_png(tensors: ImageTensors) -> Dataset:
    """The images as PNG files inside a `datasets` image column, which is how the Hub holds MNIST."""
    rows = []
    for pixels in tensors.images[:, 0].numpy():
        file = io.BytesIO()
        PILImage.fromarray(pixels).save(file, "PNG")
        rows.append({"bytes": file.getvalue(), "path": None})
    features = Features(image=Image(), label=ClassLabel(names=tensors.class_names))
    return Dataset.from_dict({"image": rows, "label": tensors.labels.tolist()}, features)


def stock(task: Task) -> tuple[nn.Module, Callable[[], Any]]:
    """The official example: decode and transform each image when it is asked for; a plain `Trainer`."""
    transforms = Compose([ToTensor(), Normalize(task.mean, task.std)])

    def transform(batch: dict[str, list]) -> dict[str, list]:
        # The example converts to RGB here. Grey instead, so that all sides give the model the same work.
        batch["pixel_values"] = [transforms(image.convert("L")) for image in batch["image"]]
        return batch

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        pixel_values = torch.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": pixel_values, "labels": torch.tensor([example["label"] for example in examples])}

    # The cast makes a copy, so that the transform stays out of the task.
    dataset = task.png.cast(task.png.features)
    dataset.set_transform(transform)
    args = TrainingArguments(
        output_dir=task.config.training.output_dir,
        num_train_epochs=1,
        per_device_train_batch_size=task.batch_size,
        optim="sgd",
        optim_args=f"momentum={MOMENTUM}",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        save_strategy="no",
        remove_unused_columns=False,
        use_cpu=task.device.type == "cpu",
        disable_tqdm=True,
    )
    model, _ = fresh_model(task.config, task.png)
    trainer = Trainer(model=model, args=args, train_dataset=dataset, data_collator=collate)
    trainer.remove_callback(PrinterCallback)  # it would print into the table
    return model, trainer.train


class TutorialDataset(TorchDataset):
    """What `torchvision.datasets.MNIST` does: an array becomes a PIL image, which the transform takes."""

    def __init__(self, tensors: ImageTensors, transform: Callable):
        self.data, self.targets, self.transform = tensors.images[:, 0], tensors.labels, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, target = self.data[index], int(self.targets[index])
        return self.transform(PILImage.fromarray(image.numpy())), target


def plain_model(task: Task) -> nn.Module:
    """The layers of ftkit's MLP as a tutorial writes them."""
    features, classes = task.tensors.images[0].numel(), len(task.tensors.class_names)
    layers = nn.Flatten(), nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes)
    return nn.Sequential(*layers).to(task.device)


def tutorial(task: Task) -> tuple[nn.Module, Callable[[], Any]]:
    """The loop of PyTorch's tutorials."""
    model, device = plain_model(task), task.device
    dataset = TutorialDataset(task.tensors, Compose([ToTensor(), Normalize(task.mean, task.std)]))

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

    return model, epoch


def raw(task: Task) -> tuple[nn.Module, Callable[[], Any]]:
    """No data path and no loop around the step: what is left is what PyTorch itself needs."""
    model, device = plain_model(task), task.device
    images = normalizer(task.processor, task.tensors.images.shape[1])(task.tensors.images.to(device))
    labels = task.tensors.labels.to(device)

    def epoch() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        model.train()
        for rows in torch.randperm(len(labels), device=device).split(task.batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()

    return model, epoch


def ftkit(task: Task) -> tuple[nn.Module, Callable[[], Any]]:
    """The road of recipes/finetune.py."""
    model, _ = fresh_model(task.config, task.png)
    config, normalize = task.config, normalizer(task.processor, task.tensors.images.shape[1])
    settings = parameter_settings(
        model, layer_groups(model), config.training.learning_rate, config.method, config.loss
    )
    objective = Objective(config.loss, settings, len(task.tensors.class_names), augment=[])
    return model, ImageTrainer(model, config.training, normalize, objective, task.tensors).train


SIDES: dict[str, Side] = {"stock": stock, "tutorial": tutorial, "raw": raw, "ftkit": ftkit}


def score(task: Task, model: nn.Module) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of `model` on a sample of the training images."""
    images = normalizer(task.processor, task.tensors.images.shape[1])(task.tensors.images[:SAMPLE].to(task.device))
    labels = task.tensors.labels[:SAMPLE].to(task.device)
    model.eval()
    with torch.inference_mode():
        output = model(images)
    logits = output if isinstance(output, torch.Tensor) else output.logits
    return F.cross_entropy(logits, labels).item(), (logits.argmax(-1) == labels).float().mean().item()


def synchronize() -> None:
    """Wait for an accelerator, whose work is still under way when the last call returns."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def time_epoch(side: Side, task: Task, seed: int) -> dict[str, float]:
    """Seconds of one epoch, and the loss and accuracy that show that it trained.

    Raises:
        RuntimeError: the loss did not fall, so whatever was timed was no training.
    """
    set_seed(seed)
    model, epoch = side(task)
    before, _ = score(task, model)
    gc.collect()  # so that no side pays for what another left
    synchronize()
    started, cpu_started = time.perf_counter(), time.process_time()
    epoch()
    synchronize()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    loss, accuracy = score(task, model)
    if not loss < before:
        raise RuntimeError(f"{side.__name__}: the loss went from {before:.4f} to {loss:.4f}: it does not train")
    # The processor's time is stored too: where it is far from the clock's, something else had the machine.
    times = {"seconds": seconds, "cpu_seconds": cpu_seconds}
    return times | {"loss_before": before, "loss": loss, "accuracy": accuracy}


def measure(task: Task, warm_up: Task, sides: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Run the sides in turn, `rounds` times, and sum up what each took."""
    for name in sides:
        time_epoch(SIDES[name], warm_up, seed=0)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in sides:
            runs[name].append(time_epoch(SIDES[name], task, seed=number))
        fact(f"round {number + 1}", ", ".join(f"{name} {runs[name][-1]['seconds']:.2f} s" for name in sides))
    medians = {name: statistics.median(run["seconds"] for run in runs[name]) for name in sides}
    return {
        name: {
            "median_seconds": median,
            "images_per_second": len(task.tensors) / median,
            "ratio_to_ftkit": median / medians["ftkit"] if "ftkit" in medians else None,
            "runs": runs[name],
        }
        for name, median in medians.items()
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as text, a line for each side; loss and accuracy are those after the last round."""
    rounds = [" ".join(f"{run['seconds']:.2f}" for run in result["runs"]) for result in results.values()]
    width = max(len("each round"), *map(len, rounds))
    lines = [f"{'side':<9} {'seconds':>8}  {'each round':<{width}}  images/s  / ftkit    loss  accuracy"]
    for (name, result), each in zip(results.items(), rounds, strict=True):
        ratio = "-" if result["ratio_to_ftkit"] is None else f"{result['ratio_to_ftkit']:.2f}"
        lines.append(
            f"{name:<9} {result['median_seconds']:>8.2f}  {each:<{width}}  {result['images_per_second']:>8,.0f}  "
            f"{ratio:>7}  {result['runs'][-1]['loss']:>6.4f}  {result['runs'][-1]['accuracy']:>8.4f}"
        )
    return "\n".join(lines)


def cpu_name() -> str | None:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def parse_arguments(arguments: list[str]) -> Namespace:
    """The command line, checked."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data_dir", help="a folder with the IDX files of MNIST")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs")
    parser.add_argument("--images", type=int, default=60_000, help="how many images an epoch has")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("benchmark.json"), help="where the results are stored")
    parser.add_argument("--sides", default=",".join(SIDES), help="which sides run, and in which order")
    args = parser.parse_args(arguments)
    args.sides = list(dict.fromkeys(args.sides.split(",")))
    for name in args.sides:
        if name not in SIDES:
            raise UserError(f"--sides: {name!r} is not one of {', '.join(SIDES)}{nearest(name, list(SIDES))}")
    for key in ("rounds", "images", "batch_size"):
        if getattr(args, key) < 1:
            raise UserError(f"--{key}: {getattr(args, key)} must be at least 1")
    return args


def main(arguments: list[str]) -> None:
    """Run the benchmark that `arguments`, a command line without the program's name, describe."""
    args = parse_arguments(arguments)
    with tempfile.TemporaryDirectory() as folder:
        config = read_config(args, Path(folder))
        set_up_console(config.training)
        banner("data")
        dataset = read_images(config, args.images)
        task = make_task(config, dataset)
        warm_up = make_task(config, dataset.select(range(min(args.images, WARM_UP_BATCHES * args.batch_size))))
        hardware = environment() | {"cpu": cpu_name(), "device": str(task.device), "load": os.getloadavg()}
        fact("images", f"{args.images:,}, in batches of {args.batch_size}")
        fact("hardware", f"{hardware['cpu']}, {hardware['threads']} threads, on {hardware['device']}")
        banner("one epoch of MNIST, MLP 784-512-10, SGD")
        results = measure(task, warm_up, args.sides, args.rounds)
    print("\n" + table(results))
    settings = {"task": "mnist_mlp_epoch", "images": args.images, "batch_size": args.batch_size, "rounds": args.rounds}
    record = settings | {"environment": hardware, "sides": results}
    try:
        args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {args.output}: cannot be written: {error}") from error
    print(f"\nwritten: {args.output}")


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
