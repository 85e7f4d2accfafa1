"""Finds the image files that a table names."""

import os.path
import unicodedata
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from .ledger import scan
from .split_names import split_of


class ImageFiles:
    """The image files below a folder.

    Attributes:
        root: the folder.
    """

    def __init__(self, root: Path):
        self.root = root

    @cached_property
    def _by_name(self) -> dict[str, list[tuple[str, ...]]]:
        """The parts of each file's path below the root, by its case-folded name with and without the suffix."""
        found: dict[str, list[tuple[str, ...]]] = {}
        for folder in scan(self.root).below() if self.root.is_dir() else []:
            above = folder.path.relative_to(self.root).parts
            for path in folder.images:
                for name in (path.name, os.path.splitext(path.name)[0]):
                    found.setdefault(_folded(name), []).append((*above, path.name))
        return found

    def find(self, text: str, split: str | None) -> list[Path]:
        """The files that `text` may stand for: one if it is clear, none if it names no file.

        `text` is a path, absolute or relative to the root, with `/` or `\\`. If there is no such file, case is
        ignored, and `text` may lack the suffix or leading folders, or begin with folders of another machine. Then
        files in the folder of `split` come first, and those in the folder of another split are left out.
        """
        slashed = text.strip().replace("\\", "/")
        for written in (text, slashed):
            if os.path.isfile(path := os.path.join(self.root, written)):
                return [Path(path)]
        parts = [part for part in slashed.split("/") if part not in ("", ".")]
        if not parts:
            return []
        found = [file for file in self._by_name.get(_folded(parts[-1]), []) if _same_tail(parts[:-1], file[:-1])]
        if split is not None:
            places = {file: split_of("/".join(file[:-1])) for file in found}
            found = [file for file in found if places[file] in (None, split)]
            found = [file for file in found if places[file] == split] or found
        exact = [file for file in found if file[-1] == parts[-1]]
        return [self.root.joinpath(*file) for file in exact or found]

    def names_images(self, texts: Iterable[str | None], split: str | None) -> bool:
        """Whether at least half of these texts name exactly one image file."""
        found = [isinstance(text, str) and len(self.find(text, split)) == 1 for text in texts]
        return bool(found) and 2 * sum(found) >= len(found)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _same_tail(named: list[str], there: tuple[str, ...]) -> bool:
    """Whether one of two lists of folders ends with the other."""
    shared = min(len(named), len(there))
    return not shared or [*map(_folded, named[-shared:])] == [*map(_folded, there[-shared:])]
