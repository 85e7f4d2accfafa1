"""Class folders inside of tar and zip archives, read without unpacking them."""

import os.path
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import datasets.config
from datasets import Dataset, DatasetDict, Features, Image, Value
from datasets.exceptions import DatasetGenerationError

from ftkit.data.pixels.keys import file_state
from ftkit.errors import UserError, unwritable

from .origins import PLACE
from .split_names import is_split_like, split_of
from .suffixes import is_image_name

_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_TESTED = 1000  # members that show what an archive holds
_BOMB_BYTES, _BOMB_RATIO = 1 << 26, 100  # a larger and better compressed member is refused
_BROKEN = (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, RuntimeError, ValueError, NotImplementedError)


def is_archive(path: Path) -> bool:
    """Whether a file's name is an archive's."""
    return path.name.lower().endswith(_SUFFIXES)


def holds_class_folders(path: Path) -> bool:
    """Whether an archive's images lie in folders, and no other file of the same name labels one (webdataset)."""
    images, labelled = _first_names(path)
    return bool(images) and all(len(name.parts) > 1 and name.with_suffix("") not in labelled for name in images)


def check_labelled(path: Path) -> None:
    """Check that an archive without class folders holds more than images.

    Raises:
        UserError: it does not.
    """
    images, labelled = _first_names(path)
    if images and not labelled:
        raise UserError(
            f"data_dir: {path} holds images without labels: if each archive is a class, unpack each archive into a "
            "folder of its name"
        )


def _first_names(path: Path) -> tuple[list[PurePosixPath], set[PurePosixPath]]:
    """The first images in an archive, and the first other files without their suffix; both empty if it is damaged."""
    try:
        names = [PurePosixPath(name) for name, _ in islice(_members(path), _TESTED)]
    except _BROKEN:
        return [], set()
    images = [name for name in names if is_image_name(name.name)]
    return images, {name.with_suffix("") for name in names if not is_image_name(name.name)}


def read_archives(files: list[Path]) -> DatasetDict:
    """The images of archives of class folders, by the names of their splits, with the columns `image` and `label`.

    Raises:
        UserError: an archive is damaged, holds no class folders, or some of its folders are splits and others not.
    """
    found: dict[str, tuple[list[Path], list[str]]] = {}
    for file in files:
        for split, prefix in _splits(file).items():
            paths, prefixes = found.setdefault(split, ([], []))
            paths.append(file)
            prefixes.append(prefix)
    return DatasetDict({split: _read(*parts) for split, parts in found.items()})


def _read(files: list[Path], prefixes: list[str]) -> Dataset:
    """The images below a folder of each archive, copied to `datasets`' cache."""
    state = [file_state(path) for path in files]  # the cache follows the files
    try:
        return Dataset.from_generator(
            _rows,
            features=Features({"image": Image(), "label": Value("string"), PLACE: Value("string")}),
            gen_kwargs={"files": files, "prefixes": prefixes, "states": state},
        )
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        full = unwritable(cause, "HF_DATASETS_CACHE", datasets.config.HF_DATASETS_CACHE)
        listed = ", ".join(map(str, files))
        raise full or UserError(f"data_dir: {listed} cannot be read as an archive: {cause}") from error


def _splits(file: Path) -> dict[str, str]:
    """The folder of each split inside of an archive, with a slash at its end; empty for the whole archive."""
    try:
        folders = [PurePosixPath(name).parent.parts for name, _ in _members(file) if is_image_name(name)]
    except _BROKEN as error:
        raise UserError(f"data_dir: {file} cannot be read as an archive: {error}. Download it again") from None
    if not folders:
        raise UserError(f"data_dir: {file} holds no images")
    shared: tuple[str, ...] = ()
    own = [file.name.partition(".")[0]]
    while (
        all(len(parts) > len(shared) + 1 for parts in folders)
        and len({parts[: len(shared) + 1] for parts in folders}) == 1
    ):
        shared = folders[0][: len(shared) + 1]
        own.append(shared[-1])
    first = {parts[len(shared)] for parts in folders if len(parts) > len(shared)}
    if any(len(parts) <= len(shared) for parts in folders):
        raise UserError(
            f"data_dir: {file} holds images outside of class folders: unpack it, and sort them into <class>/"
        )
    prefix = "".join(f"{part}/" for part in shared)
    if not any(map(split_of, first)):
        return {next((name for name in reversed(own) if is_split_like(name)), own[0]): prefix}
    if not all(map(is_split_like, first)) or any(len(parts) < len(shared) + 2 for parts in folders):
        raise UserError(
            f"data_dir: {file} holds the folders {', '.join(sorted(first)[:8])}: some are no splits, or have no class "
            "folders: unpack it, and keep <split>/<class>/<image>"
        )
    return {name: f"{prefix}{name}/" for name in sorted(first)}


def _rows(files: list[Path], prefixes: list[str], states: list[Any]) -> Iterator[dict[str, Any]]:
    for file, prefix in zip(files, prefixes, strict=True):
        for name, read in _members(file):
            if is_image_name(name) and name.startswith(prefix):
                label = name[len(prefix) :].partition("/")[0]
                place = os.path.dirname(os.path.join(os.path.abspath(file), name))
                yield {"image": {"bytes": read(), "path": name}, "label": label, PLACE: place}


def _members(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The visible files of an archive: name, and what reads it.

    Raises:
        UserError: a file is far larger than the archive allows.
    """
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.replace("\\", "/").removeprefix("./")
                if not info.is_dir() and _is_visible(name):
                    _check_size(path, name, info.file_size, info.compress_size)
                    yield name, partial(archive.read, info)
    else:
        with tarfile.open(path, "r:*") as packed:
            for member in packed:
                name = member.name.removeprefix("./")
                if (member.isfile() or member.islnk()) and _is_visible(name):
                    _check_size(path, name, member.size, path.stat().st_size)
                    yield name, partial(_content, packed, member)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _check_size(path: Path, name: str, size: int, packed: int) -> None:
    if size > max(_BOMB_BYTES, _BOMB_RATIO * packed):
        raise UserError(f"data_dir: {path}: {name} unpacks to {size:,} bytes: images do not compress so well")


def _is_visible(name: str) -> bool:
    return not any(part.startswith((".", "__")) and part != ".." for part in PurePosixPath(name).parts)
