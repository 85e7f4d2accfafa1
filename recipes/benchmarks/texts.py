"""Write results into the texts: tables and single numbers in Markdown, and the results at the head of a recipe.

In Markdown, a result is written between `<!-- results: NAME -->` and `<!-- end -->`. NAME is a table of `TABLES`, or a
result and one of its numbers or goals, as in `benchmarks/mnist_mlp stock / ftkit`. In a recipe, results are the
indented comment lines after `HEAD`.
"""

import re
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.record import REPO
from benchmarks.tables import TABLES, count, formatted, measured_at, phrases
from ftkit.errors import UserError, nearest

HEAD = "# results (recipes/results.py writes these lines):"
MARKED = re.compile(r"(<!-- results: ([\w/ -]+) -->)(.*?)(<!-- end -->)", re.DOTALL)


def texts(root: Path = REPO) -> list[Path]:
    """The files that show results."""
    guides = [root / "README.md", *sorted((root / "recipes").rglob("*.md"))]
    return [path for path in guides if path.is_file()] + sorted((root / "recipes").rglob("*.yaml"))


def rendered(path: Path, results: dict[str, dict[str, Any]], root: Path = REPO) -> str:
    """The text of a file, with its tables and numbers taken from `results`.

    Raises:
        UserError: a marker names a table, a result or a number that does not exist, or a recipe has no `HEAD`.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        name = path.relative_to(root).as_posix()
        own = [record for record in results.values() if record.get("recipe") == name]
        if own and HEAD not in text:
            raise UserError(
                f"{name}: has no line {HEAD!r}, which its results follow: add it to the comment at the top"
            )
        lines = "".join(f"{line}\n" for record in own for line in head(record))
        return re.sub(rf"(?<={re.escape(HEAD)}\n)(#   .*\n)*", lambda match: lines, text)

    def fill(match: re.Match) -> str:
        line = f"{path.relative_to(root)}:{text[: match.start()].count(chr(10)) + 1}"
        if match[2] not in TABLES and text[: match.start()].endswith("\n"):
            raise UserError(f"{line}: a line that starts with a comment ends the paragraph: start it with a word")
        try:
            return match[1] + marked(match[2], results, path.parent.relative_to(root).as_posix()) + match[4]
        except UserError as error:
            raise UserError(f"{line}: {error}") from None

    return MARKED.sub(fill, text)


def marked(what: str, results: dict[str, dict[str, Any]], folder: str) -> str:
    """The text for a marker in a file of `folder`."""
    if what in TABLES:
        return f"\n{TABLES[what](results, folder)}\n"
    name, _, number = what.partition(" ")
    if name not in results:
        known = [*TABLES, *results]
        raise UserError(f"results: there is no table or result {name!r}{nearest(name, known)}")
    record = results[name]
    if number in record["numbers"]:
        return formatted(record, number)
    goals = {goal["what"]: goal["value"] for goal in record.get("goals", [])}
    if number in goals:
        return f"{goals[number]:.2g}"
    known = [*record["numbers"], *goals]
    raise UserError(f"results: {name} has no number {number!r}: expected one of {', '.join(known)}")


def head(record: dict[str, Any]) -> list[str]:
    """The lines of a result at the head of its recipe: its command and its numbers."""
    seeds, numbers = record["seeds"], record["numbers"]
    row = seeds == list(range(seeds[0], seeds[-1] + 1)) and len(seeds) > 1
    which = f"{seeds[0]} to {seeds[-1]}" if row else ", ".join(map(str, seeds))
    images = f"; {count(numbers['test_images'])} images" if "test_images" in numbers else ""
    of = f"({len(seeds)} seed{'s' * (len(seeds) > 1)}, {which}{images})"
    first, *others = phrases(numbers)
    where = record["environment"]
    threads = f"{where['threads']} thread{'s' * (where['threads'] > 1)}"
    parts = [f"{first} {of}", *others, f"{where['cpu']}, {threads}, {where['precision']}"]
    parts.append(f"{record['date']} at {''.join(measured_at(record))}")
    parts += [record["remark"]] if "remark" in record else []
    wrapped = textwrap.wrap("; ".join(parts), 112)
    return [f"#   {record['command'] or record['what']}", *(f"#     {line}" for line in wrapped)]
