"""Finds the image files that a table names."""

import os.path
import unicodedata
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from .ledger import Folder, scan
from .split_names import split_of
from .suffixes import image_suffixes

# Suffixes that a table may have instead of the image's: source formats, and `.0` of ids from a spreadsheet.
_CONVERTED = {".dcm", ".dicom", ".heic", ".raw", ".nef", ".cr2", ".dng", ".0"}


class ImageFiles:
    """The image files below a folder.

    Attributes:
        root: the folder.
    """

    def __init__(self, root: Path, content: Folder | None = None):
        self.root, self._content = root, content

    @cached_property
    def _by_name(self) -> dict[str, list[tuple[str, ...]]]:
        """The parts of each file's path below the root, by each of its `_names`."""
        found: dict[str, list[tuple[str, ...]]] = {}
        for folder in (self._content or scan(self.root)).below():
            above = folder.path.relative_to(self.root).parts
            for path in folder.images:
                for name in _names(path.name):
                    found.setdefault(name, []).append((*above, path.name))
        return found

    def find(self, text: str, split: str | None = None, near: Path | None = None) -> list[Path]:
        """The files that `text` may stand for: one if it is clear, none if it names no file.

        `text` is a path, absolute or relative to `near` or the root, with `/` or `\\`. If there is no such file, case
        is ignored, and `text` may lack the suffix, zeros at the start or leading folders, have the suffix of another
        format, or begin with folders of another machine. Then files below `near` and in the folder of `split` come
        first, and those in the folder of another split are left out.
        """
        slashed = text.strip().replace("\\", "/")
        for folder in dict.fromkeys((near or self.root, self.root)):
            for written in dict.fromkeys((text, slashed)):
                if os.path.isfile(path := os.path.normpath(os.path.join(folder, written))):
                    return [Path(path)]
        parts = [part for part in slashed.split("/") if part not in ("", ".")]
        if not parts:
            return []
        for name in _names(parts[-1]):
            found = [file for file in self._by_name.get(name, []) if _same_tail(parts[:-1], file[:-1])]
            if split is not None:
                places = {file: split_of("/".join(file[:-1])) for file in found}
                found = [file for file in found if places[file] in (None, split)]
                found = [file for file in found if places[file] == split] or found
            if found:
                break
        last = parts[-1]
        same = [file for file in found if file[-1] == last] or [file for file in found if Path(file[-1]).stem == last]
        paths = [self.root.joinpath(*file) for file in dict.fromkeys(same or found)]
        return [path for path in paths if near is not None and path.is_relative_to(near)] or paths

    def names_images(self, texts: Iterable[str | None], split: str | None, near: Path | None = None) -> bool:
        """Whether at least half of these texts name image files."""
        found = [isinstance(text, str) and bool(self.find(text, split, near)) for text in texts]
        return bool(found) and 2 * sum(found) >= len(found)


def _names(name: str) -> list[str]:
    """What a file may be called: its name, its name without the suffix, and that without zeros at the start."""
    folded = unicodedata.normalize("NFC", name).casefold()
    stem, suffix = os.path.splitext(folded)
    if suffix not in image_suffixes() and suffix not in _CONVERTED:
        stem = folded
    return [*dict.fromkeys((folded, stem, stem.lstrip("0") if stem.isdecimal() else stem))]


def _same_tail(named: list[str], there: tuple[str, ...]) -> bool:
    """Whether one of two lists of folders ends with the other."""
    shared = min(len(named), len(there))
    return not shared or [*map(str.casefold, named[-shared:])] == [*map(str.casefold, there[-shared:])]
