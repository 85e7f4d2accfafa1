"""Full, read-only or missing disks, before and during a run: one message, and nothing saved is lost."""

import errno
import os
import shutil
import subprocess
import sys

import pytest
from disk_harness import can_mount
from support import FOUR_EPOCHS, MLP, REPO, TINY, finetune, noise_images, train, weights
from torch.utils.data import DataLoader

from ftkit.errors import UserError, user_errors
from ftkit.training.checkpointing import saving


@pytest.fixture
def disk(tmp_path):
    """A folder, and a function that makes it and its subfolders writable or read-only, for root too."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid():

        def chmod(writable):
            for path in sorted([folder, *folder.rglob("*")], reverse=not writable):
                if path.is_dir():
                    path.chmod(0o700 if writable else 0o500)

        yield folder, chmod
        chmod(True)
        return
    if not can_mount():
        pytest.skip("root can write everywhere, and no file system can be mounted here")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=True)

    def cover(writable):
        """Bind the folder onto itself, read-only: a file open for writing prevents remounting the disk."""
        steps = ["umount"] if writable else [f"mount --bind {folder}", "mount -o remount,bind,ro"]
        for step in steps:
            subprocess.run([*step.split(), folder], check=True)

    yield folder, cover
    while os.path.ismount(folder):
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def after_the_first_checkpoint(monkeypatch):
    """`after_the_first_checkpoint(act)` calls `act` when a run has written its first checkpoint."""

    def plan(act):
        seal = saving.seal

        def then(aside, folder):
            seal(aside, folder)
            monkeypatch.setattr(saving, "seal", seal)
            act()

        monkeypatch.setattr(saving, "seal", then)

    return plan


@pytest.fixture
def photo_files(tmp_path):
    """Image files of two classes."""
    return noise_images(tmp_path / "photos", {"a": 40, "b": 40})


@pytest.mark.parametrize("last", ["ftkit.evaluation.report.write_pages", "ftkit.hub.card.render"])
def test_a_run_counts_as_finished_only_when_everything_is_written(whole, tmp_path, monkeypatch, refused, last):
    with monkeypatch.context() as context, refused("output_dir", tmp_path / "run", "No space left on device"):
        context.setattr(last, lambda *args: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        finetune(tmp_path / "run", *FOUR_EPOCHS)
    assert not (tmp_path / "run" / "run.json").exists()
    finetune(tmp_path / "run", *FOUR_EPOCHS)
    assert weights(tmp_path / "run") == weights(whole) and (tmp_path / "run" / "model" / "README.md").is_file()


def test_a_file_of_a_finished_run_is_replaced_completely_or_not_at_all(whole, tmp_path, monkeypatch):
    from ftkit.evaluation import predictions

    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def full(table, path):
        path.write_bytes(b"PAR1")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(predictions.pq, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        predictions.write_predictions(run / "evaluation", predictions.read_predictions(run / "evaluation"))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_not_writable(disk, tmp_path, refused):
    folder, set_writable = disk
    set_writable(False)
    with refused("output_dir", folder / "runs" / "one", "cannot be written"):
        train(folder / "runs" / "one", *FOUR_EPOCHS)
    with refused("cache_dir", folder, "cannot be written", "or give another cache_dir"):
        train(tmp_path / "run", *FOUR_EPOCHS, "--cache_dir", folder)
    assert not (tmp_path / "run").exists()


def test_a_disk_that_becomes_read_only(whole, disk, after_the_first_checkpoint, refused, logged):
    folder, set_writable = disk
    after_the_first_checkpoint(lambda: set_writable(False))
    with refused("output_dir", folder / "run", "be written"):
        train(folder / "run", *FOUR_EPOCHS)
    assert logged().count("could not be written, training continues without it") == 3
    set_writable(True)
    train(folder / "run", *FOUR_EPOCHS)
    assert "resumes from" in logged() and weights(folder / "run") == weights(whole)


def test_a_cache_that_is_deleted_costs_nothing(tmp_path, after_the_first_checkpoint):
    stages = '[{"train": "head", "num_train_epochs": 2}, {"train": "head"}, {"train": "all", "num_train_epochs": 1}]'
    options = [*FOUR_EPOCHS, "--stages", stages, "--cache_dir"]
    undisturbed = train(tmp_path / "undisturbed", *options, tmp_path / "one").folder
    after_the_first_checkpoint(lambda: shutil.rmtree(tmp_path / "two"))
    assert weights(train(tmp_path / "run", *options, tmp_path / "two").folder) == weights(undisturbed)


@pytest.mark.parametrize(
    "engine",
    [
        ["--data_engine", "tensor"],
        ["--data_engine", "stream", "--dataloader_num_workers", 0],
        ["--data_engine", "stream", "--dataloader_num_workers", 1],
        ["--image_transform", '{"hflip": 0.5}', "--dataloader_num_workers", 0],
    ],
    ids=lambda engine: " ".join(map(str, engine[1:])),
)
def test_data_that_disappears_during_a_run(photo_files, tmp_path, after_the_first_checkpoint, refused, engine):
    """The tensor engine reads it again only when the evaluation stores some images."""
    data = ["--data_dir", photo_files, "--cache_dir", tmp_path / "cache", *engine]
    after_the_first_checkpoint(lambda: photo_files.rename(tmp_path / "away"))
    with refused(photo_files, "cannot be read any more", "restore it"):
        finetune(tmp_path / "run", *TINY, *MLP, *data)
    (tmp_path / "away").rename(photo_files)
    assert weights(train(tmp_path / "run", *TINY, *MLP, *data).folder)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "a file: No space left on device: make room there"),
        (PermissionError(errno.EACCES, "Permission denied", "/data"), "/data: Permission denied: allow access"),
        (OSError(errno.EROFS, "Read-only", "/from", None, "/to"), "/to: Read-only file system: allow access"),
    ],
)
def test_any_disk_error_is_one_message(capsys, error, message):
    with pytest.raises(SystemExit) as ended, user_errors():
        raise error
    assert ended.value.code == 2 and capsys.readouterr().err == f"\nerror: {message}\n"


class Refusing:
    """A dataset without a first row."""

    def __getitem__(self, row):
        raise UserError("one\nmessage")


def test_a_user_error_in_a_worker_keeps_its_message():
    with pytest.raises(UserError) as raised:
        next(iter(DataLoader(Refusing(), sampler=[0], num_workers=1)))
    assert str(raised.value) == "one\nmessage"


@pytest.mark.slow
def test_a_run_survives_a_full_disk_at_every_stage():
    """A few disk sizes; `python tests/disk_harness.py --long` tries all."""
    done = subprocess.run([sys.executable, REPO / "tests" / "disk_harness.py"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(REPO / "tests")}, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "sizes of the disk survived" in done.stdout
