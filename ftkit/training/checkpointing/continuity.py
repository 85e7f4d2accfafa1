"""What a run rests on beside its configuration; a run that goes on must find the same, or is refused.

The fingerprint lies in every checkpoint and in the result of every stage that is done. Where files lie and when they
were written is no part of it: the images of a folder that was moved are the same images.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers import TrainingArguments

from ftkit.data.feeding.tensors import Images
from ftkit.errors import UserError
from ftkit.files import atomic_write
from ftkit.methods.freezing import digests
from ftkit.models.anatomy import find_head
from ftkit.precision import precision_of
from ftkit.training import provenance

FINGERPRINT = "fingerprint.json"  # in a checkpoint
TABLE = "data.safetensors"  # in a run's folder
_MANY = 20  # class names are too many for a message


@dataclass(frozen=True)
class Fingerprint:
    """What the weights and the optimizer of a checkpoint rest on.

    Attributes:
        same: what must be equal: `classes`, `images` (a hash by split), `weights`, `precision`, `processes`.
        noted: what may differ, by name: it changes the last digits of numbers, not what they mean.
        table: `<split>/hashes` uint64 (N,), `<split>/labels` (N, …), see `Task.compact`, and `<split>/index` int32
            (N,), in the order of the data.
    """

    same: dict[str, Any]
    noted: dict[str, Any]
    table: dict[str, np.ndarray]

    def to_json(self) -> dict[str, Any]:
        """All but the table, which is the same in all of a run."""
        return {"same": self.same, "noted": self.noted}

    def save(self, checkpoint: Path) -> None:
        """Write it into a checkpoint's folder."""
        (checkpoint / FINGERPRINT).write_text(json.dumps(self.to_json(), indent=1))

    def save_table(self, folder: Path) -> None:
        """Write the table into a run's folder: by it a refusal counts the images that differ."""
        with atomic_write(folder / TABLE) as aside:
            save_file(self.table, aside)

    def check(self, there: dict[str, Any] | None, source: Path, folder: Path) -> str:
        """That what `source` rests on is here.

        Args:
            there: the fingerprint of a checkpoint or of a stage that is done, as `to_json` gave it.
            source: its folder, for messages.
            folder: of the run.

        Returns:
            What differs and may, such as `torch 2.14.0 -> 2.15.0`; an empty text where nothing does.

        Raises:
            UserError: something differs that must be equal, or there is no fingerprint.
        """
        otherwise = "give another --output_dir, or begin anew with --overwrite true"
        if there is None:
            raise UserError(
                f"output_dir: {source} was written by an older version of ftkit, and does not say on which images it "
                f"was trained: {otherwise}"
            )
        if told := [*self._other_circumstances(there["same"]), *self._other_data(there["same"], folder)]:
            raise UserError(f"output_dir: {source} {'; '.join(told)}; or {otherwise}")
        keys = sorted({*there["noted"], *self.noted})
        changed = [key for key in keys if there["noted"].get(key) != self.noted.get(key)]
        return ", ".join(f"{key} {there['noted'].get(key)} -> {self.noted.get(key)}" for key in changed)

    def _other_circumstances(self, there: dict[str, Any]) -> list[str]:
        told, here = [], self.same
        if there["processes"] != here["processes"]:
            told.append(
                f"was written by {there['processes']} processes, and this run has {here['processes']}, which would "
                f"draw other batches: launch with --num_processes {there['processes']}"
            )
        if there["precision"] != here["precision"]:
            told.append(
                f"was trained in precision {there['precision']}, and here it is {here['precision']}: launch with the "
                "same mixed_precision"
            )
        if there["weights"] != here["weights"]:
            told.append("started from other weights than this model's: start from the same weights again")
        return told

    def _other_data(self, there: dict[str, Any], folder: Path) -> list[str]:
        if there["classes"] != self.same["classes"]:
            before, now = (", ".join(names[:_MANY]) for names in (there["classes"], self.same["classes"]))
            return [f"was trained on other data: the classes were {before}, and here they are {now}: bring them back"]
        images = self.same["images"]
        if not (changed := [split for split in images if images[split] != there["images"].get(split)]):
            return []
        try:
            table = load_file(folder / TABLE)
        except (OSError, SafetensorError):
            table = {}
        told = (f"{split}: {self._other_images(table, split)}" for split in changed)
        return [f"was trained on other data: {'; '.join(told)}: bring those images back"]

    def _other_images(self, table: dict[str, np.ndarray], split: str) -> str:
        """What the images of a split are to those of the table."""
        if f"{split}/hashes" not in table:
            return "other images"
        hashes = [there_and_here[f"{split}/hashes"].tolist() for there_and_here in (table, self.table)]
        labels = [
            [one.tobytes() for one in there_and_here[f"{split}/labels"]] for there_and_here in (table, self.table)
        ]
        missing, new = _surplus(*hashes)
        if missing or new:
            kinds = [f"{new:,} image{'s are' if new > 1 else ' is'} new"] if new else []
            noun = "" if new else " images" if missing > 1 else " image"
            kinds += [f"{missing:,}{noun} {'are' if missing > 1 else 'is'} missing"] if missing else []
            return ", ".join(kinds)
        _, relabelled = _surplus(*(list(zip(*pair, strict=True)) for pair in zip(hashes, labels, strict=True)))
        if relabelled:
            return f"{relabelled:,} image{'s have' if relabelled > 1 else ' has'} another label"
        return "the same images in another order"


def _surplus(there: list, here: list) -> tuple[int, int]:
    """How many are only there, and only here."""
    counts = Counter(there), Counter(here)
    return (counts[0] - counts[1]).total(), (counts[1] - counts[0]).total()


def read_fingerprint(checkpoint: Path) -> dict[str, Any] | None:
    """The fingerprint in a complete checkpoint; None in one that an older version wrote."""
    path = checkpoint / FINGERPRINT
    return json.loads(path.read_text()) if path.is_file() else None


def take_fingerprint(args: TrainingArguments, images: dict[str, Images], pretrained: nn.Module | None) -> Fingerprint:
    """The fingerprint of a run.

    Args:
        args: of the run.
        images: of every split.
        pretrained: the model as it is before anything is added to it, if it begins with trained weights. Its head,
            which may be a new one, does not count.
    """
    table = {}
    for split, rows in images.items():
        table[f"{split}/hashes"] = rows.hashes.astype(np.uint64)
        table[f"{split}/labels"] = rows.task.compact(rows.labels)
        table[f"{split}/index"] = rows.index.cpu().numpy().astype(np.int32)
    same = {
        "classes": images["train"].task.names,
        "images": {split: _hash(*(table[key] for key in table if key.startswith(f"{split}/"))) for split in images},
        "weights": None if pretrained is None else _weights_hash(pretrained),
        "precision": precision_of(args),
        "processes": args.world_size,
    }
    return Fingerprint(same, provenance.circumstances(args.device), table)


def _weights_hash(model: nn.Module) -> str:
    """Of all values but those of the head; not of their names, which a version of a library may change."""
    head, _ = find_head(model)
    body = digests(model, {name for name in model.state_dict() if name.startswith(f"{head}.")})
    return _hash(*sorted(body.values()))


def _hash(*parts: np.ndarray | bytes) -> str:
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).data)
    return digest.hexdigest()
