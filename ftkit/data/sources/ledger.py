"""The files below `data_dir`, and why some of them are not used."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ftkit.console import fact
from ftkit.data.feeding.tensors import Images
from ftkit.errors import UserError

from .suffixes import image_suffixes, is_image_name, plugin_of

logger = logging.getLogger(__name__)
_SYSTEM = {"__macosx", "__pycache__", "thumbs.db", "desktop.ini", "@eadir"}
_ARCHIVES = {".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"}
_CONTAINERS = {".npz", ".npy", ".h5", ".hdf5", ".mat", ".pkl", ".pickle", ".tfrecord", ".lmdb", ".rec"}
UNUSED_SPLIT = "in a split that is not used"
_LOOP = "leads back to a folder above it"
HIDDEN = "hidden or system files"
_ALIKE = 3  # places with the same reason; more share a line of the log
_LINES = 6  # in the log; run.json lists all


@dataclass
class Folder:
    """A folder's content. Symlinks to folders are followed, except loops: those to a folder above the link.

    Attributes:
        path: its path, which starts with `data_dir`.
        files: the names of its visible files.
        folders: its visible folders, by name.
        hidden: the number of hidden and system files and folders in it.
        loops: the symlinks in it that are loops.
    """

    path: Path
    files: list[str] = field(default_factory=list)
    folders: dict[str, "Folder"] = field(default_factory=dict)
    hidden: int = 0
    loops: list[Path] = field(default_factory=list)

    @cached_property
    def images(self) -> list[Path]:
        """The image files in the folder itself."""
        return [self.path / name for name in self.files if is_image_name(name)]

    def below(self) -> Iterator["Folder"]:
        """This folder and all folders below it."""
        yield self
        for folder in self.folders.values():
            yield from folder.below()

    @cached_property
    def holds_images(self) -> bool:
        """Whether there is an image file in the folder or below it."""
        return any(is_image_name(name) for folder in self.below() for name in folder.files)

    @cached_property
    def with_images(self) -> dict[str, "Folder"]:
        """Its folders that hold images, by name."""
        return {name: folder for name, folder in self.folders.items() if folder.holds_images}


def scan(path: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Folder:
    """Read a folder and all folders below it; `above` holds the device and inode of each folder above.

    Raises:
        UserError: a name is not UTF-8 text, which no table of images can hold.
    """
    stat, found = path.stat(), Folder(path)
    above |= {(stat.st_dev, stat.st_ino)}
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        if not entry.name.isprintable() and entry.name != (name := os.fsencode(entry.name).decode(errors="replace")):
            raise UserError(f"data_dir: {path}: the name of {name} is not UTF-8: rename it")
        linked = entry.is_symlink()
        if entry.name.startswith(".") or entry.name.casefold() in _SYSTEM:
            found.hidden += 1
        elif not (os.path.isdir(entry.path) if linked else entry.is_dir()):
            found.files.append(entry.name)
        elif linked and ((to := os.stat(entry.path)).st_dev, to.st_ino) in above:
            found.loops.append(path / entry.name)
        else:
            found.folders[entry.name] = scan(path / entry.name, above)
    return found


def is_packed(name: str) -> bool:
    """Whether a file is an archive or another container of many images, by its name."""
    return os.path.splitext(name)[1].lower() in _ARCHIVES | _CONTAINERS


@dataclass
class Ledger:
    """Counts the files and rows that no split uses, with the reasons.

    Attributes:
        root: the folder of the data.
        elsewhere: the reason for unused images in folders without a reason of their own.
        not_used: dictionaries of `where` (a folder or a split), `n`, `what` (file, image, row, link) and `reason`.
    """

    root: Path = Path()
    elsewhere: str = "no row names them"
    not_used: list[dict[str, Any]] = field(default_factory=list)
    _read: set[str] = field(default_factory=set)
    _reasons: dict[str, str] = field(default_factory=dict)

    def read(self, files: Iterable[Path]) -> None:
        """Mark files other than images as used: tables, shards, lists."""
        self._read |= {os.path.abspath(file) for file in files}

    def leave(self, folder: Path, reason: str) -> None:
        """Record why nothing in this folder is used."""
        self._reasons[os.path.abspath(folder)] = reason

    def leave_file(self, file: Path, reason: object) -> None:
        """Record a file that is not used, and why."""
        self.read([file])
        where = str(file.relative_to(self.root))
        text = str(reason).removeprefix(f"{file}: ").replace(f"{self.root}/", "")  # reports show no local paths
        self.not_used.append({"where": where, "n": 1, "what": "file", "reason": text})

    def leave_rows(self, where: str, n: int, reason: str) -> None:
        """Record rows that are not used."""
        self.not_used.append({"where": where, "n": n, "what": "row", "reason": reason})

    def account(self, root: Folder, used: Iterable[str]) -> None:
        """Count and log the files below `root` that are neither among the images `used` nor marked by `read`."""
        known = self._read | {os.path.abspath(path) for path in used}
        counts: dict[tuple[str, str], Counter[str]] = {}
        hidden = 0
        for folder in root.below():
            where, there = str(folder.path.relative_to(root.path)), os.path.abspath(folder.path)
            hidden += folder.hidden
            for loop in folder.loops:
                counts[str(loop.relative_to(root.path)), _LOOP] = Counter([""])
            above = [path for path in self._reasons if f"{there}/".startswith(f"{path}/")]
            reason = self._reasons[deepest] if (deepest := max(above, key=len, default=None)) else None
            if deepest:
                where = os.path.relpath(deepest, os.path.abspath(root.path))
            for name in folder.files:
                if os.path.join(there, name) not in known:
                    suffix = os.path.splitext(name)[1]
                    why = reason or self._why(suffix.lower())
                    counts.setdefault((where, why), Counter())[suffix] += 1
        for (where, reason), suffixes in counts.items():
            listed = ", ".join(suffix or "without a suffix" for suffix, _ in suffixes.most_common(4))
            about: dict[str, Any] = {"n": suffixes.total(), "what": "file", "suffixes": listed}
            if reason == _LOOP:
                about = {"n": 1, "what": "link"}
            self.not_used.append({"where": where, **about, "reason": reason})
        if hidden:
            self.not_used.append({"where": ".", "n": hidden, "what": "file", "reason": HIDDEN})
        self.log()

    def _why(self, suffix: str) -> str:
        if suffix in image_suffixes():
            return self.elsewhere
        if (package := plugin_of(suffix)) is not None:
            return f"Pillow needs a plugin to read them: pip install {package}"
        return "archives are not unpacked" if suffix in _ARCHIVES else "not an image format that ftkit reads"

    def log(self) -> None:
        """Log what is not used: the first few lines, the largest first, and a count of the others.

        More than three places with the same reason share a line. Unused splits are logged by `choose_splits`.
        """
        places: dict[str, list[dict[str, Any]]] = {}
        for row in self.not_used:
            if row["reason"] not in (UNUSED_SPLIT, HIDDEN):
                places.setdefault(row["reason"], []).append(row)
        rows = []
        for alike in places.values():
            alike.sort(key=lambda row: -row["n"])
            if len(alike) > _ALIKE:
                where = f"{len(alike):,} places, such as {alike[0]['where']}"
                alike = [alike[0] | {"where": where, "n": sum(row["n"] for row in alike)}]
            rows += alike
        rows.sort(key=lambda row: -row["n"])
        for row in rows[:_LINES]:
            fact("not used", describe(row))
        if rest := sum(row["n"] for row in rows[_LINES:]):
            fact("not used", f"… and {rest:,} more, listed in run.json")
        if hidden := sum(row["n"] for row in self.not_used if row["reason"] == HIDDEN):
            fact("not used", describe({"where": ".", "n": hidden, "what": "file", "reason": HIDDEN}))

    def record(self, images: dict[str, Images]) -> list[dict[str, Any]]:
        """`not_used`, and the images that were skipped because they cannot be decoded."""
        skipped = [
            {"where": split, "n": len(rows.skipped), "what": "image", "reason": "not decoded"}
            for split, rows in images.items()
            if rows.skipped
        ]
        return [*self.not_used, *skipped]


def describe(row: dict[str, Any]) -> str:
    """One line about a row of `Ledger.not_used`."""
    suffixes = f" ({row['suffixes']})" if "suffixes" in row else ""
    return f"{row['where']}: {row['n']:,} {row['what']}{'s' * (row['n'] != 1)}{suffixes}: {row['reason']}"
