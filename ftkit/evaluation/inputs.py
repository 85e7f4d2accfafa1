"""Image files given by name, folder or pattern, or listed on standard input."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from ftkit.data.sources.suffixes import image_suffixes
from ftkit.errors import UserError, listed
from ftkit.files import natural_sorted


def find_images(inputs: Iterable[str]) -> list[str]:
    """The image files that `inputs` name, in the order of the inputs.

    Args:
        inputs: files, with any suffix; folders, for all images below them; patterns such as `photos/**/*.jpg`, for the
            images that match; and `-`, for a list of these on standard input, one per line. Images of a folder or a
            pattern are in natural order, and hidden ones are skipped.

    Raises:
        UserError: an input does not exist or holds no images, standard input is empty, or a name is not UTF-8.
    """
    suffixes = tuple(image_suffixes())
    files, wrong = [], []
    for name in _listed(inputs):
        if os.path.isdir(name):
            found = natural_sorted(_below(name, suffixes))
            problem = "this folder holds no images"
        elif os.path.exists(name):  # even if its name looks like a pattern
            found = [name]
        elif set("*?[") & set(name):
            matches = glob.glob(name, recursive=True)
            found = natural_sorted(path for path in matches if path.lower().endswith(suffixes))
            problem = "no image file matches this pattern"
        else:
            found, problem = [], "there is no such file or folder"
        files += found
        if not found:
            wrong.append(f"{name}: {problem}")
    wrong += [f"{name!r}: this name is not UTF-8: rename the file" for name in files if not _is_utf8(name)]
    if wrong:
        raise UserError(listed(wrong, 10, between="\n"))
    return files


def _below(folder: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and name.lower().endswith(suffixes):
                yield os.path.join(place, name)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # Python's surrogates for bytes that are not UTF-8
        return False
    return True


def _listed(inputs: Iterable[str]) -> Iterator[str]:
    """The inputs, with `-` replaced by the lines of standard input."""
    for name in inputs:
        if name != "-":
            yield name
            continue
        given: Any = sys.stdin  # a TextIOWrapper
        given.reconfigure(errors="surrogateescape")  # as for the names on the command line
        lines = [line for line in given.read().replace("\r\n", "\n").split("\n") if line]
        if not lines:
            raise UserError("-: standard input is empty: expected paths, one per line")
        yield from lines
