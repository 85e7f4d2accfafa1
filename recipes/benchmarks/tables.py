"""The tables of the texts, as functions of the results."""

import os
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

Results = dict[str, dict[str, Any]]

# The numbers of a run in words.
PHRASES = {
    "accuracy": "test accuracy {}",
    "accuracy_flip": "{} averaged over mirror images",
    "accuracy_flip_and_shift": "{} over shifts as well",
    "first_stage": "after the first stage {} on validation",
    "trained_parameters": "{} parameters trained",
    "training_seconds": "{} of training",
}


def count(number: dict[str, Any]) -> str:
    """A count, the same for all seeds."""
    return f"{number['mean']:,.0f}"


def seconds(number: dict[str, Any] | None) -> str:
    """A duration: the mean or median, the range if only that is known, or nothing if it was not kept."""
    if number is None:
        return ""
    if "range" in number:
        low, high = number["range"]
        return f"{low:,.0f} to {high:,.0f} s"
    value = number["mean"] if "mean" in number else number["median"]
    return f"{value:.2g} s" if value < 10 else f"{value:,.0f} s"


def accuracy(number: dict[str, Any]) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{number['mean']:.4f}" + (f" ± {number['std']:.4f}" if number["std"] is not None else "")


def formatted(record: dict[str, Any], name: str) -> str:
    """One number of a result, in its unit."""
    number = record["numbers"][name]
    if record.get("measure") == "gigabytes":
        return f"{number['median']:.2g} GB"
    if name.startswith("accuracy") or name.endswith("accuracy") or name == "first_stage":
        return accuracy(number)
    return seconds(number) if record["kind"] == "benchmark" or name.endswith("seconds") else count(number)


def phrases(numbers: dict[str, dict[str, Any]], prefix: str = "") -> list[str]:
    """The numbers of a run whose names start with `prefix`, in words, test accuracy first."""
    known = [name for name in PHRASES if name in numbers and name.startswith(prefix)]
    return [PHRASES[name].format(formatted({"kind": "recipe", "numbers": numbers}, name)) for name in known]


def table(heads: list[str], rows: Iterable[list[str]], align: str) -> str:
    """A Markdown table; `align` has an `l` or `r` for each column."""
    lines = [heads, ["---:" if side == "r" else "---" for side in align], *rows]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)


def named(results: Results, *patterns: str) -> list[tuple[str, dict[str, Any]]]:
    """The results whose names match the patterns, in the order of the patterns."""
    return [(name, record) for pattern in patterns for name, record in results.items() if fnmatch(name, pattern)]


def link(record: dict[str, Any], folder: str, text: str) -> str:
    """A link from a text in `folder` to the recipe of a result."""
    return f"[`{text}`]({os.path.relpath(record['recipe'], folder)})"


def captioned(lines: str, records: Iterable[dict[str, Any]]) -> str:
    """A table with the dates and commits of its results below it."""
    commits: dict[tuple[str, str], set[str]] = {}
    for record in records:
        commit, earlier = measured_at(record)
        commits.setdefault((record["date"], earlier), set()).add(commit)
    days = [f"{date} ({', '.join(sorted(of))}{earlier})" for (date, earlier), of in sorted(commits.items())]
    return f"{lines}\n\nMeasured {', '.join(days)}."


def measured_at(record: dict[str, Any]) -> tuple[str, str]:
    """The commit of a result, and ` or earlier` if only the commit that added it to the texts is known."""
    if "since" in record:
        return record["since"][:7], " or earlier"
    return record["environment"]["commit"][:7], ""


def recipes_table(results: Results, folder: str) -> str:
    """The recipes that train from random weights."""
    shown = named(results, "digits/*", "mnist/*", "cifar10/speedrun", "cifar10/resnet18_timm")
    records = [record for name, record in shown if "-" not in name]  # without the variants of a recipe
    rows = []
    for record in records:
        numbers = record["numbers"]
        accuracies = "; ".join(phrases(numbers, "accuracy")).removeprefix("test accuracy ")
        duration = f"{seconds(numbers.get('training_seconds'))}{record.get('alongside', '')}"
        recipe = link(record, folder, record["recipe"].removeprefix("recipes/"))
        title = recipe + (f", {record['what']}" if record["what"] else "")
        rows.append([title, str(len(record["seeds"])), accuracies, duration])
    return captioned(table(["recipe", "seeds", "test accuracy", "training"], rows, "lrrr"), records)


def tutorials_table(results: Results, folder: str) -> str:
    """The tutorials, reproduced."""
    records = [record for _, record in named(results, "tutorials/*")]
    rows = [
        [link(record, folder, Path(record["recipe"]).stem), record["what"], str(len(record["seeds"])),
         accuracy(record["numbers"]["accuracy"])]
        for record in records
    ]  # fmt: skip
    return captioned(table(["recipe", "system", "seeds", "test accuracy"], rows, "llrr"), records)


def methods_table(backbone: str) -> Callable[[Results, str], str]:
    """A table of the methods on one backbone, best first."""

    def of_backbone(results: Results, folder: str) -> str:
        records = [record for record in results.values() if backbone in (record.get("after") or {})
                   and record["recipe"].startswith("recipes/cifar10/")]  # fmt: skip
        rows = []
        for record in sorted(records, key=lambda record: -record["numbers"]["accuracy"]["mean"]):
            numbers, stem = record["numbers"], Path(record["recipe"]).stem
            rows.append([link(record, folder, stem.partition("_")[2]), accuracy(numbers["accuracy"]),
                         count(numbers["trained_parameters"]), seconds(numbers.get("training_seconds"))])  # fmt: skip
        heads = ["method", "test accuracy", "parameters trained", "training"]
        return captioned(table(heads, rows, "lrrr"), records)

    return of_backbone


def linear_probe_table(results: Results, folder: str) -> str:
    """The time that cached features save a linear probe."""
    record = results["benchmarks/linear_probe"]
    numbers = record["numbers"]
    names = {
        "body": "through the body, every epoch (`--cache_features false`)",
        "computed": "features computed, then the head",
        "cached": "features from the cache of an earlier run",
    }
    rows = []
    for side, name in names.items():
        stage = numbers.get(f"{side} stage_seconds")
        rows.append([name, f"{stage['median']:.1f} s" if stage else "", f"{numbers[side]['median']:.1f} s"])
    return captioned(table(["", "stage", "whole run"], rows, "lrr"), [record])


def speed_table(results: Results, folder: str) -> str:
    """The rows of recipes/benchmark.py."""
    units = {"seconds": "s", "seconds_per_batch": "s a batch", "gigabytes": "GB"}
    elsewhere = ("benchmarks/linear_probe", "benchmarks/default_run")
    shown = {name: record for name, record in named(results, "benchmarks/*") if name not in elsewhere}
    rows = []
    for name, record in shown.items():
        sides = ", ".join(f"{side} {number['median']:.3g}" for side, number in record["numbers"].items())
        ratios = ", ".join(f"{goal['what'].replace('/', '÷')} {goal['value']:.3g}" for goal in record["goals"])
        rows.append([f"`{Path(name).name}`: {record['what']}", f"{sides} {units[record['measure']]}", ratios])
    return captioned(table(["what", "median of each side", "ratio"], rows, "lll"), shown.values())


def export_table(results: Results, folder: str) -> str:
    """Exported models, beside PyTorch."""
    records = [record for _, record in named(results, "export/*")]
    rows = []
    for record in records:
        numbers = record["numbers"]
        rows.append([record["what"], *(
            f"{numbers[f'{kind} accuracy']['mean']:.4f}, {numbers[f'{kind} milliseconds']['mean']:.2g} ms"
            for kind in ("pytorch", "onnx", "int8")
        )])  # fmt: skip
    return captioned(table(["accuracy, time per image", "PyTorch", "ONNX", "int8"], rows, "lrrr"), records)


def gpu_table(results: Results, folder: str) -> str:
    """The measurements of the tests on a GPU."""
    found = results["gpu_h100"]["numbers"]
    step, memory = found["mnist_epoch_against_a_bare_loop"], found["batches_that_do_not_fit"]
    tensor, stream = (found[f"lite0_against_random_tensors[{engine}]"] for engine in ("tensor", "stream"))
    failed = " ".join(results["gpu_h100"]["failed"])

    def apart(name: str, key: str = "difference_of_a_plain_pipeline") -> str:
        return f"{found[name][key]:.1e}".replace("e-0", "e-") + " apart"

    rows = [
        ["the default run, by `accelerate launch`, bf16", f"accuracy {found['default_run']['accuracy']:.4f}"],
        ["EfficientNet-Lite0 at 224 px on 243 photos, bf16: logits of a plain pipeline on the CPU against the run's",
         f"{apart('lite0[full-tensor]')} (full), {apart('lite0[lora-tensor]')} (LoRA, merged)"],
        ["FSDP2 of one process, bf16", apart("fsdp2_of_one_process", "difference")],
        ["`full_determinism` twice; a resume in the middle (convnet, EMA, ViT; bf16)",
         "FAILED" if "full_determinism" in failed or "a_resume_is_exact" in failed else "the same bytes"],
        ["a step that waits for the GPU, from the third one on (11 kinds of run)",
         "FAILED" if "no_step_waits" in failed else "none"],
        [f"out of memory at {memory['limit_mb'] / 1000:.0f} GB, `auto_find_batch_size`, batches of 200",
         f"trained within {memory['gpu_mb'] / 1000:.1f} GB"],
        ["a step of MNIST, MLP, batches of 512, fp32: ftkit, a bare loop",
         f"{step['step_ms']:.2f} ms, {step['bare_step_ms']:.2f} ms: {step['step_ms'] / step['bare_step_ms']:.1f} ×"],
        ["EfficientNet-Lite0, full, batches of 64, bf16: images/s, against random tensors in a bare loop",
         f"data on the GPU {tensor['own']:,} of {tensor['random_tensors']:,}: {tensor['ratio']}; streamed by 16 "
         f"processes {stream['own']:,} of {stream['random_tensors']:,}: {stream['ratio']}"],
    ]  # fmt: skip
    return captioned(table(["what", "found"], rows, "ll"), [results["gpu_h100"]])


SWEEP = {
    "build": "builds",
    "full": "`full`",
    "linear_probe": "`linear_probe`",
    "last_2": "`last: 2`",
    "lora": "`lora`",
    "other_classes": "other classes",
}  # the steps of tests/sweep.py, and the heads of their columns


def sweep_table(results: Results, folder: str) -> str:
    """The kinds of models that tests/sweep.py tried, and what did not pass."""
    record = results["sweep"]
    rows, outcomes = [], dict[str, list[str]]()
    for library in ("timm", "transformers"):
        own = {kind: row for kind, row in record["numbers"].items() if row["library"] == library}
        passed = [sum(row["steps"].get(step, "").startswith("passed") for row in own.values()) for step in SWEEP]
        rows.append([library, str(record["kinds"][library]), str(len(own)), *map(str, passed)])
    for kind, row in record["numbers"].items():
        for outcome in row["steps"].values():
            if outcome != "passed":
                of_step = outcomes.setdefault(outcome.replace("|", "/").replace("\n", " "), [])
                name = kind.removesuffix("ForImageClassification")
                of_step += [] if name in of_step else [name]
    counts = captioned(table(["library", "kinds", "tried", *SWEEP.values()], rows, "lrrrrrrrr"), [record])
    others = [[outcome, ", ".join(kinds)] for outcome, kinds in sorted(outcomes.items())]
    return f"{counts}\n\n{table(['otherwise', 'kinds'], others, 'll')}"


TABLES: dict[str, Callable[[Results, str], str]] = {
    "recipes": recipes_table,
    "tutorials": tutorials_table,
    "methods": methods_table("runs/backbone-convnet"),
    "methods_vit": methods_table("runs/backbone-vit"),
    "linear_probe": linear_probe_table,
    "speed": speed_table,
    "export": export_table,
    "gpu": gpu_table,
    "sweep": sweep_table,
}
