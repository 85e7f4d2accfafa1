"""Situations with tables, columns and layouts in which ftkit recommends settings."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from support import MLP, REPO

RUN = [*MLP, "--num_train_epochs", 1]
NAMES = [f"{i}.png" for i in range(40)]
LABELS = ["cat", "dog"] * 20


def _picture(i: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8), 6 * i, np.uint8))


def _pictures(folder: Path, names: list[str] = NAMES) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _picture(i).save(folder / name)
    return folder


def _png(i: int) -> bytes:
    file = io.BytesIO()
    _picture(i).save(file, "PNG")
    return file.getvalue()


def _table(folder: Path, name: str = "table.csv", **columns: list) -> list:
    """Pictures with a table of them, beside each other."""
    pd.DataFrame(columns).to_csv(_pictures(folder) / name, index=False)
    return ["--data_dir", folder / name, *RUN]


def _parquet(folder: Path, **columns: list) -> list:
    pd.DataFrame(columns).to_parquet(folder / "all.parquet")
    return ["--data_dir", folder / "all.parquet", *RUN]


def _beside_class_folders(folder: Path, **columns: list) -> list:
    """A table beside class folders."""
    _pictures(folder / "data", [f"{label}/{name}" for label, name in zip(LABELS, NAMES, strict=True)])
    pd.DataFrame(columns).to_csv(folder / "data" / "table.csv", index=False)
    return ["--data_dir", folder / "data", *RUN]


def _parquet_beside_class_folders(folder: Path) -> list:
    arguments = _beside_class_folders(folder, note=["x", "y"])
    _parquet(folder / "data", picture=[_png(i) for i in range(40)], label=LABELS)
    return arguments


def _images_twice(folder: Path) -> list:
    for name in ("photos", "thumbs"):
        _pictures(folder / name)
    pd.DataFrame({"id": range(40), "label": LABELS}).to_csv(folder / "table.csv", index=False)
    return ["--data_dir", folder, *RUN]


def _two_tables(folder: Path) -> list:
    for name in ("first.csv", "second.csv"):
        _table(folder, name, image=NAMES, label=LABELS)
    return ["--data_dir", folder, *RUN]


def _test_without_labels(folder: Path) -> list:
    _table(folder, "train.csv", image=NAMES[:30], label=LABELS[:30])
    _table(folder, "test.csv", image=NAMES[30:])
    return ["--data_dir", folder, *RUN]


def _unclear_beside_a_test_without_labels(folder: Path) -> list:
    _table(folder, "train.csv", image=NAMES[:30], breed=LABELS[:30], colour=["red", "red", "blue"] * 10)
    _table(folder, "test.csv", image=NAMES[30:])
    return ["--data_dir", folder, *RUN]


def _two_sets_of_idx(folder: Path) -> list:
    for name in ("emnist-letters", "emnist-digits"):
        for what, header, values in (("images-idx3", [40, 4, 4], range(640)), ("labels-idx1", [40], range(40))):
            start = bytes([0, 0, 8, len(header)]) + np.array(header, ">u4").tobytes()
            content = bytes(value // 5 % 256 if len(header) > 1 else value % 2 for value in values)
            (folder / f"{name}-train-{what}-ubyte").write_bytes(start + content)
    return ["--data_dir", folder, *RUN]


def _row_without_split(folder: Path) -> list:
    rows = [{"image": name, "label": label, "split": "train"} for name, label in zip(NAMES, LABELS, strict=True)]
    rows[3]["split"], rows[4]["split"], rows[5]["split"] = None, "test", "test"
    (_pictures(folder) / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ["--data_dir", folder / "table.jsonl", *RUN]


CASES = {
    "data.sources.listings:read_listing": lambda f: _table(f, key=NAMES, breed=LABELS, count=[*range(40)]),
    "data.sources.listings:Listing.check_values": lambda f: _table(
        f, image=NAMES, label=[i / 7 for i in range(40)], kind=LABELS
    ),
    "data.sources.listings:Listing.located": lambda f: _table(f, image=[*NAMES, "gone.png"], label=[*LABELS, "cat"]),
    "data.sources.listings:Listing.rows": _row_without_split,
    "data.sources.listings:hidden_labels": lambda f: _table(
        f, image=NAMES, label=[*LABELS[:30], *[""] * 10], split=["train"] * 30 + ["test"] * 10
    ),
    "data.sources.beside:_agrees": lambda f: _beside_class_folders(
        f, path=[f"{a}/{b}" for a, b in zip(LABELS, NAMES, strict=True)], label=["day"] * 20 + ["night"] * 20
    ),
    "data.sources.layouts:_several": _parquet_beside_class_folders,
    "data.sources.table_files:choose_tables": _two_tables,
    "data.sources.table_files:choose_tables#2": _unclear_beside_a_test_without_labels,
    "data.sources.table_files:choose_tables#3": _test_without_labels,
    "data.sources.listings:Listing.ambiguous": _images_twice,
    "data.sources.layouts:_only_set": _two_sets_of_idx,
    "data.sources.layouts:read_folder": lambda f: [*_beside_class_folders(f, note=["x"]), "--image_dir", REPO],
    "data.sources.pictures:_with_pictures": lambda f: _parquet(
        f, image=[_png(i) for i in range(40)], thumbnail=[_png(i) for i in range(40)], label=LABELS
    ),
    "tasks.columns:find_column": lambda f: _parquet(f, picture=[_png(i) for i in range(40)], breed=LABELS, name=NAMES),
    "tasks.single_label.targets:_no_classes": lambda f: _parquet(
        f, image=[_png(i) for i in range(40)], label=[i / 7 for i in range(40)], breed=LABELS
    ),
}
