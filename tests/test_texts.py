"""Everything that README and guides name exists: links, pictures, paths, options, keys and values.

test_repository.py runs the command lines through the scripts' own parsers.
"""

import contextlib
import io
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from support import REPO, TEXTS, load_recipe_script

from ftkit.owners import parse_config

README, GUIDES = REPO / "README.md", REPO / "recipes" / "guides"
SCRIPTS = {path.stem for path in (REPO / "recipes").glob("*.py")}
OTHER_PROGRAMS = {"--requeue": "sbatch", "--quiet": "accelerate launch"}
KEYS_OF_A_STAGE = {"name", "train", "last"}
# The head of a table's first column, and the command line that each name in that column completes.
COLUMNS = {
    "`--method`": ["--dataset", "digits", "--model", "timm/resnet18", "--method"],
    "`data_engine`": ["--dataset", "digits", "--data_engine"],
    "`augment`": ["--dataset", "digits", "--augment"],
}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

each_text = pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(REPO)))


def spans(text: str) -> list[str]:
    """The code between single backticks, line breaks as spaces."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", BLOCK.sub("", text))]


def code_lines(text: str) -> list[str]:
    """The lines of the code blocks; a line that ends with a backslash continues on the next."""
    return [line for _, code in BLOCK.findall(text) for line in code.replace("\\\n", " ").splitlines()]


def anchors(text: str) -> set[str]:
    """GitHub's anchors of the headings."""
    titles = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def sections(text: str) -> list[str]:
    """The text cut at its headings."""
    text = BLOCK.sub(lambda block: block[0].replace("\n#", "\n #"), text)  # comments in code are no headings
    return re.split(r"^(?=#+ )", text, flags=re.MULTILINE)


def tables(text: str) -> list[tuple[str, list[str]]]:
    """The head of each table's first column, and the code spans in that column."""
    found = re.findall(r"^\| *([^|\n]*?) *\|.*\n\|[ :|-]+\n((?:\|.*\n?)+)", text, re.MULTILINE)
    return [(head, [span for row in rows.splitlines() for span in spans(row.split("|")[1])]) for head, rows in found]


@cache
def options_of(script: str) -> frozenset[str]:
    """The options in the docstring and the `--help` of `recipes/<script>.py`."""
    module, shown = load_recipe_script(script), io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        module.main(["--help"])
    return frozenset(re.findall(r"--[a-z]\w*", module.__doc__ + shown.getvalue()))


@cache
def known_keys() -> frozenset[str]:
    """The keys of a recipe, of a stage and of a launch configuration."""
    launch = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (REPO / "accelerate_configs").glob("*")]
    recipe = {option.removeprefix("--") for option in options_of("finetune")}
    return frozenset(recipe.union(KEYS_OF_A_STAGE, *launch))


def broken_links(path: Path, text: str) -> list[str]:
    """The broken relative links, anchors and pictures."""
    text, broken = BLOCK.sub("", text), []
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        if not link.startswith("https://") and (
            not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8")))
        ):
            broken.append(link)
    return broken


def missing_paths(path: Path, text: str) -> list[str]:
    """The paths of the repository in code that do not exist; `<name>` stands for any name."""
    code = "\n".join([*spans(text), *code_lines(text)])
    named = re.findall(r"(?<![\w/.$-])(?:recipes|ftkit|accelerate_configs|tests|\.ci)/[\w./*<>-]*", code)
    return [name for name in named if not list(REPO.glob(re.sub(r"<\w+>", "*", name).rstrip("./")))]


def unknown_options(path: Path, text: str) -> list[str]:
    """The options in code that finetune.py and the scripts named in their section do not have."""
    unknown = []
    for section in sections(text):
        scripts = {"finetune"} | SCRIPTS.intersection(re.findall(r"\b(\w+)\.py\b", section))
        known = OTHER_PROGRAMS.keys() | frozenset.union(*map(options_of, scripts))
        for script in re.findall(r"tests/\w+\.py", section):
            known |= set(re.findall(r"--[a-z]\w*", (REPO / script).read_text(encoding="utf-8")))
        for code in spans(section) + code_lines(section):
            if not re.search(r"recipes/\w+\.py|^ *#|^(pip|ruff|pytest) ", code):
                unknown += set(re.findall(r"(?<![\w-])--[a-z]\w*", code)) - known
    return unknown


def unknown_keys(path: Path, text: str) -> list[str]:
    """The keys in `key: value` and in tables that are in no recipe or launch configuration."""
    named = [key for span in spans(text) for key in re.findall(r"^([a-z]\w*): \S", span)]
    named += [key for head, keys in tables(text) if head == "key" for key in keys]
    return [key for key in named if key not in known_keys()]


CHECKS = (broken_links, missing_paths, unknown_options, unknown_keys)


@each_text
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_everything_that_a_text_names_exists(path, check):
    assert check(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (broken_links, "[x](nowhere.md)"),
        (broken_links, "[x](#no-such-heading)"),
        (broken_links, "[x](data.md#no-such-heading)"),
        (broken_links, '<img src="nowhere.png">'),
        (missing_paths, "`ftkit/nowhere.py`"),
        (missing_paths, "`recipes/<name>.nothing`"),
        (missing_paths, "```\nftkit/nowhere/    a folder\n```\n"),
        (unknown_options, "`--no_such_option`"),
        (unknown_options, "`--top_k 3`, of predict.py\n## Next\n`--top_k 3`, which finetune.py does not have\n"),
        (unknown_keys, "`no_such_key: 1`"),
        (unknown_keys, "| key | |\n| --- | --- |\n| `loss`, `no_such_key` | |\n"),
    ],
)
def test_a_name_of_something_missing_is_found(check, text):
    assert len(check(GUIDES / "new.md", text)) == 1


def test_the_readme_has_at_most_150_lines():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("index", [README, REPO / "recipes" / "README.md"], ids=["top", "recipes"])
def test_every_guide_is_linked(index):
    text = index.read_text(encoding="utf-8")
    assert [path.name for path in GUIDES.glob("*.md") if f"({path.relative_to(index.parent)})" not in text] == []


def _names_in_columns() -> list[list[str]]:
    found = [table for path in TEXTS for table in tables(path.read_text(encoding="utf-8"))]
    return [[*COLUMNS[head], name] for head, names in found if head in COLUMNS for name in names]


@pytest.mark.parametrize("words", _names_in_columns(), ids=lambda words: f"{words[-2]} {words[-1]}")
def test_every_value_in_a_table_is_accepted(words):
    parse_config([*words, "--surgical_groups", "layer1"] if words[-1] == "surgical" else words)


@pytest.mark.parametrize("column", COLUMNS)
def test_the_tables_of_values_are_found(column):
    assert any(COLUMNS[column] == words[:-1] for words in _names_in_columns())


def _recipes() -> list[str]:
    blocks = [block for path in TEXTS for block in BLOCK.findall(path.read_text(encoding="utf-8"))]
    return [code for language, code in blocks if language == "yaml"]


@pytest.mark.parametrize("recipe", _recipes(), ids=lambda recipe: recipe.partition("\n")[0])
def test_every_recipe_fragment_is_accepted(recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"dataset: digits\n{recipe}", encoding="utf-8")
    parse_config(["--config", str(tmp_path / "recipe.yaml")])
