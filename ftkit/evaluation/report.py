"""The short report, in Markdown."""

from pathlib import Path
from typing import Any

_MATRIX_CLASSES = 20  # a wider confusion matrix is not readable as a table
_ESCAPED = str.maketrans({c: f"\\{c}" for c in "\\`*_[]|<>#"} | {"\n": " "})


def escape(text: str) -> str:
    """`text` as Markdown that shows it literally."""
    return str(text).translate(_ESCAPED)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    """What is known of where the numbers come from, as names and texts."""
    texts = {
        "dataset": str,
        "splits": lambda v: ", ".join(f"{split} {n:,}" for split, n in v.items()),
        "data_engine": str,
        "skipped_images": _skipped,
        "model": str,
        "method": str,
        "parameters": lambda v: f"{v['total']:,}, of which {v['trained']:,} were trained",
        "stages": lambda v: "; ".join(map(_stage, v)),
        "seed": str,
        "seconds": lambda v: f"{v:.1f} in all",
        "peak_memory_mb": lambda v: ", ".join(f"{kind} {mb:,.0f}" for kind, mb in v.items()),
        "device": str,
        "versions": lambda v: ", ".join(f"{name} {version}" for name, version in v.items()),
        "commit": lambda v: v or "unknown",
        "command": str,
    }
    return [(key.replace("_", " "), text(record[key])) for key, text in texts.items() if key in record]


def _skipped(skipped: dict[str, list[dict]]) -> str:
    def files(bad: list[dict]) -> str:
        return ", ".join(image["file"] for image in bad[:5]) + (", …" if len(bad) > 5 else "")

    return "; ".join(f"{split}: {len(bad)} ({files(bad)})" for split, bad in skipped.items()) or "none"


def _stage(stage: dict[str, Any]) -> str:
    return (
        f"{stage['stage']}: {stage['epochs']:g} epochs, {stage['seconds']:.1f} s, "
        f"{stage['images_per_second']:,.0f} images/s, {stage['waiting_for_data']:.1%} of the time waiting for data, "
        f"best on validation at step {stage['best_step']}"
    )


def write_report(path: Path, metrics: dict[str, Any], record: dict[str, Any]) -> None:
    """Write the report.

    Args:
        path: the Markdown file.
        metrics: from `compute_metrics`.
        record: what `run.json` says of the run, or a part of it.
    """
    names = list(metrics["per_class"])
    per_class = _table(
        ["class", "n", "accuracy", "precision", "F1"],
        [
            [escape(name), str(row["n"]), *(_number(row[key]) for key in ("accuracy", "precision", "f1"))]
            for name, row in metrics["per_class"].items()
        ],
    )
    parts = [
        f"# {escape(record['model'])} on {escape(record['dataset'])}",
        f"**Accuracy {metrics['accuracy']:.4f}** on {metrics['n']:,} images (macro F1 {metrics['macro_f1']:.4f}; "
        f"always naming the most frequent class: {metrics['majority_baseline']:.4f}).",
        *(
            f"Averaged over several views of each image at test time ({name}): accuracy {accuracy:.4f}."
            for name, accuracy in metrics.get("test_time_accuracy", {}).items()
        ),
        _table(["", ""], [[escape(name), escape(text)] for name, text in _facts(record)]).replace("---:", "---"),
        "## By class",
        per_class,
        "## Most frequent confusions",
        _confusions(metrics["confusion_matrix"], names),
    ]
    if len(names) <= _MATRIX_CLASSES:
        matrix = [[escape(name), *map(str, row)] for name, row in zip(names, metrics["confusion_matrix"], strict=True)]
        parts += [
            "## Confusion matrix",
            "Rows: the true class; columns: the prediction.",
            _table(["", *map(escape, names)], matrix),
        ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _confusions(matrix: list[list[int]], names: list[str]) -> str:
    pairs = [(n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if i != j and n]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    if not pairs:
        return "None: every image is right."
    rows = [[escape(names[i]), escape(names[j]), str(n)] for n, i, j in pairs[:10]]
    return _table(["true class", "taken for", "images"], rows)
