"""Private names of datasets."""

from datasets import Dataset


def fingerprint(dataset: Dataset) -> str:
    """What `datasets` calls its caches by: a hash of the data and of all that was done to it."""
    return dataset._fingerprint


def set_fingerprint(dataset: Dataset, value: str) -> None:
    """Give a dataset another fingerprint, which all that is derived from it follows."""
    dataset._fingerprint = value
