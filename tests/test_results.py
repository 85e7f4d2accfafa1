"""The numbers of README, guides and recipes are data: recipes/results.py, its files, and the texts that show them."""

import json
import re

import pytest
import yaml
from support import REPO, load_recipe_script

results = load_recipe_script("results")

from benchmarks.record import TESTS, definition, other_versions, read_results, stale, write_result  # noqa: E402
from benchmarks.tables import TABLES, accuracy, seconds  # noqa: E402
from benchmarks.texts import HEAD, rendered, texts  # noqa: E402

RESULTS = read_results()
RECIPE = "dataset: digits\nmodel: mlp\nmethod: scratch\nnum_train_epochs: 1\n"


def number(*values, **more):
    """A number of a result, as if measured."""
    mean = sum(values) / len(values)
    return {"values": [*values], "mean": mean, "std": 0.01 if len(values) > 1 else None, "n": len(values), **more}


@pytest.fixture
def root(tmp_path):
    """A repository with one recipe, one guide, and the real scripts."""
    (tmp_path / "recipes" / "digits").mkdir(parents=True)
    (tmp_path / "recipes" / "digits" / "tiny.yaml").write_text(f"# A tiny one.\n#\n{HEAD}\n#\n# The end.\n{RECIPE}")
    (tmp_path / "recipes" / "guides").mkdir()
    (tmp_path / "recipes" / "finetune.py").symlink_to(REPO / "recipes" / "finetune.py")
    return tmp_path


@pytest.fixture
def record(root):
    """A result of the recipe in `root`, as if measured."""
    new = {
        "kind": "recipe",
        "command": "accelerate launch recipes/finetune.py --config recipes/digits/tiny.yaml",
        "recipe": "recipes/digits/tiny.yaml",
        "seeds": [1, 2],
        "what": "tiny",
        "numbers": {"accuracy": number(0.5, 0.75), "test_images": number(360, 360), "training_seconds": number(7, 8)},
        "environment": {"cpu": "a cpu", "threads": 1, "precision": "fp32", "commit": "0123456789", "versions": {}},
        "date": "2030-01-01",
    }
    return new | {"definition": definition("digits/tiny", new, root)}


def store(root, name, record):
    write_result(root / "recipes" / "results" / f"{name}.json", record)


# --- the repository's own results and texts


@pytest.mark.parametrize("path", texts(), ids=lambda path: str(path.relative_to(REPO)))
def test_a_text_shows_its_data(path):
    assert path.read_text(encoding="utf-8") == rendered(path, RESULTS), "run python recipes/results.py --write"


def test_every_recipe_has_a_result_and_every_result_a_recipe():
    recipes = {path.relative_to(REPO).as_posix() for path in (REPO / "recipes").rglob("*.yaml")}
    assert {record["recipe"] for record in RESULTS.values() if record["kind"] == "recipe"} == recipes


@pytest.mark.parametrize("path", sorted((REPO / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_shows_its_results_and_no_other_numbers(path):
    head, _, rest = path.read_text(encoding="utf-8").partition(f"{HEAD}\n")
    own = re.match(r"(#   .*\n)+", rest)[0]
    comments = [line for line in (head + rest[len(own) :]).splitlines() if line.startswith("#")]
    assert not re.search(r"accuracy [\d.]|0\.\d{4} ±", "\n".join(comments)), "numbers come from recipes/results/"


def test_every_table_and_every_result_is_shown():
    markers = "\n".join(path.read_text(encoding="utf-8") for path in texts() if path.suffix == ".md")
    assert set(TABLES) <= set(re.findall(r"<!-- results: (\w+) -->", markers))
    shown = markers + "\n".join(path.read_text(encoding="utf-8") for path in texts())
    for name, record in RESULTS.items():
        if record["kind"] == "recipe":
            assert (record["command"] or record["what"]) in shown, name


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_complete(name):
    record = RESULTS[name]
    assert {"kind", "command", "what", "numbers", "environment", "date"} <= record.keys()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
    measured_here = "since" not in record
    assert re.fullmatch(r"[0-9a-f]{7,40}", record["environment"]["commit"] if measured_here else record["since"])
    assert not measured_here or record["environment"]["versions"]
    if record["kind"] in TESTS:
        return
    assert record["definition"]
    for found in record["numbers"].values():
        assert (found["values"] is None) != measured_here
        assert measured_here is False or len(found["values"]) == found["n"]
        assert {"mean", "median", "range"} & found.keys()
    if record["kind"] == "recipe" and measured_here:
        assert record["numbers"]["accuracy"]["n"] == len(record["seeds"])


def test_no_measured_result_is_older_than_its_recipe():
    changed = [name for name, record in RESULTS.items() if "since" not in record and "stale" not in record
               and stale(name, record)]  # fmt: skip
    assert changed == [], "run python recipes/results.py --measure, or give the result a reason to be `stale`"


# --- the mechanism


def test_a_result_is_written_into_the_texts(root, record, capsys):
    store(root, "digits/tiny", record)
    store(root, "digits/tiny-dropout", record | {"command": f"{record['command']} --dropout 0.5"})
    store(root, "digits/tiny-unmeasured", {key: record[key] for key in ("kind", "command", "recipe", "seeds", "what")})
    guide = root / "recipes" / "guides" / "models.md"
    guide.write_text(
        "# Models\n\n<!-- results: recipes -->\nold\n<!-- end -->\n\n"
        "It reaches <!-- results: digits/tiny accuracy -->?<!-- end --> in\n"
        "about <!-- results: digits/tiny training_seconds --><!-- end -->, see `<!-- results: … -->`.\n"
    )
    results.main(["--write"], root)
    head = (root / "recipes" / "digits" / "tiny.yaml").read_text()
    line = "test accuracy 0.6250 ± 0.0100 (2 seeds, 1 to 2; 360 images); 7.5 s of training; a cpu, 1 thread, fp32;"
    assert head == (
        f"# A tiny one.\n#\n{HEAD}\n#   {record['command']}\n#     {line}\n#     2030-01-01 at 0123456\n"
        f"#   {record['command']} --dropout 0.5\n#     {line}\n#     2030-01-01 at 0123456\n#\n# The end.\n{RECIPE}"
    )
    assert guide.read_text() == (
        "# Models\n\n<!-- results: recipes -->\n"
        "| recipe | seeds | test accuracy | training |\n| --- | ---: | ---: | ---: |\n"
        "| [`digits/tiny.yaml`](../digits/tiny.yaml), tiny | 2 | 0.6250 ± 0.0100 | 7.5 s |\n\n"
        "Measured 2030-01-01 (0123456).\n<!-- end -->\n\n"
        "It reaches <!-- results: digits/tiny accuracy -->0.6250 ± 0.0100<!-- end --> in\n"
        "about <!-- results: digits/tiny training_seconds -->7.5 s<!-- end -->, see `<!-- results: … -->`.\n"
    )
    assert len(re.findall("written: ", capsys.readouterr().out)) == 2
    results.main(["--write"], root)
    assert "written" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ("a <!-- results: recipse --><!-- end -->", ["guides/x.md:1", "no table or result 'recipse'", "'recipes'"]),
        (
            "a <!-- results: digits/tiny accurasy --><!-- end -->",
            ["guides/x.md:1", "no number 'accurasy'"],
        ),
        ("a\n<!-- results: digits/tiny accuracy --><!-- end -->", ["guides/x.md:2", "start it with a word"]),
    ],
)
def test_a_marker_for_an_unknown_result_is_refused(root, record, refused, marker, words):
    store(root, "digits/tiny", record)
    (root / "recipes" / "guides" / "x.md").write_text(marker)
    with refused(*words):
        results.main(["--write"], root)


def test_a_recipe_without_the_line_for_its_results_is_refused(root, record, refused):
    store(root, "digits/tiny", record)
    (root / record["recipe"]).write_text(RECIPE)
    with refused("recipes/digits/tiny.yaml", HEAD):
        results.main(["--write"], root)


def test_a_result_is_stale_when_what_it_depends_on_changes(root, record):
    recipe = root / record["recipe"]
    assert stale("digits/tiny", record, root) is None
    recipe.write_text(recipe.read_text().replace("# The end.", "# Other words."))
    assert stale("digits/tiny", record, root) is None
    for change in ({"seeds": [1, 2, 3]}, {"command": f"{record['command']} --dropout 0.5"}):
        assert "changed" in stale("digits/tiny", record | change, root)
    assert "0123456 or" not in stale("digits/tiny", record | {"since": "9876543210"}, root)
    assert "9876543" in stale("digits/tiny", record | {"since": "9876543210"}, root)
    assert stale("digits/tiny", record | {"stale": "an idle machine is needed"}, root) == "an idle machine is needed"
    assert stale("digits/tiny", record | {"numbers": {}}, root) == "never measured"
    recipe.write_text(recipe.read_text().replace("num_train_epochs: 1", "num_train_epochs: 2"))
    assert "changed" in stale("digits/tiny", record, root)


def test_a_result_depends_on_the_recipes_before_it(root, record):
    base = root / "recipes" / "digits" / "base.yaml"
    base.write_text(RECIPE)
    record["after"] = {"runs/base": "accelerate launch recipes/finetune.py --config recipes/digits/base.yaml"}
    record["definition"] = definition("digits/tiny", record, root)
    assert stale("digits/tiny", record, root) is None
    base.write_text(RECIPE + "dropout: 0.5\n")
    assert "changed" in stale("digits/tiny", record, root)


def test_other_versions_are_shown_and_do_not_make_a_result_stale(root, record, capsys):
    record["environment"]["versions"] = {"torch": "1.0", "numpy": "1.0"}
    assert other_versions(record).startswith("torch 1.0, now ") and "numpy" not in other_versions(record)
    store(root, "digits/tiny", record)
    (root / "recipes" / "digits" / "new.yaml").write_text(RECIPE)
    results.main(["--list"], root)
    new, tiny = capsys.readouterr().out.splitlines()
    assert new.split() == ["digits/new", "missing"]
    assert "measured 2030-01-01, 0123456 (torch 1.0, now " in tiny


@pytest.mark.parametrize(
    ("found", "shown"),
    [(number(0.5), "0.5000"), (number(0.5, 0.5), "0.5000 ± 0.0100")],
)
def test_an_accuracy_over_seeds_has_a_spread(found, shown):
    assert accuracy(found) == shown


@pytest.mark.parametrize(
    ("found", "shown"),
    [({"mean": 0.512}, "0.51 s"), ({"median": 4.0}, "4 s"), ({"mean": 1226.6}, "1,227 s"),
     ({"range": [168, 242]}, "168 to 242 s")],
)  # fmt: skip
def test_seconds_have_two_digits_or_more(found, shown):
    assert seconds(found) == shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["nothing to do", "--list"]),
        (["--measure", "digits/tinny"], ["digits/tinny", "no such result or recipe", "'digits/tiny'"]),
        (["--measure", "digits/by_hand"], ["digits/by_hand", "cannot be measured here", "by other code"]),
    ],
)
def test_an_impossible_command_line_is_refused(root, record, refused, arguments, words):
    store(root, "digits/by_hand", record | {"command": None, "remark": "measured by other code"})
    with refused(*words):
        results.main(arguments, root)


STUB = """
import json, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
if given.get("--seed") == "2" and pathlib.Path("full-disk").exists():
    sys.exit("no space left")
folder = pathlib.Path(given["--output_dir"])
for place in ("evaluation", "stages/0-head"):
    (folder / place).mkdir(parents=True)
accuracy = int(given.get("--seed", 42)) / 100
(folder / "run.json").write_text(json.dumps({
    "test": {"accuracy": accuracy, "n": 360}, "parameters": {"trained": 70}, "precision": "fp32", "threads": 1,
    "stages": [{"seconds": 1.5}, {"seconds": 2.5}], "versions": {"torch": "2"}, "commit": "abc-dirty",
}))
(folder / "evaluation/metrics.json").write_text(json.dumps({"test_time_accuracy": {"flip": accuracy + 0.5}}))
history = [{"eval_accuracy": 0.1}, {"eval_accuracy": 0.2}, {"loss": 1}]
(folder / "stages/0-head/trainer_state.json").write_text(json.dumps({"log_history": history}))
with open("runs.txt", "a") as file:
    print(folder, file=file)
"""


@pytest.fixture
def stub(root):
    """A finetune.py that writes the files of a run without training."""
    (root / "recipes" / "finetune.py").unlink()
    (root / "recipes" / "finetune.py").write_text(STUB)
    return lambda: [line.removeprefix(f"{root}/") for line in (root / "runs.txt").read_text().splitlines()]


def test_a_recipe_is_measured_over_its_seeds(root, record, stub, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (1.0, 1.0, 1.0))
    command = "python recipes/finetune.py --config recipes/digits/tiny.yaml --output_dir runs/for-users"
    after = {"runs/base": "python recipes/finetune.py --config recipes/digits/tiny.yaml --output_dir runs/base"}
    store(root, "digits/tiny", record | {"command": command, "after": after, "since": "9876543", "stale": "why"})
    results.main(["--measure", "digits/tiny"], root)
    assert stub() == ["runs/base", "runs/results/digits/tiny/seed-1", "runs/results/digits/tiny/seed-2"]
    found = json.loads((root / "recipes/results/digits/tiny.json").read_text())
    assert {name: each["values"] for name, each in found["numbers"].items()} == {
        "accuracy": [0.01, 0.02], "accuracy_flip": [0.51, 0.52], "first_stage": [0.2, 0.2],
        "training_seconds": [4.0, 4.0], "trained_parameters": [70, 70], "test_images": [360, 360],
    }  # fmt: skip
    assert found["numbers"]["accuracy"]["mean"] == pytest.approx(0.015)
    assert found["numbers"]["accuracy"]["std"] == pytest.approx(0.00707, abs=1e-5)
    assert (found["command"], found["after"], found["seeds"]) == (command, after, [1, 2])
    assert not {"since", "stale"} & found.keys() and stale("digits/tiny", found, root) is None
    assert found["environment"]["commit"] != "abc-dirty"  # that of the checkout before anything was written
    assert not (root / "runs/results/digits/tiny").exists() and (root / "runs/base/run.json").exists()


def test_seconds_beside_other_work_are_left_out(root, record, stub, monkeypatch, capsys):
    monkeypatch.setattr("os.getloadavg", lambda: (1000.0, 1.0, 1.0))
    store(root, "digits/tiny", record | {"command": "python recipes/finetune.py --config recipes/digits/tiny.yaml"})
    (root / "recipes/README.md").write_text("<!-- results: recipes -->\n<!-- end -->\n")
    results.main(["--measure", "digits/tiny", "--write"], root)
    found = json.loads((root / "recipes/results/digits/tiny.json").read_text())
    assert "training_seconds" not in found["numbers"] and "accuracy" in found["numbers"]
    assert "load 1000.0" in capsys.readouterr().out
    *_, row = (line for line in (root / "recipes/README.md").read_text().splitlines() if line.startswith("|"))
    assert row.endswith(" | 2 | 0.0150 ± 0.0071; 0.5150 ± 0.0071 averaged over mirror images | |")


def test_missing_and_stale_results_are_measured(root, record, stub):
    store(root, "digits/tiny", record)
    store(root, "digits/tiny-variant", {
        "kind": "recipe", "command": "python recipes/finetune.py --config recipes/digits/tiny.yaml",
        "recipe": "recipes/digits/tiny.yaml", "seeds": [7], "what": "", "numbers": {},
    })  # fmt: skip
    store(root, "digits/by_hand", record | {"command": None, "since": "9876543"})
    store(root, "gpu", {"kind": "gpu", "command": "pytest", "numbers": {}, "environment": {"versions": {}}})
    results.main(["--measure"], root)
    assert stub() == ["runs/results/digits/tiny-variant/seed-7"]


def test_a_failed_measurement_is_shown_and_resumes(root, record, stub, refused):
    store(root, "digits/tiny", record | {"command": "python recipes/finetune.py --config recipes/digits/tiny.yaml"})
    (root / "full-disk").touch()
    with refused("--config recipes/digits/tiny.yaml", "exit code 1", "no space left", "seed-2.log"):
        results.main(["--measure", "digits/tiny"], root)
    (root / "full-disk").unlink()
    results.main(["--measure", "digits/tiny"], root)
    assert stub() == ["runs/results/digits/tiny/seed-1", "runs/results/digits/tiny/seed-2"]


@pytest.mark.slow
def test_a_new_recipe_is_measured(root, capsys):
    """With the real script."""
    results.main(["--measure", "digits/tiny", "--seeds", "3", "--write"], root)
    found = json.loads((root / "recipes" / "results" / "digits" / "tiny.json").read_text())
    assert found["numbers"]["test_images"] == {"values": [360], "mean": 360, "std": None, "n": 1}
    (accuracy_of_seed,) = found["numbers"]["accuracy"]["values"]
    assert 0 < accuracy_of_seed < 1
    assert found["environment"]["threads"] >= 1 and found["environment"]["versions"]["torch"]
    assert stale("digits/tiny", found, root) is None
    assert (
        f"test accuracy {accuracy_of_seed:.4f} (1 seed, 3; 360 images)"
        in (root / "recipes" / "digits" / "tiny.yaml").read_text()
    )
    assert yaml.safe_load((root / "recipes" / "digits" / "tiny.yaml").read_text()) == yaml.safe_load(RECIPE)
    assert not (root / "runs" / "results" / "digits" / "tiny").exists()
    results.main(["--list"], root)
    assert "digits/tiny" in capsys.readouterr().out.splitlines()[-1]
