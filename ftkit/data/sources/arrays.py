"""Arrays of pixels and labels as a `DatasetDict`."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Image

from ftkit.errors import UserError


def from_arrays(source: Path, splits: dict[str, tuple[np.ndarray, np.ndarray]], names: list[str]) -> DatasetDict:
    """Images (N, H, W) or (N, H, W, 3) uint8 and labels (N,) as a `DatasetDict` with an image column.

    Each image is stored as an uncompressed PNM file, a header before the pixels: nothing to encode, and readable as a
    `datasets.Image`.
    """
    built = {}
    for split, (images, labels) in splits.items():
        if int(labels.min()) < 0 or int(labels.max()) >= len(names):
            raise UserError(
                f"data_dir: {source}: {split} has labels from {labels.min()} to {labels.max()}, but there are "
                f"only {len(names)} classes"
            )
        height, width = images.shape[1:3]
        header = np.frombuffer(b"P%d %d %d 255\n" % (6 if images.ndim == 4 else 5, width, height), np.uint8)
        rows = np.concatenate(
            [np.broadcast_to(header, (len(images), len(header))), images.reshape(len(images), -1)], axis=1
        )
        offsets = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
        files = pa.Array.from_buffers(
            pa.binary(), len(rows), [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(rows))]
        )
        paths = pa.nulls(len(rows), pa.string())
        features = Features(image=Image(), label=ClassLabel(names=names))
        table = pa.table(
            {
                "image": pa.StructArray.from_arrays([files, paths], names=["bytes", "path"]),
                "label": pa.array(labels.astype(np.int64)),
            }
        )
        built[split] = Dataset(table.cast(features.arrow_schema), info=DatasetInfo(features=features))
    return DatasetDict(built)
