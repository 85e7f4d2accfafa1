"""Archives as folders: unpacked once into `datasets`' cache, and then read like any folder."""

import os
import shutil
import tarfile
import tempfile
import zipfile
from itertools import islice
from pathlib import Path, PurePosixPath

import datasets.config
from datasets.fingerprint import Hasher

from ftkit.data.pixels.keys import file_state
from ftkit.errors import UserError, unwritable

from .ledger import Folder, scan
from .suffixes import is_image_name

_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_TESTED = 1000  # members that show whether an archive is a webdataset
_NESTED = 3  # levels of archives in archives that are unpacked
_BOMB_BYTES, _BOMB_RATIO = 1 << 26, 100  # a larger and better compressed member is refused
_BROKEN = (EOFError, tarfile.TarError, zipfile.BadZipFile, RuntimeError, ValueError, NotImplementedError, OSError)


def is_archive(path: Path) -> bool:
    """Whether a file's name is an archive's."""
    return path.name.lower().endswith(_SUFFIXES)


def is_webdataset(path: Path) -> bool:
    """Whether the images of a tar file have members of the same name beside them, such as `1.cls` of `1.jpg`."""
    if path.suffix.lower() != ".tar":
        return False
    try:
        with tarfile.open(path) as archive:
            names = [PurePosixPath(member.name) for member in islice(archive, _TESTED) if member.isfile()]
    except _BROKEN:
        return False
    images = [name.with_suffix("") for name in names if is_image_name(name.name)]
    beside = {name.with_suffix("") for name in names if not is_image_name(name.name) and name.suffix != ".xml"}
    return bool(images) and 2 * sum(name in beside for name in images) >= len(images)


def unpacked(root: Folder) -> Folder:
    """`root` with each archive replaced by a folder of its name without the suffix.

    The result lies in `datasets`' cache, with links to the other files of `root`; changed files get another one.

    Raises:
        UserError: an archive is damaged, encrypted or a bomb, holds a link to elsewhere, or the disk is full.
    """
    for _ in range(_NESTED):
        files = [(folder, folder.path / name) for folder in root.below() for name in folder.files]
        if not any(is_archive(file) for _, file in files):
            break
        state = [(str(file.absolute()), file_state(file)) for _, file in files]
        place = Path(datasets.config.HF_DATASETS_CACHE) / "unpacked" / Hasher.hash(state)
        if not place.is_dir():
            _unpack(files, root.path, place)
        root = scan(place)
    return root


def _unpack(files: list[tuple[Folder, Path]], root: Path, place: Path) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=place.parent))
    except OSError as error:
        raise _refused(error) or error from None
    try:
        for folder, file in files:
            target = aside / folder.path.relative_to(root)
            target.mkdir(parents=True, exist_ok=True)
            if not is_archive(file):
                (target / file.name).symlink_to(file.absolute())
                continue
            suffix = next(suffix for suffix in _SUFFIXES if file.name.lower().endswith(suffix))
            try:
                _extract(file, target / file.name[: -len(suffix)])
            except _BROKEN as error:
                raise _refused(error) or UserError(
                    f"data_dir: {file} cannot be read as an archive: {error}. Download it again, or unpack it"
                ) from None
        try:
            os.replace(aside, place)
        except OSError:
            if not place.is_dir():  # otherwise another process was faster
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _refused(error: BaseException) -> UserError | None:
    return unwritable(error, "HF_DATASETS_CACHE", datasets.config.HF_DATASETS_CACHE)


def _extract(file: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    if file.suffix.lower() == ".zip":
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                _check_size(file, info.filename, info.file_size, info.compress_size)
                info.filename = _as_utf_8(info).replace("\\", "/")
                archive.extract(info, target)
    else:
        with tarfile.open(file) as packed:
            for member in packed:
                _check_size(file, member.name, member.size, file.stat().st_size)
                packed.extract(member, target, filter="data")


def _as_utf_8(info: zipfile.ZipInfo) -> str:
    """A member's name: some programs write UTF-8 without the flag that says so, which is read as code page 437."""
    try:
        return info.filename if info.flag_bits & 0x800 else info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _check_size(file: Path, name: str, size: int, packed: int) -> None:
    if size > max(_BOMB_BYTES, _BOMB_RATIO * packed):
        raise UserError(f"data_dir: {file}: {name} unpacks to {size:,} bytes: images do not compress so well")
