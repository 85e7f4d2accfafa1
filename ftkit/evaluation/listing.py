"""Predictions written line by line: as a table, JSON lines or CSV."""

import contextlib
import csv
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from ftkit.errors import UserError, printable

Write = Callable[[str, list[tuple[str, float]]], None]  # takes a file, and its labels with probabilities


@contextlib.contextmanager
def opened(path: Path | None) -> Iterator[TextIO]:
    """A new file, or standard output, in UTF-8, without newline translation.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        output: Any = sys.stdout  # a TextIOWrapper
        output.reconfigure(encoding="utf-8", newline="")
        try:
            yield output
        except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
            raise
        return
    try:
        file = path.open("x", encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"output: {path} cannot be written: {error.strerror}") from error
    with file:
        yield file


def _table(out: TextIO, files: list[str], top_k: int) -> Write:
    """Aligned columns, a line for each label."""
    width = max(len("file"), *(_columns(printable(file)) for file in files))
    out.write(f"{'file':<{width}}  probability  label\n")

    def write(file: str, predictions: list[tuple[str, float]]) -> None:
        place = printable(file)
        for label, probability in predictions:
            out.write(f"{place}{' ' * (width - _columns(place))}  {probability:11.4f}  {printable(label)}\n")
            place = ""

    return write


def _jsonl(out: TextIO, files: list[str], top_k: int) -> Write:
    """A JSON object on each line."""

    def write(file: str, predictions: list[tuple[str, float]]) -> None:
        rows = [{"label": label, "probability": _significant(probability)} for label, probability in predictions]
        out.write(json.dumps({"file": file, "predictions": rows}, ensure_ascii=False) + "\n")

    return write


def _comma_separated(out: TextIO, files: list[str], top_k: int) -> Write:
    """CSV with the line ends of RFC 4180: with others, the `csv` module would not quote a CR or LF in a field."""
    writer = csv.writer(out)
    writer.writerow(["file", *(f"{name}_{rank}" for rank in range(1, top_k + 1) for name in ("label", "probability"))])

    def write(file: str, predictions: list[tuple[str, float]]) -> None:
        writer.writerow([file, *(cell for label, p in predictions for cell in (label, _significant(p)))])

    return write


FORMATS = {"table": _table, "jsonl": _jsonl, "csv": _comma_separated}


def _significant(probability: float) -> float:
    """The probability rounded to six digits, the precision of float32."""
    return float(f"{probability:.6g}")


def _columns(text: str) -> int:
    """The number of terminal columns that the text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)
