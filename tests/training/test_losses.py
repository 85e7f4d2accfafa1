"""Losses and regularisation, compared with the libraries' own and tested in whole runs."""

import json
import re
import shutil
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import brier_score_loss
from support import KEEP_ALL, MLP, TINY, assert_saved_is_trained, interrupt, losses, train, weights
from timm.loss import BinaryCrossEntropy
from torch.nn import functional as F

from ftkit.config import LossArguments
from ftkit.tasks import SingleLabel
from ftkit.tasks.single_label.losses import LOSSES

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0], [5.0, 4.0, 0.0], [-2.0, 0.0, 2.0]])
LABELS = torch.tensor([0, 2, 1, 1])
SHARES = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0], [0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
QUICK = [*TINY, "--max_train_samples", 200, "--model", "mlp", "--logging_steps", 1]


def of(name, smoothing=0.0, **options):
    return SingleLabel(["a", "b", "c"]).loss(LossArguments(name, **options), smoothing)


def brier_score(logits, labels):
    one_hot = F.one_hot(labels, 3).numpy()
    return np.mean([brier_score_loss(one_hot[:, c], logits.softmax(1)[:, c]) for c in range(3)])


def focal_loss(logits, labels):
    p = logits.softmax(1)[range(len(labels)), labels]
    return (-((1 - p) ** 3) * p.log()).mean()


# For each loss: its value by another implementation, and its options.
REFERENCES = {
    "cross_entropy": (F.cross_entropy, {}),
    "mse": (brier_score, {}),
    "bce": (BinaryCrossEntropy(smoothing=0.0), {}),
    "focal": (focal_loss, {"focal_gamma": 3.0}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_equals_that_of_the_libraries(name):
    assert name in REFERENCES, "a new loss needs a reference"
    reference, options = REFERENCES[name]
    assert of(name, **options)(LOGITS, LABELS).item() == pytest.approx(float(reference(LOGITS, LABELS)))


@pytest.mark.parametrize("name", LOSSES)
def test_shares_of_classes_and_smoothing_mean_the_same_everywhere(name):
    loss = of(name)
    torch.testing.assert_close(loss(LOGITS, F.one_hot(LABELS, 3).float()), loss(LOGITS, LABELS))
    smooth = SHARES * 0.9 + 0.1 / 3
    torch.testing.assert_close(of(name, 0.1)(LOGITS, SHARES), loss(LOGITS, smooth))
    assert torch.isfinite(loss(100 * LOGITS, LABELS))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_focal_loss_has_a_finite_gradient_at_certainty(gamma):
    logits = torch.tensor([[50.0, 0, 0], [0, 200.0, 0]], requires_grad=True)
    of("focal", focal_gamma=gamma)(logits, torch.tensor([0, 2])).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", [name for name in LOSSES if name != LossArguments.loss])
def test_a_run_minimises_the_chosen_loss(tmp_path, name):
    run = train(tmp_path / "run", *QUICK, "--loss", name, "--label_smoothing_factor", 0).folder
    digits = SingleLabel(list("0123456789"))
    first = digits.loss(LossArguments(name), 0.0)(torch.zeros(1, 10), torch.tensor([0])).item()  # logits near 0
    assert losses(run)[0] == pytest.approx(first, rel=0.1)
    assert losses(run)[-1] < losses(run)[0]


def test_l1_is_added_to_the_loss(tmp_path):
    """At a learning rate of 0 the loss differs by `l1` times the absolute sum of the weights, without biases."""
    options = [*QUICK, "--learning_rate", 0, "--max_steps", 1, "--seed", 3]
    plain, with_l1 = train(tmp_path / "0", *options).folder, train(tmp_path / "1", *options, "--l1", "0.001").folder
    weights = load_file(plain / "model" / "model.safetensors")
    expected = 0.001 * sum(value.abs().sum().item() for name, value in weights.items() if name.endswith("weight"))
    assert losses(with_l1)[0] - losses(plain)[0] == pytest.approx(expected, rel=1e-3)


def decayed(tmp_path, *options):
    """The names of the parameters that weight decay changes."""
    runs = [
        train(tmp_path / str(decay), "--model", "convnet", "--max_train_samples", 64, "--max_steps", 1, "--optim",
              "sgd", "--warmup_steps", 0, "--learning_rate", 0.1, "--weight_decay", decay, *options).folder
        for decay in (0, 0.5)
    ]  # fmt: skip
    before, after = (load_file(run / "model" / "model.safetensors") for run in runs)
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_weight_decay_skips_norms_and_biases_by_default(tmp_path):
    names = decayed(tmp_path / "default")
    assert names and all(name.endswith(("convolution.weight", "classifier.weight")) for name in names)
    everything = decayed(tmp_path / "all", "--decay_norms_and_biases", "true")
    assert names < everything and any("normalization" in name for name in everything)


@pytest.fixture(scope="module")
def shown_losses(tmp_path_factory):
    """`shown_losses(*options)`: those of the epochs of a run at a learning rate of 0, as they are shown."""

    def run(*options):
        with redirect_stdout(StringIO()) as shown:
            train(tmp_path_factory.mktemp("run") / "run", *TINY, *MLP, "--dropout", 0, "--learning_rate", 0, *options)
        return [float(loss) for loss in re.findall(r"epoch .* loss (\S+) +validation", shown.getvalue())]

    return run


@pytest.fixture(scope="module")
def in_one_batch(shown_losses):
    return shown_losses("--per_device_train_batch_size", 100)


@pytest.mark.parametrize(
    "options",
    [["--logging_steps", 1], ["--logging_steps", 50], ["--gradient_accumulation_steps", 3],
     ["--auto_find_batch_size", "true"], ["--eval_strategy", "steps", "--eval_steps", 4]],
    ids=lambda options: options[0][2:] + str(options[1]),
)  # fmt: skip
def test_the_loss_of_an_epoch_is_that_of_its_images(shown_losses, in_one_batch, options):
    """The batch size does not matter: 100 images in batches of 27 end with one of 19."""
    found = shown_losses("--per_device_train_batch_size", 27, *options)
    assert len(found) == 2 and found == pytest.approx(in_one_batch, abs=1.1e-4)  # four digits are shown


def test_mixup_and_cutmix_train_and_repeat(tmp_path):
    options = [*MLP, "--max_train_samples", 103, "--num_train_epochs", 2, "--per_device_train_batch_size", 25,
               "--mixup", 0.4, "--cutmix", 1.0]  # fmt: skip
    runs = [train(tmp_path / str(n), *options, *KEEP_ALL).folder for n in range(2)]
    plain = train(tmp_path / "plain", *options[:-4]).folder
    files = [weights(run) for run in (*runs, plain)]
    assert files[0] == files[1] != files[2]
    interrupt(runs[1])
    train(runs[1], *options, *KEEP_ALL, "--resume_from_checkpoint", "true")
    assert weights(runs[1]) == files[0]


def averages(path):
    return load_file(path / "average.safetensors")


def test_the_average_is_evaluated_saved_and_resumed(tmp_path):
    """The average follows its definition over the checkpoints of all steps, and a resume ends with the same one."""
    options = ["--max_train_samples", 90, "--num_train_epochs", 2, "--per_device_train_batch_size", 30,
               "--ema_decay", 0.9, "--save_strategy", "steps", "--eval_strategy", "steps", "--eval_steps", 1,
               "--save_steps", 1, *KEEP_ALL]  # fmt: skip
    job = train(tmp_path / "run", *options)
    run = job.folder
    checkpoints = sorted(run.glob("stages/0-all/checkpoint-*"), key=lambda path: int(path.name[11:]))
    expected = None
    for count, checkpoint in enumerate(checkpoints):
        current = load_file(checkpoint / "model.safetensors")["classifier.weight"]
        decay = min(0.9, (1 + count) / (10 + count))
        expected = current if expected is None else decay * expected + (1 - decay) * current
        torch.testing.assert_close(averages(checkpoint)["classifier.weight"], expected)
    state = json.loads((run / "stages/0-all/trainer_state.json").read_text())
    best = run / "stages" / "0-all" / f"checkpoint-{state['best_global_step']}"
    saved = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in averages(best).items() if name in saved)
    assert_saved_is_trained(job)

    again = shutil.copytree(run, tmp_path / "again")
    interrupt(again, keep=3)
    train(again, *options, "--resume_from_checkpoint", "true")
    assert weights(again) == weights(run)


@pytest.mark.parametrize("optim", ["timm/lamb", "timm/muon", "adafactor", "timm/lion"])
def test_other_optimizers(tmp_path, optim):
    run = train(tmp_path / "run", *QUICK, "--optim", optim, "--learning_rate", "1e-3").folder
    assert losses(run)[-1] < losses(run)[0]
    again = train(tmp_path / "again", "--config", run / "config.yaml").folder
    assert losses(again) == losses(run)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--optim", "timm/lam"], ["timm has no optimizer 'lam'", "'lamb'"]),
        (["--optim", "timm/lamb", "--optim_args", "eps"], ["optim_args: 'eps' is not a list such as"]),
        (["--optim", "adamw"], ["optim: 'adamw' is not one of", "did you mean"]),
        (["--loss", "hinge"], [f"'hinge' is not one of {', '.join(LOSSES)}"]),
        (["--focal_gamma", "3"], ["focal_gamma has no effect with loss: cross_entropy", "use loss: focal"]),
        (["--ema_decay", "1"], ["ema_decay: 1.0 must be more than 0 and under 1"]),
        (["--l1", "-1"], ["l1: -1.0 must be at least 0"]),
        (["--layer_decay", "0"], ["layer_decay: 0.0 must be more than 0"]),
        (["--head_lr_multiplier", "0"], ["head_lr_multiplier: 0.0 must be more than 0"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_loss_or_optimizer_is_named(tmp_path, refused, options, words):
    with refused(*words):
        train(tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()
