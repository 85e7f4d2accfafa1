"""The main job: read a recipe, train, evaluate on test, save the model, report.

    accelerate launch recipes/finetune.py
    accelerate launch recipes/finetune.py --config recipes/mnist/mlp.yaml --data_dir path/to/mnist
    accelerate launch recipes/finetune.py --data_dir path/to/photos --model timm/resnet18 --image_size 64

Without `--config` it runs recipes/digits/convnet.yaml, whose data ship with scikit-learn. The hyperparameters of that
recipe suit its own data and model: with `--dataset`, `--data_dir` or `--model`, ftkit's defaults apply instead. Every
key can be overridden by its name; `--help` lists them. `FTKIT_DATA_DIR` names a folder where `mnist`, `cifar10`, …
are looked up before the Hub. `FTKIT_DEBUG=1` shows the traceback of an error.
"""

import gc
import sys
import time
from pathlib import Path

from ftkit.errors import listed, user_errors
from ftkit.signals import signals

DEFAULT_RECIPE = Path(__file__).resolve().parent / "digits" / "convnet.yaml"


def main(arguments: list[str]) -> None:
    """Run the job; `arguments` is the command line without the program's name."""
    started = time.monotonic()
    gc.disable()  # importing makes no garbage, and collecting takes a sixth of the time
    from ftkit.owners import parse_config

    gc.enable()
    config = parse_config(arguments, DEFAULT_RECIPE)

    # These take seconds to load: a mistake in the configuration is reported first.
    from ftkit import run
    from ftkit.console import banner, fact, set_up_console, warn_of_idle_gpus
    from ftkit.evaluation.record import next_steps
    from ftkit.precision import precision_of

    set_up_console(config.training)
    warn_of_idle_gpus(config.training)
    job = run.start(config, started)

    banner("data")
    run.read_data(job)
    names = job.task.names
    fact("source", config.data.data_dir or config.data.dataset)
    fact("images", ", ".join(f"{split} {len(rows):,}" for split, rows in job.dataset.items()))
    fact("classes", f"{len(names)}: {listed(names, 12)}")

    banner("model")
    run.build_classifier(job)
    fact("model", f"{config.model.model}, {job.classifier.model.num_parameters():,} parameters")
    fact("input", " × ".join(map(str, job.images["train"].shape)) + " (channels × height × width)")
    run.make_plan(job)
    fact("precision", precision_of(config.training))
    if config.defaults():
        fact("defaults", config.defaults())
    fact("plan", f"{config.method.method}: {' → '.join(prepared.stage.name for prepared in job.plan.stages)}")

    with run.own_folder(job):
        banner("train")
        run.train(job)
        banner("evaluate")
        run.evaluate(job)
        run.write_results(job)
    if not job.is_first:
        return
    next_steps(job.folder, job.record, job.task, job.metrics)

    if config.pushes:
        banner("push")
        fact("pushed", run.push(job))


if __name__ == "__main__":
    with user_errors(), signals.handled():
        main(sys.argv[1:])
