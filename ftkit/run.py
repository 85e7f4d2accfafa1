"""The job as functions, for scripts and notebooks: the steps of recipes/finetune.py, in its order.

    from ftkit.run import run
    job = run(["--dataset", "digits", "--model", "convnet", "--num_train_epochs", "5"])
    print(job.metrics["accuracy"], job.folder)

Each step takes the `Job` and sets what the next steps need.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import set_seed

from ftkit.config.configuration import Config
from ftkit.data.feeding.engine import set_up_loading
from ftkit.data.feeding.tensors import Images
from ftkit.data.pixels.decoding import first_images
from ftkit.data.pixels.images import describe_images
from ftkit.data.pixels.kinds import in_colour, log_kinds
from ftkit.data.sources.ledger import Ledger
from ftkit.data.sources.load import load_data
from ftkit.data.sources.splits import Splits
from ftkit.errors import listed, writing
from ftkit.evaluation.predictions import predict_split, write_evaluation
from ftkit.evaluation.record import describe_run, warn_of_seen_images, write_run_record
from ftkit.evaluation.report import write_report
from ftkit.hub.card import write_card
from ftkit.memory import enough_memory
from ftkit.methods.plan import starts_from_trained_weights
from ftkit.models.classifier import Classifier
from ftkit.models.flops import flops_per_image
from ftkit.models.weights import save_pairs
from ftkit.owners import parse_config
from ftkit.tasks import Predictions, Task, task_of
from ftkit.training.checkpointing.continuity import Fingerprint, take_fingerprint
from ftkit.training.checkpointing.output_folder import begin_run, check_run_folder, check_shared, claimed
from ftkit.training.loop.trainer import ImageTrainer
from ftkit.training.stages.memory import check_first_images, check_image_size, check_memory
from ftkit.training.stages.planning import Plan, prepare_plan
from ftkit.training.stages.resumption import prepare_resumption
from ftkit.training.stages.running import run_plan

logger = logging.getLogger(__name__)
_LESS_TO_TRAIN = (
    "set auto_find_batch_size: true, which computes a batch in parts that fit, and --overwrite true to replace the "
    "run that has begun; or set a smaller image_size, or take a smaller model"
)
_LESS_TO_PREDICT = "lower per_device_eval_batch_size"


@dataclass(repr=False)
class Job:
    """The state of a run; most attributes are set by the step in brackets.

    Attributes:
        config: the run's configuration.
        folder: the run's folder.
        started: the time of the start, by `time.monotonic`.
        ledger: (read_data) an account of the files and rows that no split uses.
        dataset: (read_data) the splits, with columns `image`, `label`, `index`.
        task: (read_data) what a right answer is.
        classifier: (build_classifier) the model with its image processor.
        images: (build_classifier) the splits, decoded for the model.
        fingerprint: (make_plan) identifies the data and the weights, for a resume.
        plan: (make_plan) the method's stages for this model.
        stages: (train) the result of each stage.
        predicted: (evaluate) the predictions for test, by kind, and for `validation`.
        metrics: (write_results) the metrics of the test split.
        record: (write_results) the contents of `run.json` beside the metrics.
    """

    config: Config
    folder: Path
    started: float
    ledger: Ledger = field(default_factory=Ledger)
    dataset: Splits = field(init=False)
    task: Task = field(init=False)
    classifier: Classifier = field(init=False)
    images: dict[str, Images] = field(init=False)
    fingerprint: Fingerprint = field(init=False)
    plan: Plan = field(init=False)
    stages: list[dict[str, Any]] = field(init=False)
    predicted: dict[str, Predictions] = field(init=False)
    metrics: dict[str, Any] = field(init=False)
    record: dict[str, Any] = field(init=False)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.config.training.process_index == 0


def run(arguments: list[str], default_recipe: Path | None = None) -> Job:
    """Train, evaluate and report: all steps, in order.

    Args:
        arguments: the command line of recipes/finetune.py.
        default_recipe: the recipe to read without `--config`; recipes/finetune.py passes recipes/digits/convnet.yaml.

    Raises:
        UserError: the arguments, the data or the model cannot be used.
    """
    started = time.monotonic()
    job = start(parse_config(arguments, default_recipe), started)
    read_data(job)
    build_classifier(job)
    make_plan(job)
    with own_folder(job):
        train(job)
        evaluate(job)
        write_results(job)
    push(job)
    return job


def start(config: Config, started: float | None = None) -> Job:
    """Seed the random numbers; check the run's folder and, if the model is to be pushed, the login to the Hub.

    Args:
        started: the time from which the run's seconds count, by `time.monotonic`; None: now.

    Raises:
        UserError: the folder holds another run, or the Hub refuses the login.
    """
    set_seed(config.training.seed)
    job = Job(config, check_run_folder(config), time.monotonic() if started is None else started)
    if job.is_first and config.pushes:
        from ftkit.hub.push import check_login

        check_login()
    return job


def read_data(job: Job) -> None:
    """Read the splits; images are decoded later. Classes that a small train split lacks are logged."""
    job.dataset = load_data(job.config.data, job.ledger)
    job.task = task_of(job.dataset["train"].features)
    counts = job.task.counts(job.task.tensor(job.dataset["train"]))
    if lacking := [repr(name) for name, count in counts.items() if not count]:
        logger.warning("train: no image of %d of the %d classes: %s", len(lacking), len(counts), listed(lacking))


def build_classifier(job: Job) -> None:
    """Build or load the model, decode the images for it, and fit it to the train split."""
    config, seed = job.config, job.config.training.seed
    info, pretrained = describe_images(job.dataset["train"]), starts_from_trained_weights(config.method.method)
    check_image_size(config.model.size, config.training)
    with enough_memory("building the model", "set a smaller image_size, or take a smaller model"):
        job.classifier = Classifier.build(config.model, job.task, info, pretrained)
    channels = job.classifier.channels_of(info)
    with enough_memory("decoding the first two images", "free memory, or shrink the image files"):
        two = first_images(job.dataset["train"], job.classifier.processor, channels)
    with enough_memory("a first step with two images", "set a smaller image_size, or take a smaller model"):
        if two is not None:
            shape = max(two.shape[1], job.classifier.channels), *two.shape[2:]
            check_first_images(job.classifier.model, shape, config.training)
            job.classifier.check(config.model, job.task, info, pretrained, two)
    with enough_memory("decoding images", "set a smaller image_size, or data_engine: stream"):
        job.images = job.classifier.images_of(job.dataset, config.data, seed)
        if not pretrained and info.channels == 1 and in_colour(job.images.values()):
            set_seed(seed)
            job.classifier = Classifier.build(config.model, job.task, info._replace(channels=3), pretrained)
            job.images = job.classifier.images_of(job.dataset, config.data, seed)
        log_kinds(job.images)
        warn_of_seen_images(job.images)
        set_up_loading(config.training, job.images, config.if_given("dataloader_num_workers"))
        job.classifier.fit(job.images["train"])


def make_plan(job: Job) -> None:
    """Plan the method's stages for this model, add its adapters, and check arguments and memory."""
    config = job.config
    pretrained = starts_from_trained_weights(config.method.method)
    job.fingerprint = take_fingerprint(config, job.images, job.classifier.model if pretrained else None)
    job.plan = prepare_plan(config, job.classifier, job.images)
    check_memory(job.plan)


@contextmanager
def own_folder(job: Job) -> Iterator[None]:
    """Within the block, no other run writes to this run's folder, and a full disk becomes a `UserError`."""
    with writing("output_dir", job.folder), claimed(job.config):
        yield


def train(job: Job) -> None:
    """Train stage by stage, or resume an unfinished run in the same folder."""
    config = job.config
    resumption = prepare_resumption(job.plan, job.fingerprint)
    with config.training.main_process_first(local=False, desc="making the run's folder"):
        if job.is_first:
            begin_run(config)
            job.fingerprint.save_table(job.folder)
            save_pairs(job.classifier.in_order, job.folder)
    check_shared(config)
    with enough_memory("training", _LESS_TO_TRAIN, {"auto_find_batch_size": True, "overwrite": True}):
        job.stages = run_plan(job.plan, resumption)


def evaluate(job: Job) -> None:
    """Predict test and validation with the model that training chose."""
    classifier, test = job.classifier, job.images["test"]
    trainer = ImageTrainer(classifier.model, job.config.training, classifier.normalize, eval_dataset=test)
    with enough_memory("evaluation", _LESS_TO_PREDICT):
        job.predicted = predict_split(trainer, test, job.config.data.test_time_augmentation)
        job.predicted["validation"] = predict_split(trainer, job.images["validation"])["plain"]


def write_results(job: Job) -> None:
    """Write the model, predictions, metrics, report, card and `run.json`, only in the first process."""
    if not job.is_first:
        return
    classifier, test = job.classifier, job.images["test"]
    classifier.save(job.folder / "model")
    job.metrics = write_evaluation(job.folder / "evaluation", job.predicted, test)
    flops = flops_per_image(classifier.model, classifier.normalize(test.sample(1)))
    parameters = {"total": classifier.model.num_parameters(), "trained": job.plan.trained}
    seconds = time.monotonic() - job.started
    job.record = describe_run(job.config, job.images, parameters, flops, job.stages, seconds)
    job.record |= {"drawn_from": dict(job.dataset.drawn_from), "not_used": job.ledger.record(job.images)}
    write_report(job.folder, job.record)
    write_card(job.folder, record=job.record)
    write_run_record(job.folder, job.record, job.task, job.metrics)  # last: it marks the run as finished


def push(job: Job) -> str | None:
    """Push the model to the Hub if the configuration says so; returns the address of the commit."""
    if not (job.is_first and job.config.pushes):
        return None

    from ftkit.hub.push import push

    args = job.config.training
    return push(job.folder, args.hub_model_id or job.folder.name, args.hub_private_repo, args.hub_revision)
