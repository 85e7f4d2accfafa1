"""A linear probe on features that are computed once, against training the same head through the frozen body."""

import json
import shutil

from benchmarks.command import run
from benchmarks.data import Bench
from benchmarks.record import REPO
from benchmarks.timing import Row

EPOCHS, BATCH = 10, 128


def row(bench: Bench) -> Row:
    """Through the body, with features that are computed first, and with features from the cache."""
    limit = f" --max_train_samples {bench.args.images}" if bench.args.images else ""
    data = f" --data_dir {bench.args.cifar_dir}" if bench.args.cifar_dir else ""
    body, pixels = bench.folder / "probe-body", bench.folder / "probe-pixels"
    backbone = f"--config recipes/cifar10/backbone_convnet.yaml --max_steps 1{limit}{data} --output_dir {body}"
    run(f"python recipes/finetune.py {backbone}", bench.folder / "probe-body.log", REPO)
    settings = (
        f"--config recipes/cifar10/convnet_linear_probe.yaml --model {body} --samples_per_class null{limit}{data} "
        f"--num_train_epochs {EPOCHS} --per_device_train_batch_size {BATCH} --eval_strategy epoch --eval_steps null"
    )

    def probe(name: str, number: int, features: bool) -> dict[str, float]:
        place = bench.folder / f"probe-{name}-{number}"
        cache = bench.folder / f"probe-features-{number}" if features else pixels
        if features and not cache.exists():
            shutil.copytree(pixels, cache)  # decoded images, and no features
        command = f"{settings} --cache_features {str(features).lower()} --cache_dir {cache} --output_dir {place}"
        run(f"python recipes/finetune.py {command}", place.with_suffix(".log"), REPO)
        record = json.loads((place / "run.json").read_text(encoding="utf-8"))
        return {"seconds": record["seconds"], "stage_seconds": record["stages"][0]["seconds"]}

    probe("warm-up", 0, False)  # decodes the images
    sides = {
        "body": lambda number: probe("body", number, False),
        "computed": lambda number: probe("computed", number, True),
        "cached": lambda number: probe("cached", number, True),
    }
    what = f"CIFAR-10, five classes, a linear probe of {EPOCHS} epochs in batches of {BATCH}: a run"
    return Row(what, sides, ["body / computed >= 1", "body / cached >= 1"], also=("stage_seconds",))
