"""Pages from templates: HTML escapes every value, Markdown escapes with the filter `md`."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import ftkit.tasks
from ftkit.evaluation.plots import svg
from ftkit.files import atomic_write
from ftkit.tasks import Section

_FOLDERS = [Path(__file__).parent / "templates", *Path(ftkit.tasks.__file__).parent.glob("*/templates")]
_ESCAPED = str.maketrans({c: f"\\{c}" for c in "\\`*_[]|<>#$~"} | {"&": "&amp;", "\n": " ", "\r": " "})

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def markdown(text: Any) -> str:
    """`text`, escaped so that Markdown shows it literally."""
    return str(text).translate(_ESCAPED)


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _interval(interval: list[float] | None, digits: int = 4) -> str:
    return "" if interval is None else f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _size(value: float) -> str:
    """A large number with three digits, such as 13.9 million."""
    for name, unit in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6)):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:,.0f}"


def _visible(text: str) -> str:
    """`text` with control characters escaped, including those that change the writing direction."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _path(text: str, length: int | None = None) -> Markup:
    """A path that wraps between folders; its middle is cut if it is longer than `length`, since the end says most."""
    text = _visible(text)
    if length is not None and len(text) > length:
        text = f"{text[: length // 3]}…{text[length // 3 + 1 - length :]}"
    return Markup("/<wbr>").join(text.split("/"))


@cache
def _environment() -> jinja2.Environment:
    """One for all pages: it keeps what it has compiled."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDERS),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": markdown, "number": _number, "interval": _interval, "count": _count, "size": _size}
    environment.filters |= {"path": _path, "visible": _visible}
    return environment


def render(template: str, content: dict[str, Any]) -> str:
    """A template filled with `content`."""
    return _environment().get_template(template).render(content)


def write_pages(folder: Path, template: str, content: dict[str, Any], sections: Sequence[Section] = ()) -> None:
    """Write `<template>.html` and `<template>.md` into a folder, from the templates of the same names.

    Args:
        content: the variables of the page and of its sections.
        sections: the page gets the `links` and the rendered `text` of each.
    """
    drawn = [content | {drawing.name: svg(drawing) for drawing in s.drawings} | s.content for s in sections]
    for kind in ("html", "md"):
        parts = [
            {"links": section.links, "text": Markup(render(f"{section.template}.{kind}", own))}
            for section, own in zip(sections, drawn, strict=True)
        ]
        with atomic_write(folder / f"{template}.{kind}") as aside:
            aside.write_text(render(f"{template}.{kind}", content | {"sections": parts}), encoding="utf-8")
