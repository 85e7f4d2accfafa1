"""Which data a recipe and a command line name together, and where they lie."""

import os
import re
from pathlib import Path
from typing import Any

from ftkit.config.arguments.data import EMBEDDED
from ftkit.config.entries import Entry


def same_data(recipe: list[Entry], overrides: list[Entry]) -> bool:
    """Whether the command line names the data of the recipe, or none."""
    run, given = (
        {entry.key: entry.shown for entry in entries if entry.texts and entry.key in ("dataset", "data_dir")}
        for entries in (recipe, overrides)
    )
    if not given:
        return True
    for values in (run, given):
        find_local_data(values)
    key = "data_dir" if "data_dir" in run or "data_dir" in given else "dataset"
    there, here = run.get(key, ""), given.get(key, "")
    return there == here or (key == "data_dir" and os.path.realpath(there) == os.path.realpath(here))


def without_other_data(recipe: list[Entry], named: dict[str, str]) -> list[Entry]:
    """A recipe without its dataset or folder if the command line, whose keys are `named`, names other data.

    A folder that has the dataset's name, such as `mnist` or `MNIST/raw`, is a copy of it.
    """
    own, replaced = {entry.key: entry.shown for entry in recipe}, set()
    if "data_dir" in named and not _is_copy(named["data_dir"], own.get("dataset", "")):
        replaced = {"dataset", "dataset_config", "dataset_revision"}
    elif "dataset" in named and named["dataset"] != own.get("dataset"):
        replaced = {"data_dir"}
    return [entry for entry in recipe if entry.key not in replaced]


def _is_copy(place: str, dataset: str) -> bool:
    letters = [re.sub(r"[\W_]", "", part).lower() for part in (dataset.rpartition("/")[2], *_local(place).parts[-2:])]
    return any(re.match(rf"{letters[0]}(?!\d)", part) for part in letters[1:])


def find_local_data(values: dict[str, Any]) -> None:
    """Look up a short dataset name in the folder `FTKIT_DATA_DIR`; make folders absolute."""
    shared, dataset = os.environ.get("FTKIT_DATA_DIR"), values.get("dataset")
    found = Path(shared) / dataset if shared and dataset and dataset not in EMBEDDED else None
    if found and not values.get("data_dir") and os.path.isdir(found):
        values["data_dir"] = str(found)
    for key in ("data_dir", "image_dir"):
        if values.get(key):
            values[key] = str(_local(values[key]))


def _local(place: str) -> Path:
    return Path(os.path.expanduser(place)).absolute()
