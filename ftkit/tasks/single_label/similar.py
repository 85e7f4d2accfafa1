"""Class names that look the same to a reader, but are different strings."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from ftkit.errors import listed
from ftkit.files import natural_sorted


def _without_invisible(name: str) -> str:
    return "".join(c for c in name if unicodedata.category(c) != "Cf")


# Differences that a reader overlooks, in the order in which they are removed.
_DIFFERENCES: dict[str, Callable[[str], str]] = {
    "invisible characters": _without_invisible,
    "Unicode form": lambda name: unicodedata.normalize("NFKC", name),
    "capitals": str.casefold,
    "underscores for spaces": lambda name: name.replace("_", " "),
    "the number of spaces": lambda name: re.sub(r"\s+", " ", name),
    "spaces at the ends": str.strip,
}
_HIDDEN = {"invisible characters", "Unicode form"}  # differences that show only when escaped


def look(name: str, but: str = "") -> str:
    """A name without the differences that a reader overlooks, except the difference `but`."""
    for difference, remove in _DIFFERENCES.items():
        if difference != but:
            name = remove(name)
    return name


def alike(names: Iterable[str]) -> list[list[str]]:
    """The groups of two and more names that look alike, each in natural order."""
    groups: dict[str, list[str]] = {}
    for name in natural_sorted(set(names)):
        groups.setdefault(look(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def describe_groups(groups: list[list[str]], counts: Mapping[str, int]) -> str:
    """The groups as text for a message: quoted names, their `counts` of images, and how they differ."""
    described = []
    for group in groups:
        differences = _differences(group)
        quote = ascii if _HIDDEN & set(differences) else repr
        names = ", ".join(f"{quote(name)} ({counts[name]:,})" if name in counts else quote(name) for name in group)
        described.append(f"{names} differ in {' and '.join(differences)}")
    return listed(described, between="; ")


def _differences(group: list[str]) -> list[str]:
    """The differences that must be removed to make the names equal; if none must be, the first that helps."""
    needed = [difference for difference in _DIFFERENCES if len({look(name, but=difference) for name in group}) > 1]
    return needed or [next(d for d, remove in _DIFFERENCES.items() if len(set(map(remove, group))) < len(group))]


def spelling(counts: Counter[str]) -> dict[str, str]:
    """For each name that looks like others, the most frequent of their spellings; in a tie, the cleanest."""
    found: dict[str, str] = {}
    for group in alike(counts):
        best = max(group, key=lambda name: (counts[name], _is_clean(name)))
        found |= dict.fromkeys(group, best)
    return found


def _is_clean(name: str) -> bool:
    """Whether a name is composed (NFC), without invisible characters and extra spaces."""
    return name == " ".join(unicodedata.normalize("NFC", _without_invisible(name)).split())


def look_like(names: list[str], known: list[str]) -> str:
    """`names` with the `known` names that they look like, for a message; empty unless each looks like one."""
    looks = set(map(look, known))
    if not names or not all(look(name) in looks for name in names):
        return ""
    return describe_groups([group for group in alike([*known, *names]) if set(group) & set(names)], {})
