"""Every kind of image classifier, built, trained by each kind of method, saved and reloaded: does it hold?

    python tests/sweep.py --out runs/sweep
    python tests/sweep.py --out runs/sweep --only vit resnet --again

The kinds are the smallest architecture of each of timm's modules, and every class of transformers'
`AutoModelForImageClassification`, shrunk as far as it still runs. Each is tried in a process of its own, so that a
crash is a row too. `--out` keeps a JSON file for each model, and a finished one is skipped in the next call. `--write`
writes what is finished to recipes/results/sweep.json; `python recipes/results.py --write` puts it into the texts.
"""

import argparse
import copy
import datetime
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}

import numpy as np
import timm
import torch
import transformers
from peft import PeftModel
from PIL import Image
from support import REPO
from transformers import AutoModelForImageClassification, PreTrainedConfig, ViTImageProcessor

from ftkit import run as steps
from ftkit.compat.transformers import tensors_of_config
from ftkit.config import ModelArguments
from ftkit.data.pixels.images import ImageInfo
from ftkit.errors import UserError
from ftkit.models.anatomy import find_head, layer_groups
from ftkit.models.classifier import Classifier
from ftkit.tasks import SingleLabel
from ftkit.training.provenance import environment

NAMES, OTHERS = ["ant", "bee", "fly"], ["x", "y", "z", "u"]
SIZES = (64, 32, 96, 128, 192, 224, 240, 256, 288, 384)
LARGE = {
    "base",
    "large",
    "huge",
    "giant",
    "gigantic",
    "so400m",
    "so150m",
    "medium",
    "xl",
    "xxl",
    "l",
    "b",
    "m",
    "xlarge",
}
# Where the defaults make no model that runs, or none that can be made smaller step by step.
BEGIN = {"perceiver": {"num_cross_attention_heads": 1, "num_self_attention_heads": 2, "num_self_attends_per_block": 2,
                       "d_latents": 64, "num_latents": 16}}  # fmt: skip
MEMORY = 12 << 30  # bytes of address space
TIMEOUT = 480  # seconds
STEPS = {
    "full": ["--method", "full"],
    "linear_probe": ["--method", "linear_probe"],
    "last_2": ["--method", "full", "--stages", '[{"train": {"last": 2}}]'],
    "lora": ["--method", "lora"],
}
SHORT = {"max_steps": 1, "per_device_train_batch_size": 4, "eval_strategy": "no", "save_strategy": "no",
         "load_best_model_at_end": "false", "report_to": "none", "disable_tqdm": "true"}  # fmt: skip
LABELS = {"num_labels": 5, "id2label": dict(enumerate("abcde")), "label2id": {c: i for i, c in enumerate("abcde")}}


def kinds() -> dict[str, str]:
    """The name of every kind, with its library; timm's modules are `timm/<module>`."""
    found = {f"timm/{module}": "timm" for module in sorted(timm.list_modules())}
    classes = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    for config in classes:
        known = classes[config]
        for kind in known if isinstance(known, (tuple, list)) else [known]:
            if kind is not None and "TimmWrapper" not in kind.__name__:
                found[kind.__name__] = "transformers"
    return found


def smallest_of_timm(module: str) -> str | None:
    """The smallest architecture of a module of timm that has a classifier; those made for tests do not count."""
    sizes = {}
    names = [name for name in timm.list_models(module=module) if not name.startswith("test_")]
    small = [name for name in names if not set(name.split("_")) & LARGE]
    for name in small or names:
        if name not in sizes:
            try:
                with torch.device("meta"):
                    model = timm.create_model(name, num_classes=5)
                if model.num_classes == 5:
                    sizes[name] = sum(parameter.numel() for parameter in model.parameters())
            except Exception:
                continue  # an encoder without a head, or one that needs further packages
    return min(sizes, key=sizes.__getitem__, default=None)


def build_timm(name: str) -> Classifier:
    """The architecture at the smallest size that it takes."""
    failure: Exception = RuntimeError("no size fits")
    for side in SIZES:
        args = ModelArguments(f"timm/{name}", image_size=[side], image_mean=[0.5] * 3, image_std=[0.25] * 3)
        try:
            built = Classifier.build(args, SingleLabel(list("abcde")), ImageInfo(None, 3), pretrained=False)
            with torch.no_grad():
                built.model.eval()(pixel_values=torch.rand(2, 3, side, side))
            return built
        except (UserError, RuntimeError, ValueError, AssertionError) as error:
            failure = error
    raise failure


def build_transformers(kind: Any) -> Classifier:
    """A small model of a class, with an image processor."""
    config, side = smallest(kind)
    model = kind(config)
    return Classifier(model, ViTImageProcessor(size={"height": side, "width": side}, do_convert_rgb=True))


def smallest(kind: Any) -> tuple[PreTrainedConfig, int]:
    """A config of a small model, and the side of its images: each number is lowered while the model runs."""
    config = kind.config_class(**LABELS)
    begin = BEGIN.get(config.model_type, {})
    own = config.image_size if isinstance(vars(config).get("image_size"), int) else None
    for side in (64, 32, 96, 128, 224, own):
        config = kind.config_class(**LABELS, **begin, **({} if own is None else {"image_size": side}))
        if side is not None and (parameters := _parameters(kind, config, side)) is not None:
            break
    else:
        config = kind.config_class(**LABELS)
        if sum(tensor.numel() for tensor in tensors_of_config(kind, config).values()) > 2e8:
            raise UserError(f"{kind.__name__} does not run on images alone, and is too large to build here")
        return config, own or 224
    config = rebuilt(config)
    fields = sorted(_numbers(config), key=lambda field: "depth" not in field[1] and "layer" not in field[1])
    for owner, key in fields:
        for lower in _lower(getattr(owner, key)):
            before = getattr(owner, key)
            setattr(owner, key, lower)
            fewer = _parameters(kind, config, side)
            if fewer is not None and fewer < parameters:
                parameters = fewer
                break
            setattr(owner, key, before)
        if parameters < 300_000:
            break
    return rebuilt(config), side


def rebuilt(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config as it is after it has been saved; what it derives from other fields is derived anew."""
    derived = ("out_features", "out_indices", "stage_names")
    return type(config).from_dict({key: value for key, value in config.to_dict().items() if key not in derived})


def _numbers(config: PreTrainedConfig) -> Iterator[tuple[PreTrainedConfig, str]]:
    for key, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            yield from _numbers(value)
        elif key.startswith("_") or any(
            word in key for word in ("label", "channels", "image", "_id", "patch", "dtype", "num_encoder_blocks")
        ):
            continue
        elif (type(value) is int and value > 1) or (
            isinstance(value, (list, tuple)) and value and all(type(number) is int for number in value)
        ):
            yield config, key


def _lower(value: Any) -> Iterator[Any]:
    for divisor in (32, 16, 8, 4, 2):
        if isinstance(value, int) and value >= divisor:
            yield value // divisor
        elif not isinstance(value, int) and max(value) >= divisor:
            yield [max(number // divisor, 1) for number in value]


def _parameters(kind: Any, config: PreTrainedConfig, side: int) -> int | None:
    """The number of parameters of a model, if it runs on images of this side."""
    try:
        config = rebuilt(config)
        tensors = tensors_of_config(kind, config)
        if sum(tensor.numel() for tensor in tensors.values()) > 20e6:
            with torch.device("meta"):
                kind(copy.deepcopy(config))(pixel_values=torch.empty(2, 3, side, side))
        else:
            with torch.no_grad():
                kind(copy.deepcopy(config)).eval()(pixel_values=torch.rand(2, 3, side, side))
        return sum(tensor.numel() for tensor in tensors.values())
    except Exception:
        return None


class Trial:
    """The steps of one model, in a folder of its own."""

    def __init__(self, folder: Path, data: Path):
        self.folder, self.data, self.job = folder, data, None

    def build(self, kind: str, library: str) -> dict[str, Any]:
        """Build and save the model; what it is."""
        if library == "timm":
            name = kind.removeprefix("timm/")
            name = smallest_of_timm(name) if name in timm.list_modules() else name
            if name is None:
                raise UserError("timm's module has no classifier that builds here")
            built = build_timm(name)
        else:
            try:
                name, built = kind, build_transformers(getattr(transformers, kind))
            except ImportError as error:
                raise UserError(str(error).strip().splitlines()[0]) from error
        built.save(self.folder / "base")
        groups = layer_groups(built.model)
        grouped = sorted(name for names in groups.values() for name in names)
        assert grouped == sorted(name for name, _ in built.model.named_parameters()), "groups leave parameters out"
        return {"name": name, "parameters": built.model.num_parameters(), "size": list(built.size),
                "head": [*find_head(built.model)], "groups": len(groups)}  # fmt: skip

    def train(self, step: str, more: dict[str, Any]) -> None:
        """One step of a method, saved and reloaded by ftkit and by the libraries' own means."""
        options = {"data_dir": self.data, "model": self.folder / "base", "output_dir": self.folder / step,
                   "cache_dir": self.folder / "cache", **SHORT, **more}  # fmt: skip
        words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
        job = steps.start(steps.parse_config([*words, *STEPS[step]]))
        steps.read_data(job)
        steps.build_classifier(job)
        steps.make_plan(job)
        with steps.own_folder(job):
            steps.train(job)
        saved = job.folder / "model"
        job.classifier.save(saved)
        pixels = job.classifier.normalize(job.images["train"].sample(4))
        expected = _logits(job.classifier.model, pixels)
        assert expected.shape == (4, len(NAMES)) and expected.isfinite().all(), f"logits: {expected}"
        for name, model in (
            ("ftkit", Classifier.load(str(saved)).model),
            ("plain", _plain(saved, self.folder / "base")),
        ):
            difference = ((_logits(model, pixels) - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
            assert difference <= 1e-4, f"reloaded ({name}), the logits differ by {difference:.2g}"

    def other_classes(self) -> None:
        """A second fine-tuning of the trained model starts with a head for its classes."""
        args = ModelArguments(str(self.folder / "full" / "model"))
        again = Classifier.build(args, SingleLabel(OTHERS), ImageInfo(None, 3), pretrained=True)
        logits = _logits(again.model, torch.rand(2, 3, *again.size))
        assert logits.shape == (2, len(OTHERS)), f"logits: {logits.shape}"


def _plain(saved: Path, base: Path) -> Any:
    if (saved / "adapter_config.json").is_file():
        options = {"num_labels": len(NAMES), "ignore_mismatched_sizes": True}
        return PeftModel.from_pretrained(AutoModelForImageClassification.from_pretrained(base, **options), saved)
    return AutoModelForImageClassification.from_pretrained(saved)


@torch.no_grad()
def _logits(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    return model.eval()(pixel_values=pixels).logits


def tried(step: Callable[[], Any]) -> tuple[str, Any]:
    """What came of a step (`passed`, `refused: …`, `crashed: …`), and its result."""
    try:
        return "passed", step()
    except UserError as error:
        return f"refused: {error}", error.fix
    except Exception as error:
        traceback.print_exc()
        return f"crashed: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}", None


def without_paths(outcome: str, folder: Path) -> str:
    """An outcome as it can be shown: without the folder of this trial, and on one line."""
    return " ".join(outcome.replace(f"{folder.resolve()}/", "").replace(f"{folder}/", "").split())[:400]


def try_model(kind: str, library: str, folder: Path, data: Path) -> Iterator[dict[str, Any]]:
    """All steps of a model; yields the row after each."""
    trial, row = Trial(folder, data), {"library": library, "steps": {}}
    begun = time.monotonic()
    torch.manual_seed(0)
    outcome, about = tried(lambda: trial.build(kind, library))
    row["steps"]["build"] = without_paths(outcome, folder)
    if row["steps"]["build"] == "passed":
        row |= about
        for step in STEPS:
            outcome, fix = tried(lambda step=step: trial.train(step, {}))
            if outcome.startswith("refused") and fix:  # as a user would
                outcome, _ = tried(lambda step=step, fix=fix: trial.train(step, fix))
                with_fix = ", ".join(f"{key}: {json.dumps(value)}" for key, value in fix.items())
                outcome = f"passed with {with_fix}" if outcome == "passed" else outcome
            row["steps"][step] = without_paths(outcome, folder)
            yield row
        if row["steps"]["full"].startswith("passed"):
            outcome, _ = tried(trial.other_classes)
            row["steps"]["other_classes"] = without_paths(outcome, folder)
    row["seconds"] = round(time.monotonic() - begun, 1)
    yield row


def in_a_child(kind: str, library: str, out: Path) -> dict[str, Any]:
    """The row of a model that is tried in a forked process, whose output goes to a log."""
    place = out / kind.replace("/", "-")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    row_file = place / "row.json"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        log = os.open(place / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        try:
            for row in try_model(kind, library, place, out / "data"):
                row_file.write_text(json.dumps(row))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    deadline, status = time.monotonic() + TIMEOUT, None
    while status is None:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            status = code
        elif time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
        else:
            time.sleep(0.05)
    row = json.loads(row_file.read_text()) if row_file.is_file() else {"library": library, "steps": {}}
    if status:
        late = time.monotonic() > deadline
        step = next((step for step in ("build", *STEPS, "other_classes") if step not in row["steps"]), "the end")
        ended = f"signal {status & 127}" if status & 127 else "see its log"
        row["steps"][step] = f"crashed: {f'not finished after {TIMEOUT} s' if late else ended}"
    for run in (path for path in place.iterdir() if path.is_dir()):  # a few hundred megabytes for each kind
        shutil.rmtree(run)
    return row


def make_data(folder: Path) -> Path:
    """Class folders of a few colour images in each split."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("validation", 2), ("test", 2)):
        for number, name in enumerate(NAMES):
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = rng.integers(0, 120, (64, 64, 3), dtype=np.uint8)
                pixels[..., number] += 100
                Image.fromarray(pixels).save(place / f"{index}.png")
    return folder


def record(rows: dict[str, dict[str, Any]], every: dict[str, str]) -> dict[str, Any]:
    """The result, as in recipes/results/."""
    return {
        "kind": "sweep",
        "command": "python tests/sweep.py --out runs/sweep",
        "what": "every kind of image classifier of timm and transformers, through all kinds of methods",
        "numbers": rows,
        "kinds": Counter(every.values()),
        "environment": environment(),
        "date": datetime.date.today().isoformat(),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="sweep.py", description="Try every kind of image classifier.")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the rows, logs and trained models")
    parser.add_argument("--only", nargs="+", help="names of kinds, or parts of them")
    parser.add_argument("--write", action="store_true", help="write the finished rows to recipes/results/sweep.json")
    parser.add_argument("--again", action="store_true", help="try finished ones again")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    make_data(args.out / "data")
    every, rows = kinds(), {}
    for kind, library in every.items():
        kept = args.out / f"{kind.replace('/', '-')}.json"
        wanted = not args.only or any(part.lower() in kind.lower() for part in args.only)
        if wanted and (args.again or not kept.is_file()):
            row = in_a_child(kind, library, args.out)
            kept.write_text(json.dumps(row))
            bad = {step: outcome for step, outcome in row["steps"].items() if outcome != "passed"}
            print(f"{kind}: {row.get('name')}, {row.get('seconds')} s: {bad or 'passed'}", flush=True)
        if kept.is_file():
            rows[kind] = json.loads(kept.read_text())
    if args.write:
        path = REPO / "recipes" / "results" / "sweep.json"
        path.write_text(json.dumps(record(rows, every), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
