"""The main job from outside: a command line in, a run's folder out."""

import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import xxhash
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from support import KEEP_ALL, MLP, REPO, TINY, finetune, interrupt, load_recipe_script, noise_images, train, weights

from ftkit.errors import UserError
from ftkit.evaluation.predictions import read_predictions
from ftkit.run import evaluate
from ftkit.training.checkpointing import saving
from ftkit.training.checkpointing.checkpoints import defect_of, step_of

QUICK = ["--max_train_samples", "200", "--num_train_epochs", "1"]


def test_a_run_writes_all_its_files(digits_run):
    entries = {str(path.relative_to(digits_run)) for path in digits_run.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "run.json",
        "model/model.safetensors",
        "model/config.json",
        "model/preprocessor_config.json",
        "evaluation/predictions.parquet",
        "evaluation/metrics.json",
        "evaluation/report.html",
        "evaluation/report.md",
        "stages/0-all/trainer_state.json",
    } <= entries
    record = json.loads((digits_run / "run.json").read_text())
    assert record["splits"] == {"train": 1293, "validation": 144, "test": 360}
    assert record["test"]["accuracy"] > 0.9
    assert record["parameters"]["total"] == record["parameters"]["trained"] > 0
    assert record["stages"][0]["images_per_second"] > 0 and record["peak_memory_mb"]["ram"] > 0
    config = json.loads((digits_run / "model" / "config.json").read_text())
    assert list(config["id2label"].values()) == [str(i) for i in range(10)]


def test_the_seed_determines_the_bytes(tmp_path):
    runs = [train(tmp_path / name, *QUICK, "--seed", seed).folder for name, seed in (("a", 7), ("b", 7), ("c", 8))]
    assert weights(runs[0]) == weights(runs[1])
    assert weights(runs[0]) != weights(runs[2])


def test_a_run_of_the_saved_configuration_has_the_same_weights(tmp_path):
    options = [*QUICK, *MLP, "--classes", "1", "7", "3"]
    first = train(tmp_path / "first", *options, "--label_smoothing_factor", "0.1").folder
    again = train(tmp_path / "again", "--config", first / "config.yaml").folder
    assert weights(first) == weights(again)
    saved = [yaml.safe_load((run / "config.yaml").read_text()) for run in (first, again)]
    assert all(config.pop("output_dir") for config in saved)
    assert saved[0] == saved[1] and saved[0]["classes"] == ["1", "7", "3"]


def test_weights_that_share_a_buffer(tmp_path, monkeypatch):
    """As in cuDNN's layout of a recurrent layer on a GPU."""

    def flatten(self):
        flat = torch.cat([weight.detach().flatten() for weight in self._flat_weights])
        for weight, piece in zip(self._flat_weights, flat.split([w.numel() for w in self._flat_weights]), strict=True):
            weight.data = piece.view_as(weight)

    monkeypatch.setattr(torch.nn.RNNBase, "flatten_parameters", flatten)
    options = ["--model", "rnn", "--stages", '[{"train": "head"}, {"train": "all"}]', *QUICK]
    assert weights(train(tmp_path / "run", *options).folder)


def test_evaluate_repeats_the_evaluation(digits_run, tmp_path):
    load_recipe_script("eval").main(["--model", str(digits_run), "--output_dir", str(tmp_path / "again")])
    first, again = (read_predictions(folder) for folder in (digits_run / "evaluation", tmp_path / "again"))
    np.testing.assert_array_equal(first.labels, again.labels)
    np.testing.assert_allclose(first.probabilities, again.probabilities, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "model is missing"),
        (["--model", "convnet", "--dataset", "digits"], "has no trained weights"),
        (["--model", "./nothing", "--dataset", "digits"], "does not exist"),
        (["--model", "{run}", "--output_dir", "{run}"], "exists: give the name of a new folder"),
        (["--model", "{run}", "--split", "tset"], "did you mean 'test'"),
        (["--model", "{run}/evaluation", "--dataset", "digits"], "holds no config.json"),
    ],
)
def test_evaluate_reports_mistakes(digits_run, options, message):
    with pytest.raises(UserError, match=message):
        load_recipe_script("eval").main([option.format(run=digits_run) for option in options])


def test_evaluate_matches_labels_by_name(digits_run, tmp_path):
    """The class folders are fewer than the model's classes, and in another order."""
    from ftkit.config import DataArguments
    from ftkit.data.sources.load import load_data

    test = load_data(DataArguments(dataset="digits"))["test"]
    for row in test:
        name = test.features["label"].int2str(row["label"])
        if name in ("7", "3"):
            folder = tmp_path / "digits" / "test" / name
            folder.mkdir(parents=True, exist_ok=True)
            row["image"].save(folder / f"{row['index']}.png")
            (tmp_path / "digits" / "train" / name).mkdir(parents=True, exist_ok=True)
            for i in range(20):
                row["image"].save(tmp_path / "digits" / "train" / name / f"{i}.png")
    arguments = ["--model", digits_run, "--data_dir", tmp_path / "digits", "--output_dir", tmp_path / "out"]
    load_recipe_script("eval").main([str(argument) for argument in arguments])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.9
    assert {name for name, row in metrics["per_class"].items() if row["n"]} == {"3", "7"}


@pytest.mark.parametrize(
    "options",
    [
        ["--gradient_accumulation_steps", "3"],
        ["--bf16", "true"],
        ["--optim", "sgd", "--optim_args", "momentum=0.9", "--lr_scheduler_type", "polynomial"],
        ["--label_smoothing_factor", "0.1", "--model_args", '{"dropout": 0.5}'],
        ["--max_grad_norm", "0", "--weight_decay", "0.1", "--warmup_steps", "3"],
        ["--eval_strategy", "steps", "--eval_steps", "2", "--logging_steps", "1"],
        ["--eval_strategy", "no"],
        ["--dataloader_num_workers", "1"],
        ["--model", "timm/test_resnet", "--gradient_checkpointing", "true", "--image_size", "32"],
        ["--model", "rnn", "--model_args", '{"cell": "gru", "bidirectional": true}', "--dropout", "0.1"],
        ["--max_steps", "3"],
    ],
    ids=lambda options: " ".join(options[:2]),
)
def test_training_options_work_by_their_own_names(tmp_path, options):
    job = train(tmp_path / "run", *QUICK, "--model", "mlp", *options)
    evaluate(job)
    assert len(job.predicted["plain"]) == 360


def test_gradient_accumulation_is_one_big_batch(tmp_path):
    """Two micro-batches of 50 are the same step as one batch of 100, by the logged loss and the weights."""
    one, two = (
        train(tmp_path / str(n), *QUICK, "--model", "mlp", "--per_device_train_batch_size", 100 // n,
              "--gradient_accumulation_steps", n, "--optim", "sgd", "--logging_steps", 1).folder
        for n in (1, 2)
    )  # fmt: skip
    losses = [
        [log["loss"] for log in json.loads((run / "stages/0-all/trainer_state.json").read_text())["log_history"]
         if "loss" in log]
        for run in (one, two)
    ]  # fmt: skip
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.parametrize("terminal", [True, False])
def test_an_evaluation_is_one_line(tmp_path, capfd, terminal):
    train(tmp_path / "run", *QUICK, "--disable_tqdm", str(not terminal).lower(), "--logging_steps", 1)
    shown = "".join(capfd.readouterr())
    assert shown.count("epoch 1/1   loss ") == 1
    assert "eval_loss" not in shown and "grad_norm" not in shown
    assert ("it/s]" in shown) == terminal


def test_early_stopping_keeps_the_best(tmp_path):
    run = train(tmp_path / "run", "--max_train_samples", "100", "--num_train_epochs", "50", "--learning_rate",
                "0.01", "--early_stopping_patience", "2", "--metric_for_best_model", "accuracy").folder  # fmt: skip
    state = json.loads((run / "stages/0-all/trainer_state.json").read_text())
    accuracies = [log["eval_accuracy"] for log in state["log_history"] if "eval_accuracy" in log]
    assert len(accuracies) < 50
    assert state["best_metric"] == max(accuracies)
    assert all(accuracy <= max(accuracies[:-2]) for accuracy in accuracies[-2:])


def test_tensorboard_gets_the_losses(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(tmp_path / "run", *QUICK, "--report_to", "tensorboard").folder
    events = next(run.rglob("events.out.tfevents*"))
    accumulator = EventAccumulator(str(events.parent))
    accumulator.Reload()
    assert {"train/loss", "eval/accuracy", "eval/loss"} <= set(accumulator.Tags()["scalars"])


def test_fine_tuning_starts_from_the_saved_weights(digits_run, tmp_path):
    """At a learning rate of 0 the same classes keep the head, and therefore the accuracy."""
    model = str(digits_run / "model")
    job = train(tmp_path / "same", *QUICK, "--model", model, "--method", "full", "--learning_rate", "0")
    evaluate(job)
    found = read_predictions(digits_run / "evaluation"), job.predicted["plain"]
    accuracy = [predictions.hits.mean() for predictions in found]
    # BatchNorm's running statistics still move a little.
    assert accuracy[1] == pytest.approx(accuracy[0], abs=0.03)
    fewer = train(tmp_path / "fewer", *QUICK, "--model", model, "--method", "full", "--classes", "9", "4", "1").folder
    config = json.loads((fewer / "model" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["1", "4", "9"]


def test_a_finished_run_is_not_overwritten_unless_asked(tmp_path):
    run = finetune(tmp_path / "run", *QUICK)
    (run / "notes.txt").write_text("mine")
    before = weights(run)
    with pytest.raises(UserError, match="holds a finished run.*--overwrite true"):
        finetune(run, *QUICK, "--seed", "9")
    assert weights(run) == before
    train(run, *QUICK, "--seed", "9", "--overwrite", "true")
    assert weights(run) != before
    assert (run / "notes.txt").read_text() == "mine"


def test_a_resume_does_not_train_a_run_that_stopped_early(tmp_path):
    options = [*TINY, *MLP, *KEEP_ALL, "--num_train_epochs", "30", "--learning_rate", "0.01",
               "--early_stopping_patience", "2", "--metric_for_best_model", "accuracy"]  # fmt: skip
    whole = train(tmp_path / "whole", *options).folder
    steps = len(list(whole.glob("stages/0-all/checkpoint-*")))
    for keep in (1, steps - 1, steps):  # the last one: killed between its last checkpoint and its result
        part = shutil.copytree(whole, tmp_path / str(keep))
        interrupt(part, keep)
        train(part, *options, "--resume_from_checkpoint", "true")
        assert weights(part) == weights(whole)


def test_a_run_killed_during_its_evaluation_keeps_its_model(tmp_path, capsys):
    run = finetune(tmp_path / "run", *QUICK)
    before = weights(run)
    for name in ("run.json", "model/model.safetensors"):
        (run / name).unlink()
    finetune(run, *QUICK, "--resume_from_checkpoint", "true")
    assert weights(run) == before and "stage 0, all: already finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--metric_for_best_model", "acuracy"], ["'acuracy' is not a metric of validation", "loss, accuracy"]),
        (["--optim", "timm/lamb", "--optim_args", "foo=1"], ["optim: timm/lamb, optim_args: foo=1", "foo"]),
        (["--optim", "sgd", "--optim_args", "momentum"], ["optim_args: momentum"]),
        (["--optim", "timm/adahessian"], ["second-order gradients"]),
        (["--lr_scheduler_type", "cosine_with_min_lr"], ["lr_scheduler_type: cosine_with_min_lr", "min_lr"]),
        (["--dataloader_drop_last", "true", "--max_train_samples", "10"], ["the 10 images fill no batch"]),
        (["--resume_from_checkpoint", "no/such/folder"], ["is not a folder"]),
        (["--early_stopping_patience", "2", "--stages", '[{"train": "all", "load_best_model_at_end": false}]'],
         ["stages[0]: early_stopping_patience needs load_best_model_at_end: true"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)  # fmt: skip
def test_training_options_that_do_not_fit_are_one_sentence(tmp_path, refused, options, words):
    with refused(*words):
        train(tmp_path / "run", *QUICK, *options)


def test_resume_false_does_not_resume(tmp_path, refused):
    run = train(tmp_path / "run", *QUICK, "--num_train_epochs", "2", "--save_total_limit", "9").folder
    interrupt(run)
    with refused("unfinished run", "--overwrite true"):
        train(run, *QUICK, "--num_train_epochs", "2", "--save_total_limit", "9", "--resume_from_checkpoint", "false")


def test_an_unfinished_run_is_resumed_to_the_same_weights(tmp_path):
    options = ["--model", "mlp", "--max_train_samples", "200", "--num_train_epochs", "3"]
    whole = train(tmp_path / "whole", *options, "--save_total_limit", "3").folder
    part = train(tmp_path / "part", *options, "--save_total_limit", "3").folder
    interrupt(part, keep=1)
    with pytest.raises(UserError, match="another configuration: learning_rate: 0.003 there, 0.1 here"):
        train(part, *options, "--save_total_limit", "3", "--learning_rate", "0.1")
    train(part, *options, "--save_total_limit", "2")  # resumes by itself; save_total_limit may differ
    assert weights(part) == weights(whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--learning_rat", "0.1"], "did you mean 'learning_rate'"),
        (["--model", "convnett"], "'convnett' is unknown.*'convnet'"),
        (["--model", "resnet18"], "'timm/resnet18'"),
        (["--model", "convnett", "--learning_rat", "1"], "2 errors"),
        (["--model", "timm/resnet81"], "timm has no architecture 'resnet81'.*resnet18"),
        (["--model", "./no/such/folder"], "does not exist"),
        (["--model_args", '{"hidden": 3}'], "has no 'hidden'.*hidden_sizes"),
        (["--model_args", '{"hidden_sizes": "big"}'], "hidden_sizes='big'"),
        (["--model", "mlp", "--method", "full"], "mlp has none"),
        (["--classes", "0", "11"], "'11' not among the 10 classes"),
        (["--samples_per_class", "1000"], "more than train has"),
        (["--data_dir", "/no/such/folder"], "does not exist"),
        (["--output_dir", "/dev/null"], "is a file|cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_message_and_writes_nothing(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        load_recipe_script("finetune").main(["--num_train_epochs", "1", *options])
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step \d+.*Lower learning_rate"):
        finetune(tmp_path / "run", "--model", "mlp", "--learning_rate", "1e30", "--optim", "sgd",
                 "--max_grad_norm", "0", "--logging_steps", "1")  # fmt: skip
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_batch_of_one_image_is_explained(tmp_path, refused):
    options = ["--max_train_samples", "65", "--per_device_train_batch_size", "32", "--num_train_epochs", "1"]
    with refused(
        "the last of the 65 images is a batch of its own, but BatchNorm needs two", "dataloader_drop_last: true"
    ):
        finetune(tmp_path / "run", *options)
    job = train(tmp_path / "dropped", *options, "--dataloader_drop_last", "true")
    evaluate(job)
    assert len(job.predicted["plain"]) == 360  # evaluations skip no image


def test_full_determinism_reaches_torch_and_changes_nothing_on_a_cpu(tmp_path, monkeypatch):
    for name in ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "ASCEND_LAUNCH_BLOCKING", "HCCL_DETERMINISTIC",
                 "FLASH_ATTENTION_DETERMINISTIC"):  # fmt: skip
        monkeypatch.setenv(name, "")  # restored afterwards
    plain = train(tmp_path / "plain", *QUICK, "--augment", "translate").folder
    try:
        run = train(tmp_path / "run", *QUICK, "--augment", "translate", "--full_determinism", "true").folder
        assert torch.are_deterministic_algorithms_enabled() and weights(run) == weights(plain)
    finally:
        torch.use_deterministic_algorithms(False)


def test_skipped_images_are_in_the_report(tmp_path):
    noise_images(tmp_path / "pets", {"cat": 20, "dog": 20}, size=(16, 16))
    broken = tmp_path / "pets" / "cat" / "broken.png"
    broken.write_bytes(b"not a picture")
    options = ["--data_dir", tmp_path / "pets", "--num_train_epochs", "1"]
    with pytest.raises(UserError, match="1 of .* images do not decode(.|\n)*broken.png(.|\n)*--on_bad_image skip"):
        finetune(tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()
    run = finetune(tmp_path / "run", *options, "--on_bad_image", "skip", "--data_engine", "tensor")
    assert "broken.png" in (run / "evaluation" / "report.md").read_text()
    skipped = json.loads((run / "run.json").read_text())["skipped_images"]
    listed = [(image["file"], image["xxh3_64"]) for images in skipped.values() for image in images]
    assert listed == [("cat/broken.png", xxhash.xxh3_64_hexdigest(b"not a picture"))]
    # The same seed and skipped images are the same run, with either engine.
    again = finetune(tmp_path / "again", *options, "--on_bad_image", "skip", "--data_engine", "stream")
    assert json.loads((again / "run.json").read_text())["skipped_images"] == skipped
    assert weights(again) == weights(run)


def test_malicious_labels_are_shown_as_text(tmp_path, capsys):
    names = ["<script>alert(1)</script>", "\x1b[2Jgone", "a | `b`", "[x](http://example.test)", "---", "{{ 7 * 7 }}"]
    for i in range(120):
        Image.fromarray(np.full((8, 8), 2 * i, np.uint8)).save(tmp_path / f"{i}.png")
    rows = [{"image": f"{i}.png", "label": names[i % 6]} for i in range(120)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = finetune(
        tmp_path / "run", "--data_dir", tmp_path / "list.jsonl", "--model", "mlp", "--num_train_epochs", "1"
    )
    assert "\x1b" not in capsys.readouterr().out.replace("\x1b[A", "")
    config = json.loads((run / "model" / "config.json").read_text())
    assert set(config["id2label"].values()) == set(names)
    card = ModelCard.load(run / "model" / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    for text in (card.text, (run / "evaluation" / "report.md").read_text()):
        assert "\\<script\\>" in text and "<script" not in text.replace("\\<script", "")
        assert "\\[x\\](http" in text and "a \\| \\`b\\`" in text
    page = (run / "evaluation" / "report.html").read_text()
    assert "<script" not in page and "{{ 7 * 7 }}" in page


def test_a_run_leaves_no_process_behind(tmp_path):
    before = set(multiprocessing.active_children())
    stages = '[{"train": "head"}, {"train": "all"}]'
    train(tmp_path / "run", *QUICK, "--data_engine", "stream", "--dataloader_num_workers", "1", "--stages", stages)
    assert set(multiprocessing.active_children()) <= before


def test_a_folder_that_another_run_writes_is_refused(tmp_path, monkeypatch, refused):
    """The same command in two terminals: the second would resume from the first one's checkpoints."""
    seal, tried = saving.seal, []

    def seal_and_start_again(aside, folder):
        seal(aside, folder)
        with refused("output_dir", tmp_path / "run", "is being written by another run"):
            finetune(tmp_path / "run", *QUICK)
        tried.append(folder)

    monkeypatch.setattr(saving, "seal", seal_and_start_again)
    run = finetune(tmp_path / "run", *QUICK)
    assert tried and (run / "run.json").is_file() and not list(run.glob(".*"))


def test_a_run_saves_and_ends_when_its_terminal_closes(tmp_path):
    """As when a connection breaks: writing to it is then an error."""
    pty = pytest.importorskip("pty")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, str(REPO / "recipes" / "finetune.py"), "--model", "mlp",
                                  "--num_train_epochs", "5000", "--output_dir", str(tmp_path / "run")])  # fmt: skip
    stage, shown = tmp_path / "run" / "stages" / "0-all", b""
    while not list(stage.glob("checkpoint-*")):
        shown += os.read(terminal, 1 << 16)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGHUP, shown.decode()
    newest = max(stage.glob("checkpoint-*"), key=step_of)
    assert defect_of(newest) is None and not list(stage.glob(".*")), "it ended between two steps, and saved"


def test_the_command_of_the_readme(tmp_path):
    """`accelerate launch recipes/finetune.py` as a user types it."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", str(REPO / "recipes" / "finetune.py")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*launch, *QUICK], cwd=tmp_path, env=environment, capture_output=True, text=True,
                          timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout and "runs/digits-convnet-scratch/model" in done.stdout
    assert (tmp_path / "runs/digits-convnet-scratch/run.json").is_file()


def test_a_typo_on_the_command_line_ends_the_script_without_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["finetune.py", "--epochs", "2", "--learning_rate", "fast"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPO / "recipes" / "finetune.py"), run_name="__main__")
    shown = capsys.readouterr().err
    assert ended.value.code == 2 and "2 errors in the configuration" in shown and "Traceback" not in shown
