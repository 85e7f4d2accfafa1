"""Class names that look alike are listed, quoted, and joined on request."""

import logging
import unicodedata
from collections import Counter

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from ftkit.tasks.single_label.matching import join_similar
from ftkit.tasks.single_label.similar import alike, describe_groups, spelling

NFC, NFD = "Kröte", unicodedata.normalize("NFD", "Kröte")


@pytest.mark.parametrize(
    "names, differences",
    [
        (["cat", "cat "], "spaces at the ends"),
        (["cat", "Cat", "CAT"], "capitals"),
        (["Straße", "STRASSE"], "capitals"),
        (["cat", " Cat"], "capitals and spaces at the ends"),
        ([NFC, NFD], "Unicode form"),
        (["cat", "ｃａｔ"], "Unicode form"),
        (["fish", "ﬁsh"], "Unicode form"),
        (["hot dog", "hot\u00a0dog"], "Unicode form"),
        (["cat", "\ufeffcat"], "invisible characters"),
        (["cat", "c\u200bat"], "invisible characters"),
        (["hot dog", "hot_dog"], "underscores for spaces"),
        (["hot dog", "hot  dog", "hot\tdog"], "the number of spaces"),
        (["Hot_Dog", "hot  dog"], "capitals and underscores for spaces and the number of spaces"),
    ],
)
def test_names_that_look_alike(names, differences):
    (group,) = alike([*names, "other", "1", "01", "c-at"])
    assert sorted(group) == sorted(names)
    assert describe_groups([group], {}).endswith(f" differ in {differences}")


def test_names_are_quoted_so_that_the_difference_is_visible():
    assert describe_groups([["cat", "cat "]], {"cat": 2, "cat ": 1000}).startswith("'cat' (2), 'cat ' (1,000) differ")
    assert describe_groups([[NFD, NFC]], {}).startswith(r"'Kro\u0308te', 'Kr\xf6te' differ")
    many = describe_groups([[str(i), f"{i} "] for i in range(9)], {})
    assert many.endswith("; and 4 more")


@pytest.mark.parametrize(
    "counts, best",
    [
        ({" cat": 20, "cat": 20, "cat ": 20}, "cat"),
        ({" cat": 21, "cat": 20}, " cat"),
        ({NFD: 5, NFC: 5}, NFC),
        ({"\ufeffcat": 5, "cat": 5}, "cat"),
        ({"hot  dog": 5, "hot dog": 5}, "hot dog"),
        ({"dog": 5, "Dog": 5}, "Dog"),
    ],
)
def test_the_most_frequent_spelling_and_of_equals_the_cleanest(counts, best):
    assert spelling(Counter(counts)) == dict.fromkeys(counts, best)


def split_of(labels: list, feature) -> Dataset:
    return Dataset.from_dict({"kind": labels, "row": range(len(labels))}, Features(kind=feature, row=Value("int64")))


@pytest.mark.parametrize(
    "feature", [Value("string"), ClassLabel(names=["cat", "dog", "Dog", "cat ", "unused", "Unused"])]
)
def test_joined_under_the_most_frequent_spelling_of_all_splits(feature, caplog):
    train = ["cat", "cat ", "dog", "dog", "dog"]
    splits = {"train": split_of(train, feature), "test": split_of(["cat ", "cat ", "Dog"], feature)}
    with caplog.at_level(logging.INFO, logger="ftkit"):
        joined = join_similar(splits, "kind", True)
    found = {name: rows.features["kind"] for name, rows in joined.items()}
    texts = {
        name: [found[name].int2str(v) if isinstance(feature, ClassLabel) else v for v in rows["kind"][:]]
        for name, rows in joined.items()
    }
    assert texts == {"train": ["cat ", "cat ", "dog", "dog", "dog"], "test": ["cat ", "cat ", "dog"]}
    assert joined["train"]["row"][:] == list(range(5))
    assert "'cat' (1), 'cat ' (3) differ in spaces at the ends" in caplog.text


def test_a_warning_by_default_and_none_if_they_are_meant(caplog):
    splits = {"train": split_of(["cat", "Cat"], Value("string")), "test": split_of(["cat"], Value("string"))}
    for join, words in ((None, "'Cat' (1), 'cat' (2) differ in capitals"), (False, "")):
        with caplog.at_level(logging.WARNING, logger="ftkit"):
            assert join_similar(splits, "kind", join) is splits
        assert words in caplog.text and bool(caplog.text) == bool(words)
        caplog.clear()
    plain = {"train": split_of([1, 2, None], Value("int64"))}
    assert join_similar(plain, "kind", True) is plain
