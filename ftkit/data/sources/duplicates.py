"""Images that appear in more than one split."""

from itertools import combinations
from typing import Any

import numpy as np

from ftkit.data.feeding.tensors import Images

_EXAMPLES = 10


def duplicates(splits: dict[str, Images]) -> list[dict[str, Any]]:
    """Images of a split whose files are byte-identical to files of another split.

    Returns:
        For each pair of splits that share images: `split`, `also_in`, the number `n` of its shared images, how many of
        them have no twin with the same label there (`with_another_label`), and up to ten of their rows (`examples`),
        with the sources of each and of its twin (`files`).
    """
    found = []
    for (first, there), (second, here) in combinations(splits.items(), 2):
        seen = set(there.hashes.tolist())
        seen_with_label, pairs = set(_hashes_and_labels(there)), _hashes_and_labels(here)
        twins = [row for row, (hashed, _) in enumerate(pairs) if hashed in seen]
        if twins:
            found.append(
                {
                    "split": second,
                    "also_in": first,
                    "n": len(twins),
                    "with_another_label": sum(pairs[row] not in seen_with_label for row in twins),
                    "examples": here.index[twins[:_EXAMPLES]].tolist(),
                    "files": _files(there, here, twins[:_EXAMPLES]),
                }
            )
    return found


def _hashes_and_labels(images: Images) -> list[tuple[int, bytes]]:
    labels = images.labels.cpu().numpy()
    return list(zip(images.hashes.tolist(), (label.tobytes() for label in labels), strict=True))


def _files(there: Images, here: Images, rows: list[int]) -> list[tuple[str, str]]:
    """The source of each of these rows, and that of its first twin."""
    sources, others = (images.about().get("source", []) for images in (here, there))
    twins = [int(np.flatnonzero(there.hashes == here.hashes[row])[0]) for row in rows]
    return [(sources[row], others[twin]) for row, twin in zip(rows, twins, strict=True) if sources and others]
