"""What is recommended on the way to the Hub, and of an export."""

from pathlib import Path

from support import MLP, TINY, train


def pushed_adapters(folder: Path) -> list:
    base = train(folder / "base", *MLP, *TINY, "--num_train_epochs", 1).folder / "model"
    return ["--dataset", "digits", "--model", base, "--method", "lora", "--push_to_hub", "true",
            "--hub_model_id", "me/digits"]  # fmt: skip


def earlier_export(folder: Path) -> tuple[str, list]:
    train(folder / "run", *MLP, *TINY, "--num_train_epochs", 1)
    (folder / "exported").mkdir()
    (folder / "exported" / "export.json").write_text("{}")
    return "export", ["--model", folder / "run", "--format", "torch_export", "--output_dir", folder / "exported",
                      "--max_images", 20, "--repeats", 1]  # fmt: skip


CASES = {
    "export.checks:check_folder": earlier_export,
    "methods.checks:_check_weights#4": pushed_adapters,
}
