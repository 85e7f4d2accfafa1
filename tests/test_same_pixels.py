"""A sample's pixels depend only on (seed, stage, epoch, sample): not on workers, processes, engine or a resume."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from support import MLP, REPO, TINY, interrupt, losses, train, weights

from ftkit.data.feeding.stream import StreamedImages

SMALL = ("--model_args", '{"hidden_sizes": [8, 8], "depths": [0, 0]}', "--dropout", 0.1)
CHANGING = ("--augment", "random_crop", "rotate", "brightness", "--mixup", 0.2)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run of 20 steps, a little less than two epochs, with a checkpoint after each step."""
    options = ("--max_steps", 20, "--per_device_train_batch_size", 128, "--eval_strategy", "no")
    saving = ("--save_strategy", "steps", "--save_steps", 1, "--save_total_limit", 30)
    return train(tmp_path_factory.mktemp("reference") / "run", *SMALL, *CHANGING, *options, *saving).folder


@pytest.mark.parametrize(("workers", "engine"), [(0, "tensor"), (2, "tensor"), *((n, "stream") for n in range(3))])
def test_neither_engine_nor_workers_change_a_bit(reference, tmp_path, engine, workers):
    changed = ("--data_engine", engine, "--dataloader_num_workers", workers, "--save_strategy", "no")
    again = train(tmp_path / "run", "--config", reference / "config.yaml", *changed)
    assert weights(again.folder) == weights(reference)
    assert isinstance(again.images["train"], StreamedImages) == (engine == "stream")


def test_image_transform_does_not_touch_global_generators(tmp_path):
    """Mixup and dropout are the same whether a worker or the main process transforms the images."""
    options = (*SMALL, "--mixup", 0.2, "--max_steps", 4, "--eval_strategy", "no", "--save_strategy", "no")
    transform = ("--image_transform", '{"auto_augment": "rand-m9-mstd0.5"}')
    runs = [train(tmp_path / str(n), *options, *transform, "--dataloader_num_workers", n).folder for n in (0, 1)]
    assert weights(runs[0]) == weights(runs[1])


@pytest.mark.parametrize(
    ("drawn", "size"),
    [
        ([], 20),  # the order
        (["--augment", "random_crop", "rotate"], 60),
        (["--image_transform", '{"hflip": 0.5, "scale": [0.3, 1.0]}'], 60),
        (["--mixup", 1.0], 60),
        (["--dropout", 0.5], 60),
        (["--data_seed", 3], 20),
    ],
    ids=["order", "augment", "image_transform", "mixup", "dropout", "data_seed"],
)
def test_each_stage_draws_its_own_numbers(tmp_path, drawn, size):
    """At a learning rate of 0 the losses reveal a stage's draws; the first stage draws as a single-stage run does."""
    options = [*TINY, *MLP, "--dropout", 0, "--max_train_samples", 60, "--per_device_train_batch_size", size,
               "--learning_rate", 0, "--logging_steps", 1, *drawn]  # fmt: skip
    two = train(tmp_path / "two", *options, "--stages", '[{"train": "all"}, {"train": "all"}]').folder
    one = train(tmp_path / "one", *options).folder
    first, second, alone = losses(two, 0), losses(two, 1), losses(one)
    assert first == alone and len(first) == len(second) == 2 * 60 / size
    assert all(abs(a - b) > 1e-6 for a in first for b in second)


@pytest.mark.parametrize("mixing", [["--mixup", 0.4], ["--cutmix", 1.0], ["--mixup", 0.2, "--cutmix", 1.0]], ids=str)
def test_mixing_partners_do_not_depend_on_the_batch_size(tmp_path, mixing):
    """At a learning rate of 0 the epoch losses are the same for all batch sizes."""
    options = [*TINY, *MLP, "--dropout", 0, "--max_train_samples", 31, "--learning_rate", 0, "--logging_steps", 1000,
               "--augment", "rotate", *mixing]  # fmt: skip
    sizes = (31, 10, 1)
    runs = [train(tmp_path / str(size), *options, "--per_device_train_batch_size", size).folder for size in sizes]
    told = [losses(run) for run in runs]
    np.testing.assert_allclose(told[1:], [told[0]] * 2, rtol=1e-5)
    assert abs(told[0][0] - told[0][1]) > 1e-5


@pytest.mark.slow
def test_a_resume_after_any_step_changes_nothing(reference, tmp_path):
    for step in range(1, 20):
        run = shutil.copytree(reference, tmp_path / str(step))
        interrupt(run, keep=step)
        train(run, "--config", reference / "config.yaml", "--resume_from_checkpoint", "true")
        assert weights(run) == weights(reference), f"resumed after step {step}"


RECORD = """
import sys
import numpy as np
from transformers import ViTImageProcessor
from ftkit.config import DataArguments, LossArguments
from ftkit.config.arguments.training import TrainingArguments
from ftkit.data.pixels.normalize import normalizer
from ftkit.data.sources.load import load_data
from ftkit.data.feeding.tensors import image_tensors
from ftkit.methods.parameter_groups import Setting
from ftkit.models.modeling_mlp import MLPConfig, MLPForImageClassification
from ftkit.training.loop.objective import Objective
from ftkit.training.loop.trainer import ImageTrainer

class Recorder(ImageTrainer):
    seen = []

    def compute_loss(self, model, inputs, **options):
        self.seen += [inputs["pixel_values"].flatten(1).numpy(), inputs["labels"].numpy()]
        return super().compute_loss(model, inputs, **options)

folder, batch = sys.argv[1], int(sys.argv[2])
args = TrainingArguments(folder + "/run", num_train_epochs=2, per_device_train_batch_size=batch, save_strategy="no",
                         eval_strategy="no", logging_steps=500, disable_tqdm=True)
with args.main_process_first():
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    images = image_tensors(load_data(DataArguments(dataset="digits"))["train"], processor, 1, cache_dir=folder)
model = MLPForImageClassification(MLPConfig(image_size=[8, 8], hidden_sizes=[4], num_labels=10))
settings = {name: Setting(0.01, True) for name, _ in model.named_parameters()}
objective = Objective(LossArguments(mixup=0.2, cutmix=1.0), settings, ["random_crop", "rotate"])
trainer = Recorder(model, args, normalizer(processor, 1), objective, images)
trainer.train()
np.savez(f"{folder}/{args.process_index}-of-{args.world_size}.npz", *trainer.seen)
"""


@pytest.mark.slow
def test_two_processes_see_the_images_of_one(tmp_path):
    """Two gloo processes, and one with twice the batch: the same images at every step, byte for byte."""
    (tmp_path / "record.py").write_text(RECORD)
    launch = yaml.safe_load((REPO / "accelerate_configs" / "multi_gpu.yaml").read_text())
    two = launch | {"num_processes": 2, "use_cpu": True, "mixed_precision": "no"}
    two.pop("gpu_ids", None)
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(two))
    script = [str(tmp_path / "record.py"), str(tmp_path)]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "two.yaml")]
    subprocess.run([*accelerate, *script, "32"], check=True, cwd=tmp_path, timeout=200)
    subprocess.run([sys.executable, *script, "64"], check=True, cwd=tmp_path, timeout=200)
    first, second, alone = (np.load(tmp_path / f"{name}.npz") for name in ("0-of-2", "1-of-2", "0-of-1"))
    assert len(first.files) == len(second.files) == len(alone.files) == 2 * 2 * 21  # 1,293 images in batches of 64
    for step in alone.files:
        together = np.concatenate([first[step], second[step]])
        assert np.array_equal(together, alone[step])
