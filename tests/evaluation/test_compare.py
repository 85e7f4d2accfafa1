"""Comparing runs: which may be compared, what is claimed, and how missing runs are trained."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from support import REPO, finetune, load_recipe_script, random_predictions, store

from ftkit.tasks import SingleLabel

NAMES = ["cat", "dog", "owl"]


def compare(*arguments):
    load_recipe_script("compare").main([str(argument) for argument in arguments])


def compared(folder, *runs):
    """The `comparison.json` of these runs."""
    compare(*runs, "--output_dir", folder)
    return json.loads((folder / "comparison.json").read_text())


def run(folder, method, seed, predictions, **record):
    """A run's folder with what a comparison reads."""
    stages = [{"seconds": 10.0 + seed}]
    record = {"method": method, "seed": seed, "stages": stages, "parameters": {"total": 9, "trained": 5},
              "peak_memory_mb": {"ram": 100.0}} | record  # fmt: skip
    store(folder / "evaluation", predictions)
    shutil.move(folder / "evaluation" / "run.json", folder / "run.json")
    about = json.loads((folder / "run.json").read_text()) | record
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "config.yaml").write_text(yaml.safe_dump({"method": method, "seed": seed, "output_dir": str(folder)}))
    return folder


def test_groups_over_seeds(tmp_path):
    runs = [run(tmp_path / f"{method}-{seed}", method, seed, random_predictions(NAMES, 3000, seed=10 * skill + seed,
                skill=skill / 10)) for method, skill in (("full", 25), ("lora", 20)) for seed in range(3)]  # fmt: skip
    result = compared(tmp_path / "c", *runs)
    assert [(row["name"], len(row["runs"]), row["seeds"]) for row in result["rows"]] == [
        ("full", 3, [0, 1, 2]),
        ("lora", 3, [0, 1, 2]),
    ]
    accuracies = [json.loads((folder / "evaluation/metrics.json").read_text())["accuracy"] for folder in runs[:3]]
    assert result["rows"][0]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert result["rows"][0]["std"] == pytest.approx(np.std(accuracies, ddof=1))
    assert result["rows"][0]["seconds"] == 11 and result["rows"][0]["trained_parameters"] == 5
    (pair,) = result["pairs"]
    assert pair["verdict"] == "better" and pair["test"] == "images and seeds" and pair["p_corrected"] < 0.01
    page = (tmp_path / "c" / "comparison.html").read_text()
    assert "full is better than lora" in page and page.count('<svg role="img" aria-label="') == 1


def test_two_runs_that_hardly_differ_are_not_distinguishable(tmp_path, capsys):
    runs = [run(tmp_path / name, name, 1, random_predictions(NAMES, 500, seed=seed)) for seed, name in enumerate("ab")]
    (pair,) = compared(tmp_path / "c", *runs)["pairs"]
    assert pair["test"] == "McNemar" and pair["verdict"] == "not distinguishable"
    assert "not distinguishable" in (tmp_path / "c" / "comparison.md").read_text()
    assert "are not distinguishable" in capsys.readouterr().out


def test_labels_are_aligned_by_name_and_images_by_their_bytes(tmp_path):
    """The same predictions with classes and images in another order: no image differs."""
    first = random_predictions(NAMES, 400)
    order, classes = np.random.default_rng(1).permutation(400), np.array([2, 0, 1])
    renumbered = np.argsort(classes)[first.labels]
    second = replace(
        first, index=first.index[order], hashes=first.hashes[order], labels=renumbered[order],
        logits=first.logits[order][:, classes], task=SingleLabel([NAMES[i] for i in classes]),
    )  # fmt: skip
    (pair,) = compared(tmp_path / "c", run(tmp_path / "a", "a", 1, first), run(tmp_path / "b", "b", 1, second))[
        "pairs"
    ]
    assert pair["difference"] == 0 and pair["p"] == 1


def test_images_that_runs_disagree_on_are_named(tmp_path):
    """By the name of their file, those on which each run of one group beats each of the other."""
    about = {"source": [f"photos/<b>{i}</b>.png" for i in range(400)]}
    found = [replace(random_predictions(NAMES, 400, seed=seed, skill=1), about=about) for seed in range(4)]
    runs = [run(tmp_path / f"{i}", "full" if i < 2 else "lora", i, found[i]) for i in range(4)]
    result = compared(tmp_path / "c", *runs)
    (pair,), best = result["pairs"], result["rows"][0]["name"]
    hits = np.array([predictions.hits for predictions in (found if best == "full" else found[2:] + found[:2])])
    for key, (ours, others) in {"only_first": (hits[:2], hits[2:]), "only_second": (hits[2:], hits[:2])}.items():
        expected = [about["source"][i] for i in np.flatnonzero(ours.all(0) & ~others.any(0))]
        assert pair[key] == {"n": len(expected), "examples": expected[:20]} and len(expected) > 10
    page, text = ((tmp_path / "c" / f"comparison.{kind}").read_text() for kind in ("html", "md"))
    assert pair["only_first"]["examples"][0].replace("<", "&lt;").replace(">", "&gt;").replace("/", "/<wbr>") in page
    assert f" on {pair['only_first']['n']} images: photos/\\<b\\>" in text


def refuse_other_images(first):
    return replace(first, hashes=first.hashes + np.uint64(3))


def refuse_fewer_images(first):
    return replace(first, **{key: getattr(first, key)[:50] for key in ("index", "hashes", "labels", "logits")})


def refuse_other_labels(first):
    return replace(first, labels=(first.labels + (first.index < 7)) % 3)


def refuse_other_names(first):
    return replace(first, task=SingleLabel(["cat", "dog", "eagle"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (refuse_other_images, ["test images differ", "100 and 100, 0 of them in both"]),
        (refuse_fewer_images, ["test images differ", "100 and 50, 50 of them in both"]),
        (refuse_other_labels, ["7 of the 100 test images have another label"]),
        (refuse_other_names, ["the classes differ", "only in the first: owl", "only in the second: eagle"]),
    ],
)
def test_runs_with_other_test_data_are_refused(tmp_path, refused, change, words):
    first = random_predictions(NAMES, 100)
    runs = run(tmp_path / "a", "a", 1, first), run(tmp_path / "b", "b", 1, change(first))
    with refused("cannot be compared", *words):
        compare(*runs, "--output_dir", tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["give either the folders of runs, or --recipe"]),
        (["a", "--recipe", "x.yaml"], ["give either"]),
        (["a", "--seed", "3"], ["--seed", "did you mean 'seeds'"]),
        (["--recipe", "x.yaml", "--seeds", "many"], ["--seeds many"]),
        (["--recipe", "x.yaml", "--seeds", "0"], ["--seeds 0"]),
        (["--recipe", "x.yaml", "--methods", "lora,lora"], ["lora twice"]),
        (["--recipe", "no/such.yaml"], ["no/such.yaml", "no such file"]),
        (["no/such/run"], ["no/such/run", "finished"]),
        (["--recipe", REPO / "recipes/digits/mlp.yaml", "--methods", "ful,scratch", "--learning_rat", "1"],
         ["ful: ", "scratch: ", "did you mean 'full'", "learning_rat"]),
    ],
    ids=lambda value: " ".join(map(str, value))[-40:],
)  # fmt: skip
def test_mistakes_are_one_message(tmp_path, monkeypatch, refused, arguments, words):
    monkeypatch.chdir(tmp_path)
    with refused(*words):
        compare(*arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("again", ["run/", "./run", "link", "../{}/run"])
def test_a_folder_counts_once(tmp_path, monkeypatch, refused, again):
    """A run that counts twice would halve the spread over seeds, and a lucky run would win."""
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "run", "full", 0, random_predictions(NAMES, 50))
    run(tmp_path / "other", "full", 1, random_predictions(NAMES, 50, seed=1))
    (tmp_path / "link").symlink_to("run")
    with refused("run and ", "are the same folder", "once"):
        compare("run", "other", again.format(tmp_path.name), "--output_dir", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_recipe_counts_once(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(REPO)
    with refused("recipes/digits/mlp.yaml", "same folder", "once"):
        compare("--recipe", "recipes/digits/mlp.yaml", "./recipes/digits/mlp.yaml", "--output_dir", tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.fixture(scope="module")
def tuning_recipe(tmp_path_factory):
    """A recipe that fine-tunes a small network trained on five digits to the other five."""
    folder = tmp_path_factory.mktemp("recipe")
    base = finetune(folder / "base", "--model", "mlp", "--model_args", '{"hidden_sizes": [6]}',
                    "--classes", 0, 1, 2, 3, 4, "--num_train_epochs", 5)  # fmt: skip
    path = folder / "tune.yaml"
    options = {"dataset": "digits", "classes": ["5", "6", "7", "8", "9"], "model": str(base / "model"),
               "method": "full", "num_train_epochs": 3, "seed": 5}  # fmt: skip
    path.write_text(yaml.safe_dump(options))
    return path


@pytest.mark.slow
def test_the_methods_of_a_recipe_over_three_seeds(tmp_path, tuning_recipe, capsys, refused):
    arguments = [
        "--recipe",
        tuning_recipe,
        "--methods",
        "linear_probe,full,lora",
        "--seeds",
        3,
        "--output_dir",
        tmp_path,
    ]
    # What a broken run leaves: it has started, and cannot resume.
    broken = tmp_path / "lora" / "seed-6"
    broken.mkdir(parents=True)
    (broken / "evaluation").write_text("in the way of a folder")
    with refused("1 of 9 runs FAILED"):
        compare(*arguments)
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "comparison.json").read_text())
    runs = {row["name"]: len(row["runs"]) for row in result["rows"]}
    assert runs == {"linear_probe": 3, "full": 3, "lora": 2} and "lora, seed 6: FAILED" in shown
    failures = {row["name"]: len(row["failures"]) for row in result["rows"]}
    assert failures == {"linear_probe": 0, "full": 0, "lora": 1}
    assert "FAILED" in (tmp_path / "comparison.html").read_text()
    probe = next(row for row in result["rows"] if row["name"] == "linear_probe")
    assert probe["seeds"] == [5, 6, 7] and probe["trained_parameters"] == 5 * 6 + 5
    assert [(pair["first"], pair["second"]) for pair in result["pairs"]] == [("A", "B"), ("A", "C"), ("B", "C")]

    shutil.rmtree(broken)
    models = {path: path.stat().st_mtime for path in tmp_path.rglob("model/model.safetensors")}
    compare(*arguments)  # trains only the missing run
    assert {path: path.stat().st_mtime for path in models} == models
    row = next(row for row in json.loads((tmp_path / "comparison.json").read_text())["rows"] if row["name"] == "lora")
    assert row["seeds"] == [5, 6, 7] and row["failures"] == []

    with refused("linear_probe/seed-5 holds a run of another configuration", "learning_rate", "another --output_dir"):
        compare(*arguments, "--learning_rate", 0.5)
