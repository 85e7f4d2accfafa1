"""An export: a classifier in other formats, each compared with PyTorch on the same images, and the record."""

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from torch.export import ExportedProgram

from ftkit.config.configuration import Evaluation
from ftkit.data.feeding.tensors import Images
from ftkit.data.pixels.kinds import log_kinds
from ftkit.data.sources.evaluation import load_evaluation, training_images
from ftkit.data.sources.splits import some
from ftkit.errors import UserError
from ftkit.evaluation.record import describe_command
from ftkit.export import FORMATS, formats
from ftkit.export.checks import RECORD, needed_packages
from ftkit.export.measuring import Reference, megabytes, take
from ftkit.export.preprocessing import write_preprocessing
from ftkit.models.classifier import Classifier
from ftkit.places import shown
from ftkit.tasks import Task
from ftkit.training.provenance import environment

_CALIBRATION_IMAGES = 256  # images of train; more would widen the ranges
_TOLERANCES = {"onnx": 1e-4, "torch_export": 1e-4, "int8": float("inf")}  # int8 is judged by its score instead
PYTORCH = "pytorch"  # the row of the model itself


def read_images(
    config: Evaluation, classifier: Classifier, names: list[str], max_images: int | None
) -> tuple[str, dict[str, Images]]:
    """The split, and the images by use: `measured`, with the model's labels, and `calibration` for int8.

    Args:
        names: the names of the formats.
        max_images: number of images to measure, a fixed random subset; all if None.
    """
    split, rows, _, _ = load_evaluation(config, classifier.task)
    chosen = {"measured": some(rows, max_images, seed=0)}
    if "int8" in names:
        chosen["calibration"] = some(training_images(config, rows), _CALIBRATION_IMAGES, seed=0)
    config.data.image_transform = None  # applies only to training
    images = classifier.images_of(DatasetDict(chosen), config.data, seed=0)
    log_kinds(images)
    return split, images


class Export:
    """A classifier, its exported formats, and the measurements of each.

    Args:
        images: the result of `read_images`.
        batch_size: the batch size for measuring.

    Attributes:
        rows: size, file, largest difference of a logit, score and times of each format, `pytorch` first.
    """

    def __init__(self, classifier: Classifier, images: dict[str, Images], batch_size: int):
        self.classifier, self.images, self.batch_size = classifier, images, batch_size
        measured = images["measured"]
        self.sample = classifier.normalize(measured.sample(32))
        model = formats.plain_model(classifier.model, self.sample)
        make_batches = functools.partial(self._batches, "measured")
        self.reference = Reference(model, self.sample, make_batches, measured.labels, measured.task)
        size = sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6
        self.runners: dict[str, formats.Predict] = {PYTORCH: model}
        self.rows: dict[str, dict[str, Any]] = {PYTORCH: {"megabytes": size}}

    def write(self, name: str, folder: Path) -> float:
        """Write a format, load it again, and compare it; return the largest difference of a logit.

        Raises:
            UserError: the model cannot be exported, or the logits of the export are not PyTorch's.
        """
        path = folder / FORMATS[name]
        formats.write(name, self._program, path, self._batches("calibration") if name == "int8" else ())
        self.runners[name] = formats.load(path)
        difference = self.reference.check(name, self.runners[name], _TOLERANCES[name])
        self.rows[name] = {"megabytes": megabytes(path), "file": path.name, "largest_difference": difference}
        return difference

    def measure(self, name: str, repeats: int) -> dict[str, Any]:
        """Measure score and times of an exported format; return its row."""
        self.rows[name] |= self.reference.measure(self.runners[name], repeats)
        return self.rows[name]

    def save(self, folder: Path, config: Evaluation, split: str, repeats: int) -> dict[str, Any]:
        """Write `preprocessing.json`, and `export.json` with the measurements and their conditions."""
        record = {
            "command": describe_command(),
            "model": shown(config.evaluation.model),
            "data": shown(config.data.data_dir or config.data.dataset or ""),
            "split": split,
            "n": len(self.images["measured"]),
            "calibration_images": len(self.images.get("calibration", ())),
            "device": "cpu",
            "repeats": repeats,
            **environment(),
            "formats": self.rows,
        }
        record["versions"] |= {name: version(name) for name in needed_packages(list(self.rows))}
        write_preprocessing(folder, self.classifier, self.sample)
        (folder / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return record

    @functools.cached_property
    def _program(self) -> ExportedProgram:
        return formats.capture(self.reference.model, take(self.sample, 2))

    def _batches(self, which: str) -> Iterator[torch.Tensor]:
        images = self.images[which]
        for rows in torch.arange(len(images)).split(self.batch_size):
            yield self.classifier.normalize(images.pixels(rows))


@contextlib.contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, which replaces `folder` if the block succeeds and is deleted otherwise.

    Raises:
        UserError: the folder cannot be created.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent)
    except OSError as error:
        raise UserError(f"output_dir: {folder} cannot be written: {error}") from error
    with scratch as place:
        aside = Path(place) / "new"
        aside.mkdir()
        yield aside
        if folder.exists():
            os.replace(folder, Path(place) / "old")
        os.replace(aside, folder)


def as_table(record: dict[str, Any], task: Task) -> str:
    """`export.json` as lines for a terminal."""
    repeats, threads, n, title = record["repeats"], record["threads"], record["n"], task.score_metric.title
    lines = [
        f"  milliseconds on the CPU with {threads} thread{'s' * (threads > 1)}, over {repeats} repeats; {title} on "
        f"{n:,} images ({record['split']})\n",
        f"  {'':<12} {'':>8}   {'a batch of 1':>17}   {'a batch of 32':>17}   {'':>8}   predictions",
        f"  {'':<12} {'MB':>8}   {'median':>8} {'p95':>8}   {'median':>8} {'p95':>8}   {title:>8}   as PyTorch's",
    ]
    for name, row in record["formats"].items():
        times = "   ".join(f"{time['median']:>8.2f} {time['p95']:>8.2f}" for time in row["milliseconds"].values())
        score, same = row[task.score], row["same_predictions"]
        lines.append(f"  {name:<12} {row['megabytes']:>8.3f}   {times}   {score:>8.4f}   {same:>12.3%}")
    return "\n".join(lines)
