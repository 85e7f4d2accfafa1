"""The fingerprint of a run: everything beside the configuration that its result depends on. A resume must match it.

It is saved in every checkpoint and in the result of every finished stage. Paths and times of files are not part of
it: the images of a folder that was moved are the same images.
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

from ftkit.config.configuration import Config
from ftkit.data.feeding.tensors import Images
from ftkit.errors import UserError, listed
from ftkit.files import atomic_write
from ftkit.methods.freezing import digests
from ftkit.models.anatomy import find_head, is_inside
from ftkit.precision import precision_of
from ftkit.training import provenance

FINGERPRINT = "fingerprint.json"  # in a checkpoint
TABLE = "data.safetensors"  # in a run's folder
_SHOWN = 20  # class names in a message
_AUGMENTATION = 2  # raise it when augmentations draw other random numbers from the same seed


@dataclass(frozen=True)
class Fingerprint:
    """What the weights and the optimizer of a checkpoint depend on.

    Attributes:
        same: values that a resume must find again: `classes`, `images` (a hash by split), `weights`, `precision`,
            `processes`, `augmentation` (the version of its random numbers; None without augmentation).
        noted: values that may differ, by name, since they change only the last digits of numbers.
        table: `<split>/hashes` uint64 (N,), `<split>/labels` (N, …), see `Task.compact`, and `<split>/index` int32
            (N,), in the order of the data.
    """

    same: dict[str, Any]
    noted: dict[str, Any]
    table: dict[str, np.ndarray]

    def to_json(self) -> dict[str, Any]:
        """All but the table, which is saved once in the run's folder."""
        return {"same": self.same, "noted": self.noted}

    def save(self, checkpoint: Path) -> None:
        """Write it into a checkpoint."""
        (checkpoint / FINGERPRINT).write_text(json.dumps(self.to_json(), indent=1))

    def save_table(self, folder: Path) -> None:
        """Write the table into a run's folder: error messages count the images that differ from it."""
        with atomic_write(folder / TABLE) as aside:
            save_file(self.table, aside)

    def check(self, there: dict[str, Any] | None, source: Path, folder: Path) -> str:
        """Compare this fingerprint with that of a checkpoint or a finished stage to resume from.

        Args:
            there: the other fingerprint, from `to_json`; None if there is none.
            source: the folder that `there` was read from, for messages.
            folder: the run's folder.

        Returns:
            The allowed differences, such as `torch 2.14.0 -> 2.15.0`; an empty string if there are none.

        Raises:
            UserError: a value that must not differ does, or there is no other fingerprint.
        """
        otherwise = "give another --output_dir, or start again with --overwrite true"
        if there is None:
            raise UserError(
                f"output_dir: {source} was written by an older version of ftkit, which did not record the images it "
                f"trained on: {otherwise}"
            )
        if differences := [*self._other_circumstances(there["same"]), *self._other_data(there["same"], folder)]:
            raise UserError(f"output_dir: {source} {'; '.join(differences)}; or {otherwise}")
        keys = sorted({*there["noted"], *self.noted})
        changed = [key for key in keys if there["noted"].get(key) != self.noted.get(key)]
        return ", ".join(f"{key} {there['noted'].get(key)} -> {self.noted.get(key)}" for key in changed)

    def _other_circumstances(self, there: dict[str, Any]) -> list[str]:
        found, here = [], self.same
        if there["processes"] != here["processes"]:
            found.append(
                f"was written by {there['processes']} processes, and this run has {here['processes']}, which would "
                f"draw other batches: launch with --num_processes {there['processes']}"
            )
        if there["precision"] != here["precision"]:
            found.append(
                f"was trained in precision {there['precision']}, and this run in {here['precision']}: launch with the "
                "same mixed_precision"
            )
        if there["weights"] != here["weights"]:
            found.append("started from other weights than this run's model: start from the same weights again")
        if there.get("augmentation") != here["augmentation"]:  # older versions did not record it
            found.append(
                "was trained by another version of ftkit, whose augmentations draw other random numbers: finish it "
                "with that version"
            )
        return found

    def _other_data(self, there: dict[str, Any], folder: Path) -> list[str]:
        if there["classes"] != self.same["classes"]:
            before, now = (listed(names, _SHOWN) for names in (there["classes"], self.same["classes"]))
            return [f"was trained on other data: its classes were {before}, and now they are {now}: restore them"]
        images = self.same["images"]
        if not (changed := [split for split in images if images[split] != there["images"].get(split)]):
            return []
        try:
            table = load_file(folder / TABLE)
        except (OSError, SafetensorError):
            table = {}
        found = (f"{split}: {self._other_images(table, split)}" for split in changed)
        return [f"was trained on other data: {'; '.join(found)}: restore its images"]

    def _other_images(self, table: dict[str, np.ndarray], split: str) -> str:
        """How the images of a split differ from those of the run's table."""
        if f"{split}/hashes" not in table:
            return "other images"
        hashes = [side[f"{split}/hashes"].tolist() for side in (table, self.table)]
        labels = [[label.tobytes() for label in side[f"{split}/labels"]] for side in (table, self.table)]
        missing, new = _surplus(*hashes)
        if missing or new:
            counts = ((new, "new"), (missing, "missing"))
            return ", ".join(
                f"{_images(count)} {'are' if count > 1 else 'is'} {what}" for count, what in counts if count
            )
        _, relabelled = _surplus(*(list(zip(*pair, strict=True)) for pair in zip(hashes, labels, strict=True)))
        if relabelled:
            return f"{_images(relabelled)} {'have' if relabelled > 1 else 'has'} another label"
        return "the same images in another order"


def _images(count: int) -> str:
    return f"{count:,} image{'s' if count > 1 else ''}"


def _surplus(there: list, here: list) -> tuple[int, int]:
    """The numbers of items only in the first list, and only in the second."""
    counts = Counter(there), Counter(here)
    return (counts[0] - counts[1]).total(), (counts[1] - counts[0]).total()


def read_fingerprint(checkpoint: Path) -> dict[str, Any] | None:
    """The fingerprint in a complete checkpoint; None if an older version wrote it."""
    path = checkpoint / FINGERPRINT
    return json.loads(path.read_text()) if path.is_file() else None


def take_fingerprint(config: Config, images: dict[str, Images], pretrained: nn.Module | None) -> Fingerprint:
    """The fingerprint of a run.

    Args:
        config: the configuration of the run.
        images: the images by split.
        pretrained: the model before adapters are added, if it starts from trained weights. Its head, which may be
            new, does not count.
    """
    table, args = {}, config.training
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
        "augmentation": _AUGMENTATION if config.data.augment or config.data.image_transform else None,
    }
    return Fingerprint(same, provenance.circumstances(args.device), table)


def _weights_hash(model: nn.Module) -> str:
    """The hash of all values but the head's, without names: another version of a library may change these."""
    head = find_head(model)
    body = digests(model, {name for name in model.state_dict() if any(is_inside(name, place) for place in head)})
    return _hash(*sorted(body.values()))


def _hash(*parts: np.ndarray | bytes) -> str:
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).data)
    return digest.hexdigest()
