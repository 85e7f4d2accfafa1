"""The same image in two splits."""

from itertools import combinations
from typing import Any

from ftkit.data.feeding.tensors import Images

_EXAMPLES = 10


def duplicates(splits: dict[str, Images]) -> list[dict[str, Any]]:
    """Which images of a split are, byte for byte as files, in another as well.

    Returns:
        For each pair of splits that share images: `split`, `also_in`, `n` of its images, how many of them have no
        twin with the same label there, `with_another_label`, and up to ten rows of them as `examples`.
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
                }
            )
    return found


def _hashes_and_labels(images: Images) -> list[tuple[int, bytes]]:
    labels = images.labels.cpu().numpy()
    return list(zip(images.hashes.tolist(), (label.tobytes() for label in labels), strict=True))
