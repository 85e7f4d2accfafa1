"""The tables of the texts, as functions of the results."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

Results = dict[str, dict[str, Any]]

# What the texts say of a run, by the name of the number.
PHRASES = {
    "accuracy": "test accuracy {}",
    "accuracy_flip": "{} averaged over mirror images",
    "accuracy_flip_and_shift": "{} over shifts as well",
    "first_stage": "after the first stage {} on validation",
    "trained_parameters": "{} parameters trained",
    "training_seconds": "{} of training",
}


def count(number: dict[str, Any]) -> str:
    """A whole number, which is the same for all seeds."""
    return f"{number['mean']:,.0f}"


def seconds(number: dict[str, Any]) -> str:
    """A duration in seconds: the mean or median, or the range where no more is known."""
    if "range" in number:
        low, high = number["range"]
        return f"{low:,.0f} to {high:,.0f} s"
    value = number["mean"] if "mean" in number else number["median"]
    return f"{value:,.1f} s" if value < 10 else f"{value:,.0f} s"


def accuracy(number: dict[str, Any]) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{number['mean']:.4f}" + (f" ± {number['std']:.4f}" if number["std"] is not None else "")


def bound(record: dict[str, Any], name: str) -> str:
    """One number of a result, in its unit."""
    number = record["numbers"][name]
    if record.get("measure") == "gigabytes":
        return f"{number['median']:.2g} GB"
    if name.startswith("accuracy") or name.endswith("accuracy") or name == "first_stage":
        return accuracy(number)
    return seconds(number) if record["kind"] == "benchmark" or name.endswith("seconds") else count(number)


def phrases(numbers: dict[str, dict[str, Any]]) -> list[str]:
    """What there is to say of a run, test accuracy first."""
    said = []
    for name, phrase in PHRASES.items():
        if name in numbers:
            said.append(phrase.format(bound({"kind": "recipe", "numbers": numbers}, name)))
    return said


def table(heads: list[str], rows: Iterable[list[str]], right: str) -> str:
    """A Markdown table; `right` has an `r` for each column that is aligned to the right."""
    lines = [heads, ["---:" if side == "r" else "---" for side in right], *rows]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)


def named(results: Results, *patterns: str) -> list[tuple[str, dict[str, Any]]]:
    """The results whose names fit the patterns, in the order of these."""
    return [(name, record) for pattern in patterns for name, record in results.items() if fnmatch(name, pattern)]


def link(record: dict[str, Any], recipes: str, text: str) -> str:
    """A link to the recipe of a result."""
    return f"[`{text}`]({recipes}/{record['recipe'].removeprefix('recipes/')})"


def recipes_table(results: Results, recipes: str) -> str:
    """Recipes from random weights."""
    rows = []
    for name, record in named(results, "digits/*", "mnist/*", "cifar10/speedrun", "cifar10/resnet18_timm"):
        if "-" in name:
            continue  # a variant of a recipe
        numbers = record["numbers"]
        accuracies = [phrase.removeprefix("test accuracy ") for phrase in phrases(numbers) if "param" not in phrase]
        duration = f"{seconds(numbers['training_seconds'])}{record.get('alongside', '')}"
        recipe = link(record, recipes, record["recipe"].removeprefix("recipes/"))
        title = recipe + (f", {record['what']}" if record["what"] else "")
        rows.append([title, str(len(record["seeds"])), "; ".join(accuracies[:-1]), duration])
    return table(["recipe", "seeds", "test accuracy", "training"], rows, "lrrr")


def tutorials_table(results: Results, recipes: str) -> str:
    """The tutorials, reproduced."""
    rows = [
        [link(record, recipes, Path(record["recipe"]).stem), record["what"], str(len(record["seeds"])),
         accuracy(record["numbers"]["accuracy"])]
        for _, record in named(results, "tutorials/*")
    ]  # fmt: skip
    return table(["recipe", "system", "seeds", "test accuracy"], rows, "llrr")


def methods_table(backbone: str) -> Callable[[Results, str], str]:
    """A table of the methods on one backbone, the best first."""

    def of_backbone(results: Results, recipes: str) -> str:
        records = [record for record in results.values() if backbone in (record.get("after") or {})
                   and record["recipe"].startswith("recipes/cifar10/")]  # fmt: skip
        rows = []
        for record in sorted(records, key=lambda record: -record["numbers"]["accuracy"]["mean"]):
            numbers, stem = record["numbers"], Path(record["recipe"]).stem
            duration = f"{numbers['training_seconds']['mean']:.1f}"
            method = link(record, recipes, stem.partition("_")[2])
            rows.append([method, accuracy(numbers["accuracy"]), count(numbers["trained_parameters"]), duration])
        return table(["method", "test accuracy", "parameters trained", "seconds of training"], rows, "lrrr")

    return of_backbone


def linear_probe_table(results: Results, recipes: str) -> str:
    """What cached features save a linear probe."""
    numbers = results["benchmarks/linear_probe"]["numbers"]
    names = {
        "body": "through the body, every epoch (`--cache_features false`)",
        "computed": "features computed, then the head",
        "cached": "features from the cache of an earlier run",
    }
    rows = []
    for side, name in names.items():
        stage = numbers.get(f"{side} stage_seconds")
        rows.append([name, f"{stage['median']:.1f} s" if stage else "", f"{numbers[side]['median']:.1f} s"])
    return table(["", "stage", "whole run"], rows, "lrr")


def speed_table(results: Results, recipes: str) -> str:
    """The rows of recipes/benchmark.py."""
    units = {"seconds": "s", "seconds_per_batch": "s a batch", "gigabytes": "GB"}
    rows = []
    for name, record in named(results, "benchmarks/*"):
        if name.endswith(("linear_probe", "default_run")):
            continue  # elsewhere
        sides = ", ".join(f"{side} {number['median']:.3g}" for side, number in record["numbers"].items())
        ratios = ", ".join(f"{goal['what'].replace('/', '÷')} {goal['value']:.3g}" for goal in record["goals"])
        rows.append([f"`{Path(name).name}`: {record['what']}", f"{sides} {units[record['measure']]}", ratios])
    return table(["what", "median of each side", "ratio"], rows, "lll")


def export_table(results: Results, recipes: str) -> str:
    """Exported models, beside PyTorch."""
    rows = []
    for _, record in named(results, "export/*"):
        numbers = record["numbers"]
        rows.append([record["what"], *(
            f"{numbers[f'{kind} accuracy']['mean']:.4f}, {numbers[f'{kind} milliseconds']['mean']:.2g} ms"
            for kind in ("pytorch", "onnx", "int8")
        )])  # fmt: skip
    return table(["accuracy, time for one image", "PyTorch", "ONNX", "int8"], rows, "lrrr")


def gpu_table(results: Results, recipes: str) -> str:
    """What the tests on a GPU measured."""
    found = results["gpu_h100"]["numbers"]
    step, memory = found["mnist_epoch_against_a_bare_loop"], found["batches_that_do_not_fit"]
    tensor, stream = (found[f"lite0_against_random_tensors[{engine}]"] for engine in ("tensor", "stream"))
    apart = {name: f"{row['difference_of_a_plain_pipeline']:.1e}" for name, row in found.items()
             if "difference_of_a_plain_pipeline" in row}  # fmt: skip
    rows = [
        ["the default run, by `accelerate launch`, bf16", f"accuracy {found['default_run']['accuracy']:.4f}"],
        ["EfficientNet-Lite0 at 224 px on 243 photos, bf16: logits of a plain pipeline on the CPU against the run's",
         f"{apart['lite0[full-tensor]']} apart (full), {apart['lite0[lora-tensor]']} (LoRA, merged)"],
        ["FSDP2 of one process, bf16", f"{found['fsdp2_of_one_process']['difference']:.1e} apart"],
        [f"out of memory at {memory['limit_mb'] / 1000:.0f} GB, `auto_find_batch_size`, batches of 200",
         f"trained within {memory['gpu_mb'] / 1000:.1f} GB"],
        ["a step of MNIST, MLP, batches of 512, fp32: ftkit, a bare loop",
         f"{step['step_ms']:.2f} ms, {step['bare_step_ms']:.2f} ms: {step['ratio']:.1f} ×"],
        ["EfficientNet-Lite0, full, batches of 64, bf16: images/s, against random tensors in a bare loop",
         f"data on the GPU {tensor['own']:,} of {tensor['random_tensors']:,}: {tensor['ratio']}; streamed by 16 "
         f"processes {stream['own']:,} of {stream['random_tensors']:,}: {stream['ratio']}"],
    ]  # fmt: skip
    return table(["what", "found"], rows, "ll")


TABLES: dict[str, Callable[[Results, str], str]] = {
    "recipes": recipes_table,
    "tutorials": tutorials_table,
    "methods": methods_table("runs/backbone-convnet"),
    "methods_vit": methods_table("runs/backbone-vit"),
    "linear_probe": linear_probe_table,
    "speed": speed_table,
    "export": export_table,
    "gpu": gpu_table,
}
