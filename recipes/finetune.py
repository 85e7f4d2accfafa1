"""The main job: read a recipe, train, evaluate on test, save the model, report.

    accelerate launch recipes/finetune.py
    accelerate launch recipes/finetune.py --config recipes/mnist/mlp.yaml --data_dir path/to/mnist
    accelerate launch recipes/finetune.py --data_dir path/to/photos --model timm/resnet18 --image_size 64

Without `--config` it is recipes/digits/convnet.yaml: data that ship with scikit-learn, no network. Every key of a
recipe can be overridden by its own name; `--help` lists them. `FTKIT_DATA_DIR` names a folder where `mnist`,
`cifar10`, … are looked up before the Hub. `FTKIT_DEBUG=1` shows the traceback of an error.
"""

import sys
import time
from pathlib import Path

from ftkit.errors import user_errors, writing
from ftkit.owners import parse_config
from ftkit.signals import signals

DEFAULT_RECIPE = Path(__file__).resolve().parent / "digits" / "convnet.yaml"


def main(arguments: list[str]) -> None:
    """Run the job that `arguments`, a command line without the program's name, describe."""
    started = time.monotonic()
    config = parse_config(arguments, DEFAULT_RECIPE)

    # These take seconds to load; a mistake in the configuration is answered before.
    from transformers import set_seed

    from ftkit.console import banner, fact, say_idle_gpus, set_up_console
    from ftkit.data.feeding.engine import load_images, set_up_loading
    from ftkit.data.pixels.images import describe_images
    from ftkit.data.pixels.normalize import normalizer
    from ftkit.data.sources.load import load_data
    from ftkit.evaluation.predictions import predict_split, write_evaluation
    from ftkit.evaluation.record import describe_run, next_steps, write_run_record
    from ftkit.evaluation.report import write_report
    from ftkit.hub.card import write_card
    from ftkit.methods.plan import starts_from_trained_weights
    from ftkit.models.build import build_model, fit_first_layer, fit_normalization, model_channels, save_model
    from ftkit.models.flops import flops_per_image
    from ftkit.precision import precision_of
    from ftkit.training.continuity import take_fingerprint
    from ftkit.training.output_folder import begin_run, check_run_folder, check_shared, claimed
    from ftkit.training.stages import prepare_plan, prepare_resumption, run_plan
    from ftkit.training.trainer import ImageTrainer

    args = config.training
    set_up_console(args)
    say_idle_gpus(args)
    set_seed(args.seed)
    folder = check_run_folder(config)
    if args.process_index == 0 and config.pushes:
        from ftkit.hub.push import check_login

        check_login()

    banner("data")
    dataset = load_data(config.data)
    names, info = dataset["train"].features["label"].names, describe_images(dataset["train"])
    fact("source", config.data.data_dir or config.data.dataset)
    fact("images", ", ".join(f"{split} {len(rows):,}" for split, rows in dataset.items()))
    fact("classes", f"{len(names)}: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}")

    banner("model")
    pretrained = starts_from_trained_weights(config.method.method)
    model, processor = build_model(config.model, names, info, pretrained)
    channels = min(info.channels, model_channels(model))
    images = load_images(dataset, processor, channels, config.data, args.seed)
    set_up_loading(args, images, config.if_given("dataloader_num_workers"))
    processor = fit_normalization(config.model, model, processor, images["train"], pretrained)
    normalize = normalizer(processor, model_channels(model))
    fit_first_layer(model, normalize, images["train"], pretrained)
    fact("model", f"{config.model.model}, {model.num_parameters():,} parameters")
    fact("input", " × ".join(map(str, images["train"].shape)) + " (channels × height × width)")
    fingerprint = take_fingerprint(args, images, model if pretrained else None)
    plan = prepare_plan(config, model, normalize, images["train"])
    fact("precision", precision_of(args))
    fact("plan", f"{config.method.method}: {' → '.join(prepared.stage.name for prepared in plan.stages)}")

    with writing("output_dir", folder), claimed(config):
        banner("train")
        resumption = prepare_resumption(config, plan, fingerprint)
        with args.main_process_first(local=False, desc="making the run's folder"):
            if args.process_index == 0:
                begin_run(config)
                fingerprint.save_table(folder)
        check_shared(config)
        model, stages = run_plan(config, plan, resumption, normalize, images["train"], images["validation"])

        banner("evaluate")
        test = images["test"]
        trainer = ImageTrainer(model, args, normalize, eval_dataset=test)
        predicted = predict_split(trainer, test, config.data.test_time_augmentation)
        predicted["validation"] = predict_split(trainer, images["validation"])["plain"]
        if args.process_index != 0:
            return
        save_model(model, processor, folder / "model")
        metrics = write_evaluation(folder / "evaluation", predicted, test)
        flops = flops_per_image(model, normalize(test.sample(1)))
        parameters = {"total": model.num_parameters(), "trained": plan.trained}
        record = describe_run(config, images, parameters, flops, stages, seconds=time.monotonic() - started)
        write_report(folder, record)
        write_card(folder, record=record)
        write_run_record(folder, record, test.task, metrics)  # last: by it a run counts as finished
    next_steps(folder, record, test.task, metrics)

    if config.pushes:
        from ftkit.hub.push import push

        banner("push")
        fact("pushed", push(folder, args.hub_model_id or folder.name, args.hub_private_repo, args.hub_revision))


if __name__ == "__main__":
    with user_errors(), signals.heeded():
        main(sys.argv[1:])
