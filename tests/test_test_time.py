"""Test-time augmentation: a second evaluation beside the plain one."""

import json

import numpy as np
import pyarrow.parquet as pq
from support import finetune, load_recipe_script


def probabilities(folder):
    return np.stack(pq.read_table(folder / "predictions.parquet")["probabilities"].to_numpy())


def test_flip_averaging_stands_beside_the_plain_evaluation(digits_run, tmp_path, capsys):
    options = ("--config", digits_run / "config.yaml", "--test_time_augmentation", "flip")
    run = finetune(tmp_path / "run", *options)
    shown = capsys.readouterr().out
    plain, averaged = (probabilities(run / place) for place in ("evaluation", "evaluation/flip"))
    assert np.array_equal(plain, probabilities(digits_run / "evaluation"))
    assert not np.allclose(plain, averaged, atol=0.01)
    labels = pq.read_table(run / "evaluation" / "predictions.parquet")["label"].to_numpy()
    accuracy = float((averaged.argmax(1) == labels).mean())
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert metrics["test_time_accuracy"] == {"flip": accuracy}
    assert json.loads((run / "run.json").read_text())["test"]["test_time_accuracy"] == {"flip": accuracy}
    assert f"{accuracy:.4f} with test_time_augmentation: flip" in shown
    assert f"accuracy {accuracy:.4f}" in (run / "evaluation" / "report.md").read_text()

    load_recipe_script("evaluate").main(["--model", str(run), "--output_dir", str(tmp_path / "again")])
    np.testing.assert_allclose(probabilities(tmp_path / "again" / "flip"), averaged, atol=1e-5)
