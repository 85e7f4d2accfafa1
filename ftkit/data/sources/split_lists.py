"""Text files beside class folders that list the images of a split: `meta/train.txt`, `testing_list.txt`."""

import logging
import re
from pathlib import Path

from ftkit.errors import UserError

from .ledger import Folder
from .split_names import split_of

logger = logging.getLogger(__name__)
Rows = list[tuple[Path, str]]  # images with their classes


def read_lists(root: Folder, rows: Rows) -> tuple[dict[str, Rows], list[Path]]:
    """Split `rows`, images with their classes, by the lists below `root`; also return the files of the lists.

    A list is a text file named after a split, with `<class>/<image>` on each line; the image's suffix may be missing.
    Without a list for train, the images that no list names are train. Empty without lists.

    Raises:
        UserError: a list names images that do not exist.
    """
    places: dict[tuple[str, str], int] = {}
    for position, (path, name) in enumerate(rows):
        places |= {(name, path.name): position, (name, path.stem): position}
    found: dict[str, list[int]] = {}
    lists: list[Path] = []
    for folder in root.below():
        for file in folder.files:
            path = folder.path / file
            if path.suffix.lower() != ".txt" or split_of(path.stem) is None:
                continue
            lines = [line.strip() for line in path.read_text("utf-8", errors="replace").splitlines() if line.strip()]
            positions = [_place(line, places) for line in lines]
            missing = [line for line, position in zip(lines, positions, strict=True) if position is None]
            if not lines or 2 * len(missing) > len(lines):
                continue  # not a list of images
            if missing:
                raise UserError(
                    f"{path}: {len(missing)} of its {len(lines)} lines name no image in a class folder, such as "
                    f"{missing[0]!r}: correct or remove them, or set --train_split . to split the images anew",
                    fix={"train_split": "."},
                )
            lists.append(path)
            found[path.relative_to(root.path).with_suffix("").as_posix()] = [p for p in positions if p is not None]
    if found:
        logger.info("  %-12s from the lists %s", "splits", ", ".join(found))
    if found and all(split_of(name) != "train" for name in found):
        listed = {position for positions in found.values() for position in positions}
        found["train"] = [position for position in range(len(rows)) if position not in listed]
    return {name: [rows[position] for position in sorted(set(of))] for name, of in found.items()}, lists


def _place(line: str, places: dict[tuple[str, str], int]) -> int | None:
    """The position of the image that a line names, alone or before more columns."""
    for text in (line, re.split(r"[\s,;]", line)[0]):
        parts = re.split(r"[/\\]", text)
        if len(parts) > 1 and (place := places.get((parts[-2], parts[-1]))) is not None:
            return place
    return None
