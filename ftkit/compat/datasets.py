"""Private names of datasets."""

from datasets import Dataset


def fingerprint(dataset: Dataset) -> str:
    """The key of a dataset's caches: a hash of its data and of every transform applied to it."""
    return dataset._fingerprint


def set_fingerprint(dataset: Dataset, value: str) -> None:
    """Set the fingerprint of a dataset, from which those of derived datasets follow."""
    dataset._fingerprint = value
